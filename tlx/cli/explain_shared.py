"""What the commands of `tlx explain` have in common."""

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
  arg(metavar='[MODEL] IMAGE', help='A photograph; before it a pretrained model, or the folder of a run.',
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
  """The model's name and the files of '[MODEL] IMAGE'; raises UsageError where words are missing or too many."""
  if len(words) not in (len(kinds), len(kinds) + 1):
    raise UsageError(f'expected [MODEL] {" ".join(kinds)}, got {" ".join(words) or "nothing"}')
  model, files = (words[0], words[1:]) if len(words) > len(kinds) else (default(), words)
  return model, [Path(file) for file in files]


def given(**options: Any) -> dict[str, Any]:
  """Those that are not None."""
  return {name: value for name, value in options.items() if value is not None}


def finish(command: Any, out: Path, work: Iterable[Explanation]) -> None:
  """Follows the work, writes what came of it and says where it lies."""
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
  """Figures that come as a table, a line each."""
  text = lambda value: f'{value:.4g}' if isinstance(value, float) else str(value)
  for row in rows:
    show.line(f'{name:<24} ' + '  '.join(f'{key} {text(value)}' for key, value in row.items()))
