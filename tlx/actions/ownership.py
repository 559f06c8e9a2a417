"""One owner for a run folder: a lock file that names the process, which other machines see too.

The lock is filelock's lease: a file that is made exclusively, so that it needs no locks of the file system, which
network file systems may lack. The lock of a killed process is taken over at once on the same machine, and on another
one after it was not renewed for LEASE seconds.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from tlx.report import folder
from tlx.types import TlxError, UsageError

LOCK = 'run.lock'  # filelock adds endings to it for its own temporary files
LEASE = 120.0  # seconds; the owner renews the lock three times as often
WRITTEN = 3.0  # seconds after which a lock without a record is what a killed process left


def check(out: Path, say: Callable[[str], None]) -> None:
  """Raises UsageError if another process owns a run folder. `say` receives a line if it has to wait to know that."""
  if (out / LOCK).exists():
    with contextlib.suppress(OSError):  # it cannot be written: `owned` says so
      _taken(out, say).release()


@contextlib.contextmanager
def owned(out: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
  """Owns a run folder in the block. It makes the folder, and removes it again if nothing was written.

  Args:
    out: the run folder.
    say: receives a line if it has to wait for the lock of a machine that may be gone.

  Yields:
    A function that raises TlxError if another process has taken the folder, because this one stood still for too long.

  Raises:
    UsageError: if another process owns the folder.
    TlxError: if the folder is not writable or the disk is full.
  """
  made = [path for path in (out, *out.parents) if not path.exists()]
  try:
    with folder.writing(out / LOCK):
      out.mkdir(parents=True, exist_ok=True)
      lease = _taken(out, say)
    try:
      yield lambda: _keep(out, lease)
    finally:
      with contextlib.suppress(OSError):
        lease.release()
  finally:
    for path in made:
      with contextlib.suppress(OSError):  # it is not empty
        path.rmdir()


def _keep(out: Path, lease: filelock.SoftFileLease) -> None:
  if lease.compromise:
    raise TlxError(
      f'{out / LOCK} was lost ({lease.compromise.reason}), so that another process may train there; next: see that '
      'only one does, and run the same command again to resume'
    )


def _taken(out: Path, say: Callable[[str], None]) -> filelock.SoftFileLease:
  """Acquires the lock, over the one of a process that is gone."""
  lock = out / LOCK
  lease = filelock.SoftFileLease(lock, lease_duration=LEASE, thread_local=False)
  with contextlib.suppress(filelock.Timeout):
    lease.acquire(timeout=0)
    return lease
  stamp, owner = _stamp(lock), lease.owner
  if stamp and time.time() - stamp[0] > LEASE and not _dead(owner):
    say(f'{_used(out, owner)}, which was not heard of for {LEASE:.0f} s; waiting as long to be sure that it is gone')
    wait = LEASE + 1
  elif owner and not _dead(owner):
    raise UsageError(_refusal(out, owner))
  else:
    wait = 0.1 if owner else WRITTEN
  try:
    with contextlib.suppress(filelock.Timeout):
      lease.acquire(timeout=wait)
      return lease
    if _stamp(lock) == stamp:  # filelock swaps the names of two files, which network file systems refuse
      lease.break_lock()
    lease.acquire(timeout=0)
  except filelock.Timeout:
    raise UsageError(_refusal(out, lease.owner)) from None
  return lease


def _dead(owner: filelock.OwnerRecord | None) -> bool:
  """Whether the owner was a process of this machine that has ended."""
  if owner is None or owner.hostname != _here() or os.name == 'nt':  # there, os.kill ends the process
    return False
  try:
    os.kill(owner.pid, 0)
  except ProcessLookupError:
    return True
  except OSError:  # a process of another user
    return False
  return False


def _here() -> str:
  """This machine as filelock names it: containers of one host may differ in their process numbers alone."""
  try:
    space = os.stat('/proc/self/ns/pid').st_ino
  except OSError:
    return socket.gethostname()
  return socket.gethostname() + ('' if space == 0xEFFFFFFC else f'?pidns-{space:x}')  # the host's own


def _stamp(lock: Path) -> tuple[float, int] | None:
  with contextlib.suppress(OSError):
    stat = lock.stat()
    return stat.st_mtime, stat.st_ino
  return None


def _used(out: Path, owner: filelock.OwnerRecord | None) -> str:
  if owner is None:
    return f'--out {out} is in use by another process'
  return f'--out {out} is in use by process {owner.pid} on {owner.hostname.partition("?")[0]}'


def _refusal(out: Path, owner: filelock.OwnerRecord | None) -> str:
  next_move = 'next: wait until it ends, stop it, or choose another --out'
  if owner and owner.hostname == _here():
    return f'{_used(out, owner)}; {next_move}'
  return f'{_used(out, owner)}; {next_move}; if that machine is gone, repeat the command in {LEASE:.0f} s'
