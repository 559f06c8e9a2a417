"""What people type: the nearest of the words that are known, and an alternative with its options as text.

'unet', 'unet(widths=(64, 32), dropout=0.1)', 'segmentation(losses=ce+dice)'.
"""

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from tlx.types import UsageError


def near(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
  """At most three known words that look like `word`, the nearest first. The dashes of options do not count.

  >>> near('--epoch', ['--epochs', '--pool', '--seed'])
  ['--epochs']
  """
  bare = {name.lstrip('-'): name for name in known}
  return [bare[name] for name in difflib.get_close_matches(word.lstrip('-'), bare, n=3, cutoff=cutoff)]


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
  """': did you mean X?' where something is near, else ''."""
  close = near(word, known, cutoff=cutoff)
  return f': did you mean {" or ".join(close)}?' if close else ''


def suggest(word: str, known: Iterable[str]) -> str:
  """': did you mean X?' where something is near, else '; there are ...' with the first forty."""
  known = list(known)
  return did_you_mean(word, known) or f'; there are {", ".join(known[:40])}'


def parse(spec: str) -> tuple[str, dict[str, Any]]:
  """(name, {option: value}); numbers, tuples, True, False and None are read, anything else is text.

  Raises UsageError for what is not NAME or NAME(OPTION=VALUE, ...).

  >>> parse('unet(widths=(64, 32), attention=scse)')
  ('unet', {'widths': (64, 32), 'attention': 'scse'})
  """
  name, bracket, _ = spec.partition('(')
  if not bracket:
    return spec.strip(), {}
  try:
    call = ast.parse(spec.strip(), mode='eval').body
  except SyntaxError:
    call = None
  if not isinstance(call, ast.Call) or call.args or any(option.arg is None for option in call.keywords):
    raise UsageError(f'{spec!r} cannot be read: write {name.strip()}(option=value, ...)')
  return name.strip(), {option.arg: _value(option.value) for option in call.keywords if option.arg}


def text(name: str, made: Any, leave_out: tuple[str, ...] = ()) -> str:
  """The inverse: a dataclass as NAME(OPTION=VALUE, ...), with the options that are not its defaults."""
  values = {
    field.name: getattr(made, field.name)
    for field in dataclasses.fields(made)
    if field.init and field.name not in ('parent', 'name', *leave_out) and getattr(made, field.name) != field.default
  }
  options = ', '.join(f'{option}={value!r}' for option, value in values.items())
  return f'{name}({options})' if options else name


def _value(node: ast.expr) -> Any:
  try:
    return ast.literal_eval(node)
  except ValueError:
    return ast.unparse(node).replace(' ', '')
