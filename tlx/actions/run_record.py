"""Writes a run's records: experiment.json with the command that reproduces it, metrics.jsonl, and event files."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from tlx import __version__, trees, words
from tlx.actions import tasks
from tlx.experiment import Experiment
from tlx.report import events, folder
from tlx.train.optimizer import Row
from tlx.types import UsageError

if TYPE_CHECKING:  # which imports this module
  from tlx.actions.finetune import Prepared

# Options that do not change the result, so a resumed run may change them. The last two can make a phase fit in
# memory after earlier phases have been trained.
RUNNING = ('out', 'compile', 'workers', 'log_every', 'micro_batches', 'remat')

# Values of options in runs that are older than the option.
OLDER = {'norm_statistics': 'batch'}


def describe(prepared: 'Prepared', rows: Sequence[tuple[str, int, Sequence[Row]]]) -> dict[str, Any]:
  """Makes the content of experiment.json: everything that reproduces the run.

  Args:
    prepared: the run, ready to start.
    rows: (phase, steps, table of what learns) of each phase.

  Returns:
    A dict to write as JSON.
  """
  e, info, source = prepared.experiment, prepared.data.info, prepared.pretrained.source
  packages = {name: sys.modules[name].__version__ for name in ('jax', 'flax', 'optax', 'numpy')}
  return {
    'experiment': plain(e),
    'command': command(e),
    'environment': {
      'tlx': __version__, 'python': platform.python_version(), **packages,
      'platform': platform.platform(), 'device': jax.devices()[0].device_kind, 'backend': jax.default_backend(),
      'devices': jax.device_count(), 'processes': jax.process_count(),
    },
    'task': tasks.spec_of(prepared.task),
    'data': info._asdict(),
    'model': {
      'variant': source.variant, 'location': source.location, 'license': source.license,
      'parameters': trees.count(prepared.pretrained.variables['params']),
      'preprocess': prepared.pretrained.preprocess._asdict(),
    },
    'learning': [
      {'name': name, 'steps': steps, 'rows': [row._asdict() for row in table]} for name, steps, table in rows
    ],
    'defaults': dict(prepared.why),
  }  # fmt: skip


def plain(e: Experiment) -> dict[str, Any]:
  """The options as JSON values. Objects become their text, or the name of their class if they have no text."""
  return {field.name: _text(field.name, getattr(e, field.name)) for field in dataclasses.fields(e)}


def _text(name: str, value: Any) -> Any:
  if isinstance(value, str | int | float | bool | None):
    return value
  if name == 'task':
    return tasks.spec_of(value)
  parts = type(value).__module__.split('.')
  if parts[0] == 'tlx':
    return words.text(parts[-1], value, leave_out=('levels',))
  return f'{type(value).__module__}.{type(value).__qualname__}'


def command(e: Experiment) -> str:
  """The command line that repeats this experiment, even if defaults change."""
  options, values = [], plain(e)
  for field in dataclasses.fields(e):
    value = values[field.name]
    if value is not None and (value != field.default or field.name in ('model', 'data', 'strategy')):
      options += [f'--{field.name.replace("_", "-")}', *([] if value is True else [str(value)])]
  return shlex.join(['tlx', 'finetune', *options])


def claim(out: Path, experiment: Experiment) -> None:
  """Checks that a folder can hold this run.

  Raises:
    UsageError: if it is a file, holds something else, or holds the run of another experiment.
  """
  record = out / 'experiment.json'
  if out.exists() and not out.is_dir():
    raise UsageError(f'--out {out} is a file; choose a folder')
  if not record.exists():
    if out.is_dir() and any(out.iterdir()):
      raise UsageError(f'--out {out} is not empty and is not a run folder; choose another')
    return
  there, here = folder.read_json(record)['experiment'], folder.plain(plain(experiment))
  there = OLDER | there
  differ = [name for name in here if name not in RUNNING and there.get(name) != here[name]]
  if differ:
    changes = ', '.join(f'{name} {there.get(name)} there, {here[name]} here' for name in differ)
    raise UsageError(
      f'--out {out} holds another experiment ({changes}); choose another --out, or repeat its options to resume it'
    )


class Log:
  """Writes metrics.jsonl and TensorBoard events, in the first process only."""

  def __init__(self, out: Path):
    self._lines = self._events = None
    self._out = out

  def resume(self, step: int, evaluate: bool = False) -> None:
    """Opens both files and deletes the records after `step`.

    Args:
      step: last step to keep.
      evaluate: whether the evaluation at `step` will run again; its records are then deleted too.
    """
    if jax.process_index() == 0:
      self._lines = folder.MetricsLog(self._out / 'metrics.jsonl')
      self._lines.truncate(step, evaluate)
      self._events = events.EventWriter(self._out / 'events', purge_step=step + 1 if step else None)

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes a record: 'step', 'split' and the metrics."""
    if self._lines:
      self._lines.append(record)
      numbers = {f'{record["split"]}/{k}': v for k, v in record.items() if isinstance(v, float | int) and k != 'step'}
      self._events.scalars(record['step'], numbers)

  def close(self) -> None:
    """Closes the event file."""
    if self._events:
      self._events.close()


def folder_name(e: Experiment) -> str:
  """The default run folder, such as runs/photo_patches-efficientnet_lite0-lp_ft."""
  clean = lambda text: ''.join(c if c.isalnum() or c in '._' else '-' for c in text.rstrip('/').split('/')[-1])
  return f'runs/{clean(e.data)}-{clean(e.model)}-{clean(plain(e)["strategy"])}'


def write(path: Path, value: Any) -> None:
  """Writes a JSON file, in the first process only."""
  if jax.process_index() == 0:
    folder.write_json(path, value)
