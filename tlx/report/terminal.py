"""Prints tables, progress bars and warnings to the terminal. With `quiet`, it prints only warnings."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tlx import words
from tlx.cost import compiled
from tlx.train import memory
from tlx.types import DatasetInfo, Task, shape_of

if TYPE_CHECKING:
  import jax

  from tlx.train.step import Recipe

NUMBERS = ('images', 'classes', 'tensors', 'parameters', 'peak lr', 'gmacs', 'size', 'top-1')  # columns of numbers
WIDE = 200  # columns, if the output is a file or a pipe
LOGGED_ALONE = ('grad_norm', 'learning_rate', 'images_per_second')  # not shown in the progress line, to keep it short


class _Literal(Rich):
  """Prints every text as it is: rich would take [bold] and :smile: in names for its own codes."""

  def __init__(self, **options):
    super().__init__(markup=False, emoji=False, **options)

  def render_str(self, text: str, **options) -> Text:  # of lines, titles and cells alike
    return super().render_str(words.shown(text, lines=True), **options)


class Console:
  """Prints tables and lines to standard output, and warnings to standard error."""

  def __init__(self, quiet: bool = False):
    terminal = sys.stdout.isatty()
    width = None if terminal or 'COLUMNS' in os.environ else WIDE  # a file or a pipe has no width
    self.rich = _Literal(quiet=quiet, highlight=False, soft_wrap=not terminal, width=width)
    self.quiet = quiet

  def line(self, text: str) -> None:
    """Prints a line."""
    self.rich.print(text)

  def warn(self, *texts: str) -> None:
    """Prints warnings, even with `quiet`."""
    for text in texts:
      print(words.shown(f'warning: {text}', lines=True), file=sys.stderr, flush=True)

  def data(self, info: DatasetInfo) -> None:
    """Prints split sizes, classes with the fewest and most images, notes, and rejected files with the reason."""
    table = _table(f'data: {info.name}', 'split', 'images', 'classes', 'fewest', 'most')
    for split, counts in info.counts.items():
      fewest, most = (f'{f(counts):,} {info.class_names[counts.index(f(counts))]}' for f in (min, max))
      table.add_row(split, f'{sum(counts):,}', str(sum(c > 0 for c in counts)), fewest, most)
    self.rich.print(table)
    shown = ', '.join(info.class_names[:12]) + (
      f', ... ({len(info.class_names)})' if len(info.class_names) > 12 else ''
    )
    self.line(f'classes: {shown}')
    self.warn(*info.notes)
    for path, reason in info.rejected[:10]:
      self.warn(f'{path}: {reason}; left out')
    if info.rejected:
      self.warn(f'{len(info.rejected)} unreadable files are left out')

  def defaults(self, why: Mapping[str, str]) -> None:
    """Prints the options that were left open, with their values and reasons."""
    if why:
      table = _table('defaults', 'option', 'value')
      for name, value in why.items():
        table.add_row(f'--{name.replace("_", "-")}', value)
      self.rich.print(table)

  def learning(self, phases: Sequence[tuple[str, int, Sequence[Any]]]) -> None:
    """Prints which layers learn in each phase: (name, steps, rows of `optimizer.describe`)."""
    for name, steps, rows in phases:
      table = _table(f'what learns: {name}, {steps:,} steps', 'label', 'tensors', 'parameters', 'peak lr')
      for row in rows:
        table.add_row(row.label, str(row.tensors), f'{row.parameters:,}', f'{row.learning_rate:.3g}')
      self.rich.print(table)

  def program(
    self, phase: str, program: 'jax.stages.Compiled', recipe: 'Recipe', forward: Callable[[], float | None]
  ) -> 'jax.stages.Compiled':
    """Prints the cost of a phase's step, if the compiler reports it.

    Args:
      phase: its name.
      program: the compiled step.
      recipe: of the step.
      forward: computes the FLOPs of a forward pass of the whole model, or None.

    Returns:
      The program.
    """
    if not self.quiet and hasattr(program, 'memory_analysis'):
      count, parts = compiled.flops(program), ''
      needs = f'{count / 1e9:,.2f} GFLOPs and {_size(memory.peak_bytes(program))} of memory'
      if recipe.micro_batches > 1:  # the compiler may count the body of the loop once
        parts = f', in {recipe.micro_batches} micro-batches'
      elif reference := forward():
        parts = f': {count / reference:.2f} forward passes (full fine-tuning: about 3)'
      self.line(f'{phase}: a step takes {needs} on each device{parts}')
    return program

  def result(self, metrics: Mapping[str, Any], task: Task, out: Path) -> None:
    """Prints the metrics of a finished run, and the paths of its model and report."""
    table = _table(f'result on {metrics.get("split", "validation")}', 'metric', 'value')
    for name in task.metrics:
      table.add_row(name, f'{metrics[name]:.4f}')
    if 'test' in metrics:
      table.add_row(f'{task.primary} on test', f'{metrics["test"][task.primary]:.4f}')
    for name in ('count', 'trainable_parameters', 'parameters'):
      table.add_row(name, f'{metrics[name]:,}')
    table.add_row('seconds', f'{metrics["seconds"]:.1f}')
    table.add_row('images_per_second', f'{metrics["images_per_second"]:.1f}')
    table.add_row('waiting for data', f'{metrics["data_wait"]:.1%}')
    self.rich.print(table)
    self.line(f'\nmodel:  {out / "model"}')
    self.line(f'report: {out / "report.html"}')

  def models(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints one row per model. On a narrow terminal it leaves out columns that `tlx models NAME` shows."""
    cells = {
      'name': lambda row: row['name'],
      'parameters': lambda row: _number(row['parameters'], ',d'),
      'gmacs': lambda row: _number(row['gmacs'], ',.3f'),
      'size': lambda row: _number(row['size'], 'd'),
      'top-1': lambda row: _number(row['top1'], '.2f'),
      'license': lambda row: row['license'] or '-',
      'source': lambda row: row['source'] or 'no published weights',
    }
    for leave_out in (None, 'source', 'license', 'size'):
      cells.pop(leave_out, None)
      table = _table('', *cells)
      for row in rows:
        table.add_row(*(cell(row) for cell in cells.values()))
      if self._natural_width(table) <= self.rich.width:
        break
    self.rich.print(table)

  def model(self, row: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> None:
    """Prints one model and its layers."""
    self.models([row])
    source = f'{row["source"]}, license {row["license"]}' if row['source'] else 'no published weights'
    self.line(f'\nsource: {source}')
    table = _table(f'layers, for one image of {row["size"]} x {row["size"]} pixels',
                   'layer', 'output', 'parameters', 'gmacs')  # fmt: skip
    for layer in layers:
      output = ' x '.join(map(str, layer['output']))
      table.add_row(layer['layer'], output, f'{layer["parameters"]:,}', f'{layer["gmacs"]:.4f}')
    self.rich.print(table)

  def cost(self, found: Mapping[str, Any]) -> None:
    """Prints the result of `actions.cost.certify`: one column per phase, and one for full fine-tuning."""
    programs = {**found['phases'], **({} if found['strategy'] == 'full' else {'full': found['full']})}
    height, width = shape_of(found['image_size'])
    title = (
      f'one step of {found["strategy"]} on {found["model"]}: {found["batch_size"]} images of {height} x '
      f'{width} pixels, {found["dtype"]}, {found["devices"]} x {found["platform"]}'
    )
    table = _table(title, 'of one device', *programs)
    for column in table.columns[1:]:
      column.justify, column.no_wrap = 'right', True
    rows = {
      'GFLOPs': lambda cost: f'{cost["flops"] / 1e9:,.3f}',
      'times the forward pass': lambda cost: f'{cost["flops"] / found["forward_flops"]:.3f}',
      'peak memory': lambda cost: _size(cost['peak_bytes']),
      'kept for the backward pass': lambda cost: _size(cost['activation_bytes']),
      'optimizer state': lambda cost: _size(cost['optimizer_bytes']),
      'all-reduced': lambda cost: _size(cost['allreduce_bytes']),
      'parameters that learn': lambda cost: f'{cost["trainable_parameters"]:,}',
    }
    for name, cell in rows.items():
      table.add_row(name, *map(cell, programs.values()))
    self.rich.print(table)
    self.line(f'\nforward pass: {found["forward_flops"] / 1e9:,.3f} GFLOPs; parameters: {found["parameters"]:,}')

  def _natural_width(self, table: Table) -> int:
    return self.rich.measure(table, options=self.rich.options.update(width=10 * WIDE)).maximum

  @contextlib.contextmanager
  def progress(self, steps: int, primary: str) -> Iterator['_Progress']:
    """Shows a progress bar; outside a terminal, a line every 5 s. `primary` is the metric to show for validation."""
    with self._bar() as bar:
      yield _Progress(self, bar, steps, primary)

  @contextlib.contextmanager
  def work(self, what: str) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """Shows a progress bar on a terminal. It yields the function (done, total, {name: number}) to update it."""
    with self._bar() as bar:
      task = bar.add_task(words.shown(what), total=None, numbers='')
      text = lambda numbers: '  '.join(f'{name} {value:.4g}' for name, value in numbers.items())
      yield lambda done, total, numbers: bar.update(task, completed=done, total=total, numbers=text(numbers))

  def _bar(self) -> Progress:
    return Progress(
      TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(),
      TextColumn('{task.fields[numbers]}', markup=False), TimeRemainingColumn(),
      console=self.rich, disable=self.quiet or not self.rich.is_terminal,
    )  # fmt: skip


class _Progress:
  """The progress bar of a run, with its newest numbers."""

  def __init__(self, console: Console, bar: Progress, steps: int, primary: str):
    self._console, self._bar, self._steps, self._primary = console, bar, steps, primary
    self._task = bar.add_task('compiling', total=steps, numbers='')
    self._printed = time.monotonic()

  def resume(self, step: int) -> None:
    if step:
      self._console.line(f'resumed after step {step} of {self._steps}')
      self._bar.update(self._task, completed=step)

  def update(self, step: int, phase: str, numbers: Mapping[str, float]) -> None:
    text = '  '.join(f'{name} {value:.4f}' for name, value in numbers.items() if name not in LOGGED_ALONE)
    text += f'  {numbers["images_per_second"]:.0f} images/s'
    self._bar.update(self._task, completed=step, description=phase, numbers=text)
    if self._bar.disable and time.monotonic() - self._printed > 5:
      self._printed = time.monotonic()
      self._console.line(f'step {step}/{self._steps}  {phase}  {text}')

  def log(self, record: Mapping[str, Any]) -> None:
    """Prints validation results as lines that stay on the screen."""
    if record['split'] == 'validation':
      self._console.line(
        f'step {record["step"]}/{self._steps}  validation  loss {record["loss"]:.4f}  '
        f'{self._primary} {record[self._primary]:.4f}'
      )


def _number(value: float | None, form: str) -> str:
  return '-' if value is None else format(value, form)


def _size(count: float) -> str:
  """Formats bytes: 1234567 -> '1.2 MB'."""
  for unit in ('B', 'kB', 'MB', 'GB'):
    if count < 1000 or unit == 'GB':
      return f'{count:,.{0 if unit == "B" else 1}f} {unit}'
    count /= 1000


def _table(title: str, *columns: str) -> Table:
  """An empty table. Numbers are right-aligned and never wrapped; text wraps, too long words break."""
  style = {'title_justify': 'left', 'title_style': 'bold', 'box': box.SIMPLE_HEAD, 'padding': (0, 1, 0, 0)}
  table = Table(title=f'\n{title}' if title else None, show_edge=False, pad_edge=False, **style)
  for column in columns:
    number = column in NUMBERS
    table.add_column(column, justify='right' if number else 'left', overflow='fold', no_wrap=number)
  return table
