"""`tlx`: the command line.

Usage errors exit with 2, other failures with 1, a run stopped by a signal with 128 + its number.
"""

import contextlib
import dataclasses
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from tlx import __version__, words
from tlx.cache import programs
from tlx.cli.commands import Cost, Evaluate, Export, Finetune, Models, Positional, Predict, Report
from tlx.cli.explain import Explain
from tlx.types import TlxError, UsageError

COMMANDS = (Finetune, Evaluate, Predict, Models, Cost, Export, Report, Explain)


def main(arguments: list[str] | None = None) -> None:
  """Runs one command; every problem a user can mend is one clear line on standard error, without a traceback."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # a name may have characters that the terminal's encoding lacks
      stream.reconfigure(errors='backslashreplace')
  warnings.filterwarnings('ignore', module=r'PIL\.')  # of damaged metadata, thousands for one file; tlx names the file
  if logging.lastResort:
    logging.lastResort.setFormatter(_Shown())
  sys.exit(run(sys.argv[1:] if arguments is None else arguments))


class _Shown(logging.Formatter):
  """Escapes the names in warnings."""

  def format(self, record: logging.LogRecord) -> str:
    return words.shown(super().format(record), lines=True)


def run(arguments: list[str]) -> int:
  """The exit code of one command."""
  from tlx.train.loop import Stopped

  try:
    _known(arguments)
    if arguments[:1] == ['--version']:
      print(f'tlx {__version__}')
    else:
      command = _parse(arguments)
      programs.keep()
      command()
    return 0
  except SystemExit as done:  # of the parser: 0 after --help, 2 for a wrong option, which it has explained
    return int(done.code or 0)
  except UsageError as error:
    return _fail(error, 2)
  except TlxError as error:
    return _fail(error, 1)
  except Stopped as stop:
    print(words.shown(f'stopped: {stop}; run the same command again to go on'), file=sys.stderr)
    return 128 + stop.signum
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:  # the reader, `head` say, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except (RuntimeError, AssertionError):
    from tlx import processes

    if problem := processes.no_device():
      return _fail(problem, 2)
    raise
  except OSError as error:
    return _fail(f'{error.filename or "the operating system"}: {error.strerror or error}', 1)


def _known(arguments: list[str], commands: Sequence[type] = COMMANDS, where: str = 'tlx') -> None:
  """Refuses misspelt commands and options, with the nearest."""
  names = {command.__name__.lower(): command for command in commands}
  first = arguments[0] if arguments else '-'
  if not first.startswith('-') and first not in names:
    raise UsageError(f'no {"command" if where == "tlx" else "tool"} {first!r}{words.suggest(first, names)}')
  if first in names and (tools := _tools(names[first])):
    return _known(arguments[1:], tools, f'{where} {first}')
  where = f'{where} {first}' if first in names else where
  known = ['--help', *(_options(names[first]) if first in names else ['--version'] * (where == 'tlx'))]
  given = [word.partition('=')[0] for word in arguments if word.startswith('--') and not word.startswith('--tyro')]
  wrong = [name for name in given if name.replace('_', '-') not in known]
  if wrong:
    raise UsageError('\n'.join(f'{where} has no option {name}{words.suggest(name, known)}' for name in wrong))


def _tools(command: type) -> tuple[type, ...]:
  """The commands within a command."""
  return getattr(command, 'TOOLS', ())


def _options(command: type) -> Iterator[str]:
  for field in dataclasses.fields(command):
    if dataclasses.is_dataclass(field.default):
      yield from _options(type(field.default))
    elif Positional not in get_args(field.type):
      names = [getattr(note, 'name', None) for note in get_args(field.type)]  # where it is another than the field's
      yield '--' + next(filter(None, names), field.name).replace('_', '-')


def _parse(arguments: list[str]) -> Any:
  first = arguments[0] if arguments else ''
  for command in COMMANDS:
    if command.__name__.lower() == first and _tools(command):
      return _one_of(_tools(command), arguments[1:], f'tlx {first}', command.__doc__)
  about = f'Transfer learning in computer vision with JAX. Version {__version__} (--version).'
  return _one_of(COMMANDS, arguments, 'tlx', about)


def _one_of(commands: Sequence[type], arguments: list[str], prog: str, about: str) -> Any:
  choices = [Annotated[c, tyro.conf.subcommand(c.__name__.lower(), description=c.__doc__)] for c in commands]
  config = (tyro.conf.FlagCreatePairsOff,)
  parse = lambda: tyro.cli(
    reduce(or_, choices), args=arguments, prog=prog, config=config, registry=VALUES, description=about
  )
  if all(word == words.shown(word) for word in arguments):
    return parse()
  written = io.StringIO()  # an explanation of a wrong option repeats the words
  try:
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(written):
      return parse()
  finally:
    print(words.shown(written.getvalue(), lines=True), end='', file=sys.stderr)


VALUES = ConstructorRegistry()


@VALUES.primitive_rule
def _value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
  """Numbers and text, optional or not, read alike; 'None' is never typed: leaving the option out says it."""
  optional = info.type_origin in (Union, UnionType) and type(None) in get_args(info.type)
  kind = reduce(or_, (t for t in get_args(info.type) if t is not type(None))) if optional else info.type
  if kind not in PLAIN:
    return None
  return PrimitiveConstructorSpec(
    nargs=1,
    metavar=PLAIN[kind],
    instance_from_str=lambda words: _converted(kind, words[0]),
    is_instance=lambda value: value is None or isinstance(value, kind),
    str_from_instance=lambda value: [str(value)],
  )


PLAIN: dict[Callable, str] = {int: 'INT', float: 'FLOAT', str: 'STR', Path: 'PATH'}


def _converted(kind: Callable, word: str) -> Any:
  try:
    return kind(word)
  except ValueError:
    raise ValueError(f'{word!r} is no {"whole number" if kind is int else "number"}') from None


def _fail(error: Any, code: int) -> int:
  print(words.shown(f'error: {error}', lines=True), file=sys.stderr)
  return code
