"""What a run tells the person at the terminal; with `quiet`, nothing but warnings."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tlx.types import DatasetInfo


class Console:
  """Tables and lines on standard output, warnings on standard error."""

  def __init__(self, quiet: bool = False):
    self.rich = Rich(quiet=quiet, highlight=False, soft_wrap=not sys.stdout.isatty())
    self.quiet = quiet

  def line(self, text: str) -> None:
    self.rich.print(escape(text))

  def warn(self, text: str) -> None:
    print(f'warning: {text}', file=sys.stderr, flush=True)

  def data(self, info: DatasetInfo) -> None:
    """Split sizes, classes and their balance; what was left out, and why."""
    table = _table(f'data: {info.name}', 'split', 'images', 'classes', 'fewest', 'most')
    for split, counts in info.counts.items():
      fewest, most = (f'{f(counts)} {info.class_names[counts.index(f(counts))]}' for f in (min, max))
      table.add_row(split, f'{sum(counts):,}', str(sum(c > 0 for c in counts)), escape(fewest), escape(most))
    self.rich.print(table)
    shown = ', '.join(info.class_names[:12]) + (
      f', ... ({len(info.class_names)})' if len(info.class_names) > 12 else ''
    )
    self.line(f'classes: {shown}')
    for path, reason in info.rejected[:10]:
      self.warn(f'{path}: {reason}; left out')
    if info.rejected:
      self.warn(f'{len(info.rejected)} unreadable files are left out')

  def defaults(self, why: Mapping[str, str]) -> None:
    """What was filled in."""
    if why:
      table = _table('defaults', 'option', 'value')
      for name, value in why.items():
        table.add_row(f'--{name.replace("_", "-")}', escape(value))
      self.rich.print(table)

  def learning(self, phases: Sequence[tuple[str, int, Sequence[Any]]]) -> None:
    """What learns, phase by phase, before the first step."""
    for name, steps, rows in phases:
      table = _table(f'what learns: {name}, {steps:,} steps', 'label', 'tensors', 'parameters', 'peak lr', 'first path')
      for row in rows:
        rate = f'{row.learning_rate:.3g}'
        table.add_row(row.label, str(row.tensors), f'{row.parameters:,}', rate, row.first_path)
      self.rich.print(table)

  def result(self, metrics: Mapping[str, Any], out: Path) -> None:
    """The table at the end, and where the report lies."""
    table = _table(f'result on {metrics.get("split", "validation")}', 'metric', 'value')
    for name in (
      'accuracy',
      'top5_accuracy',
      'loss',
      'macro_precision',
      'macro_recall',
      'macro_f1',
      'calibration_error',
    ):
      table.add_row(name, f'{metrics[name]:.4f}')
    if 'test' in metrics:
      table.add_row('accuracy on test', f'{metrics["test"]["accuracy"]:.4f}')
    for name in ('count', 'trainable_parameters', 'parameters'):
      table.add_row(name, f'{metrics[name]:,}')
    table.add_row('seconds', f'{metrics["seconds"]:.1f}')
    table.add_row('images_per_second', f'{metrics["images_per_second"]:.1f}')
    table.add_row('waiting for data', f'{metrics["data_wait"]:.1%}')
    self.rich.print(table)
    self.line(f'model:  {out / "model"}')
    self.line(f'report: {out / "report.html"}')

  def rows(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of dicts that share their keys."""
    table = _table(title, *rows[0])
    for row in rows:
      table.add_row(*(f'{value:,}' if isinstance(value, int) else escape(str(value)) for value in row.values()))
    self.rich.print(table)

  @contextlib.contextmanager
  def progress(self, steps: int) -> Iterator['_Progress']:
    """A bar on a terminal, a line every few seconds elsewhere."""
    bar = Progress(
      TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[numbers]}'),
      TimeRemainingColumn(), console=self.rich, disable=self.quiet or not self.rich.is_terminal,
    )  # fmt: skip
    with bar:
      yield _Progress(self, bar, steps)


class _Progress:
  """The newest numbers of the run."""

  def __init__(self, console: Console, bar: Progress, steps: int):
    self._console, self._bar, self._steps = console, bar, steps
    self._task = bar.add_task('compiling', total=steps, numbers='')
    self._printed = time.monotonic()

  def resume(self, step: int) -> None:
    if step:
      self._console.line(f'resumed after step {step} of {self._steps}')
      self._bar.update(self._task, completed=step)

  def update(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
    text = (
      f'loss {numbers["loss"]:.4f}  accuracy {numbers["accuracy"]:.3f}  {numbers["images_per_second"]:.0f} images/s'
    )
    self._bar.update(self._task, completed=step, description=phase, numbers=text)
    if self._bar.disable and time.monotonic() - self._printed > 5:
      self._printed = time.monotonic()
      self._console.line(f'step {step}/{self._steps}  {phase}  {text}')

  def log(self, record: Mapping[str, Any]) -> None:
    """Validation results stay on the screen; training ones move the bar."""
    if record['split'] == 'validation':
      self._console.line(
        f'step {record["step"]}/{self._steps}  validation  loss {record["loss"]:.4f}  accuracy {record["accuracy"]:.4f}'
      )


def _table(title: str, *columns: str) -> Table:
  table = Table(title=title, title_justify='left', title_style='bold')
  for i, column in enumerate(columns):
    numeric = column in ('images', 'classes', 'tensors', 'parameters', 'peak lr')
    table.add_column(column, justify='right' if numeric and i else 'left', overflow='fold')
  return table
