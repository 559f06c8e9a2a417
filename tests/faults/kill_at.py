"""Runs `tlx` many times from one process that has imported everything, and kills it at the K-th file operation.

A line of JSON on standard input is one call: {"arguments": [...], "folder": PATH, "kill": K, "log": FILE}. The answer
is a line with the exit status; a signal is negative. An operation opens a file of the folder for writing, or makes,
moves or deletes something there; the process dies before the K-th one. K = 0 only lists them, in FILE.operations.
Of the pictures of mistakes only the first counts, and operations that find nothing to do do not count.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

REPEATED = re.compile(r'/mistakes/\.?(0[1-9]|[1-9])')
MOVES = ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.truncate')
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def place(path, directory: int) -> str:
  """The whole path; '' if it is none, such as a number of an open file."""
  if not isinstance(path, str | bytes | os.PathLike):
    return ''
  path = os.fsdecode(path)
  if directory >= 0 and not os.path.isabs(path):
    path = os.path.join(os.readlink(f'/proc/self/fd/{directory}'), path)
  return os.path.abspath(path)


def changes(event, arguments) -> str:
  """The path that an event changes; '' for none."""
  if event == 'open':
    path, _, flags = arguments
    return place(path, -1) if isinstance(flags, int) and flags & WRITES else ''
  if event not in MOVES:
    return ''
  path = place(arguments[0], arguments[-1] if isinstance(arguments[-1], int) and event != 'os.mkdir' else -1)
  return '' if os.path.lexists(path) == (event == 'os.mkdir') else path


def counting(folder: str, kill: int, counted):
  def hook(event, arguments):
    path = changes(event, arguments)
    if (path + os.sep).startswith(folder + os.sep) and not REPEATED.search(path):
      counted.append(f'{event} {path[len(folder) :]}')
      if len(counted) == kill:
        os.kill(os.getpid(), signal.SIGKILL)

  return hook


def call(arguments, folder, kill, log):
  from tlx.cli import main

  output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(output, 1)
  os.dup2(output, 2)
  counted = []
  sys.addaudithook(counting(os.path.abspath(folder), kill, counted))
  code = 70
  try:
    code = main.run(arguments)
  finally:
    sys.stdout.flush()
    Path(f'{log}.operations').write_text('\n'.join(counted))
    os._exit(code)  # the parent's handlers at exit are not the child's


def main():
  import grain  # noqa: F401
  import orbax.checkpoint  # noqa: F401

  import tlx.actions.finetune
  import tlx.cli.main  # noqa: F401

  for line in sys.stdin:
    child = os.fork()
    if not child:
      call(**json.loads(line))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
  main()
