"""Texts that users type: suggestions for misspelt words, and alternatives with options.

Alternatives are 'unet', 'unet(widths=(64, 32), dropout=0.1)' or 'segmentation(losses=ce+dice)'.
"""

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from tlx.types import UsageError

HARMLESS = frozenset('\u00a0\u00ad\u200c\u200d\u202f\u3000')  # spaces and joiners of words and emoji
DISTRIBUTION = 'tlx-vision'  # on the package index, where `tlx` is another project


def install(extra: str) -> str:
  """The command that installs an extra. Where tlx is installed, from a clone too, pip only adds what is missing.

  >>> install('tfds')
  'pip install "tlx-vision[tfds]"'
  """
  return f'pip install "{DISTRIBUTION}[{extra}]"'


def shown(text: str, *, lines: bool = False) -> str:
  """Escapes what a terminal would obey or could not write: control characters, changes of direction, lone surrogates.

  Names of files, classes and tensors come from strangers. An escape sequence in one could rewrite the screen.

  Args:
    text: any text.
    lines: whether the text may have several lines; otherwise its line breaks are escaped too.

  Returns:
    The text, with these characters written as in Python.

  Examples:
    >>> print(shown('größe \\x1b[31m'))
    größe \\x1b[31m
  """
  if text.isprintable():
    return text
  keep = HARMLESS | {'\n'} if lines else HARMLESS
  return ''.join(c if c.isprintable() or c in keep else c.encode('unicode_escape').decode('ascii') for c in text)


def refuse(problems: Iterable[str]) -> None:
  """Raises UsageError with all problems, one line each; does nothing if there are none."""
  if lines := list(problems):
    raise UsageError('\n'.join(lines))


def near(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
  """At most three known words that look like `word`, the nearest first. The dashes of options do not count.

  >>> near('--epoch', ['--epochs', '--pool', '--seed'])
  ['--epochs']
  """
  bare = {name.lstrip('-'): name for name in known}
  return [bare[name] for name in difflib.get_close_matches(word.lstrip('-'), bare, n=3, cutoff=cutoff)]


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
  """': did you mean X?' if a known word is similar, else ''."""
  close = near(word, known, cutoff=cutoff)
  return f': did you mean {" or ".join(close)}?' if close else ''


def suggest(word: str, known: Iterable[str]) -> str:
  """': did you mean X?' if a known word is similar, else '; there are ...' with the first forty.

  >>> suggest('fulll', ['full', 'scratch'])
  ': did you mean full?'
  >>> suggest('everything', ['full', 'scratch'])
  '; there are full, scratch'
  """
  known = list(known)
  return did_you_mean(word, known) or f'; there are {", ".join(known[:40])}'


def parse(spec: str) -> tuple[str, dict[str, Any]]:
  """Parses NAME or NAME(OPTION=VALUE, ...). Numbers, tuples, True, False and None are values; anything else is text.

  Args:
    spec: the text.

  Returns:
    (name, {option: value}).

  Raises:
    UsageError: if the text has another form.

  Examples:
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
  """Inverts `parse`: writes a dataclass as NAME(OPTION=VALUE, ...), with the options that differ from their defaults.

  Args:
    name: of the alternative.
    made: the dataclass.
    leave_out: fields to omit.

  Returns:
    The text.
  """
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
