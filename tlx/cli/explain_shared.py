"""What the commands of `tlx explain` share."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from tlx.cli import commands
from tlx.explain.outputs import Explanation
from tlx.report import terminal
from tlx.types import UsageError

arg, Positional = tyro.conf.arg, tyro.conf.Positional
Model = Annotated[
  Positional[str], arg(metavar='MODEL', help='A pretrained model such as efficientnet_lite0, or the folder of a run.')
]
Photo = Annotated[
  Positional[tuple[str, ...]],
  arg(metavar='[MODEL] IMAGE', help='A photograph; a pretrained model or the folder of a run may come first.',
      help_behavior_hint='(default: efficientnet_lite0)'),
]  # fmt: skip
DEFAULT = 'efficientnet_lite0'
Out = Annotated[
  Path | None, arg(help='Folder to write.', help_behavior_hint='(default: RUN/explain/..., or explained/...)')
]
Data = Annotated[
  str | None, arg(help='Data set: folder:PATH, tfds:NAME, ...', help_behavior_hint="(default: the run's own)")
]
Split = Annotated[str, arg(help='Split: validation, train, or test if the data set has one.')]


def model_and(
  words: Sequence[str], *kinds: str, default: Callable[[], str] = lambda: DEFAULT
) -> tuple[str, list[Path]]:
  """Splits the words of '[MODEL] IMAGE'.

  Args:
    words: as typed.
    kinds: names of the files that must come, for the error.
    default: makes the model's name if it is left out.

  Returns:
    (the model's name, the files).

  Raises:
    UsageError: if there are too few or too many words.

  Examples:
    >>> model_and(['resnet50', 'cat.jpg'], 'IMAGE')[0]
    'resnet50'
  """
  if len(words) not in (len(kinds), len(kinds) + 1):
    raise UsageError(f'expected [MODEL] {" ".join(kinds)}, got {" ".join(words) or "nothing"}')
  model, files = (words[0], words[1:]) if len(words) > len(kinds) else (default(), words)
  return model, [Path(file) for file in files]


def given(**options: Any) -> dict[str, Any]:
  """Keeps the options that are not None."""
  return {name: value for name, value in options.items() if value is not None}


def finish(command: Any, out: Path, work: Iterable[Explanation]) -> None:
  """Runs the work, writes its result, and prints the figures and the files.

  Args:
    command: the dataclass of the command.
    out: folder to write.
    work: yields results; the last one counts.
  """
  from tlx.actions import explain

  show = terminal.Console(quiet=command.json)
  found = explain.follow(type(command).__name__.lower(), work, show)
  written = explain.save(out, found)
  if command.json:
    return commands.print_json({**found.figures, 'files': written})
  for name, value in found.figures.items():
    if isinstance(value, int | float | str):
      show.line(f'{name:<24} {value:.4g}' if isinstance(value, float) else f'{name:<24} {value}')
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
      _rows(show, name, value)
  show.line(f'written: {out} ({", ".join(path.name for path in written)})')


def _rows(show: terminal.Console, name: str, rows: list[dict[str, Any]]) -> None:
  """Prints a table of figures, one line per row."""
  text = lambda value: f'{value:.4g}' if isinstance(value, float) else str(value)
  for row in rows:
    show.line(f'{name:<24} ' + '  '.join(f'{key} {text(value)}' for key, value in row.items()))
