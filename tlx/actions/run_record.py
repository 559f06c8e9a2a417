"""Writes a run's records: experiment.json with the command that reproduces it, metrics.jsonl, and event files."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from tlx import __version__, files, labels, trees, words
from tlx.actions import ownership, run_data, tasks
from tlx.experiment import Experiment
from tlx.report import events, folder
from tlx.train.optimizer import Row
from tlx.types import Task, TlxError, UsageError

if TYPE_CHECKING:  # which imports this module
  from tlx.actions.finetune import Prepared

# Options that do not change the result, so a resumed run may change them. The last two can make a phase fit in
# memory after earlier phases have been trained. Batch norms see one micro-batch at a time: `_fixed` has them.
RUNNING = ('out', 'compile', 'workers', 'log_every', 'micro_batches', 'remat')

# Files and folders of a run that lost its experiment.json; the first two are there as soon as it has trained.
TRAINED = ('checkpoints', 'metrics.jsonl')
PARTS = (
  *TRAINED, 'damaged_checkpoints', 'events', 'features', 'evaluation.npz', 'mistakes.json', 'mistakes', 'model',
  'report.html', 'result.json', 'export',
)  # fmt: skip

# Values of options in runs that are older than the option.
OLDER = {'norm_statistics': 'batch'}


def describe(
  prepared: 'Prepared', data: Mapping[str, Any], rows: Sequence[tuple[str, int, Sequence[Row]]]
) -> dict[str, Any]:
  """Makes the content of experiment.json: everything that reproduces the run.

  Args:
    prepared: the run, ready to start.
    data: of `run_data.describe`.
    rows: (phase, steps, table of what learns) of each phase.

  Returns:
    A dict to write as JSON.
  """
  e, source = prepared.experiment, prepared.pretrained.source
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
    'data': data,
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


def check_folder(out: Path) -> None:
  """Raises UsageError if a folder cannot hold a run, because it is a file or holds something else."""
  if out.exists() and not out.is_dir():
    raise UsageError(f'--out {out} is a file; choose a folder')
  if (out / 'experiment.json').exists() or not out.is_dir():
    return
  names = {path.name for path in out.iterdir() if not _leftover(path.name)}
  if names and not (names <= set(PARTS) and names & set(TRAINED)):
    raise UsageError(f'--out {out} is not empty and is not a run folder; choose another')


def _leftover(name: str) -> bool:
  """Whether a file may be there before experiment.json is."""
  return name.startswith(ownership.LOCK) or bool(files.TEMPORARY.fullmatch(name))


def claim(out: Path, prepared: 'Prepared', data: Mapping[str, Any], warn: Callable[[str], None]) -> None:
  """Checks that the run in a folder, if there is one, has the same options and data.

  Args:
    out: the run folder.
    prepared: the run, ready to start.
    data: of `run_data.describe`.
    warn: receives a warning if experiment.json is lost or damaged, so that nothing can be compared.

  Raises:
    UsageError: if the folder holds a run with other options or other data.
  """
  check_folder(out)
  path = out / 'experiment.json'
  if not path.exists() and not any((out / name).exists() for name in TRAINED):
    return
  try:
    record = read(path)
  except TlxError as error:
    what = str(error).partition(';')[0]
    warn(f'{what}: written again from this command; tlx cannot tell whether the run began with these options and data')
    return
  there, here = OLDER | record['experiment'], folder.plain(plain(prepared.experiment))
  other = run_data.changes(record['data'], data)
  free = {'data', *prepared.why} if other else {'data'} if run_data.same(record['data'], data) else set()
  free |= {*RUNNING} - {*_fixed(out, prepared)}
  differ = [name for name in here if name not in free and there.get(name) != here[name]]
  problems = []
  if other:
    problems.append(
      f'--out {out} began with other data ({"; ".join(other)}); next: restore the data, or choose another --out'
    )
  if differ:
    changes = ', '.join(f'{name} {there.get(name)} there, {here[name]} here' for name in differ)
    problems.append(
      f'--out {out} holds another experiment ({changes}); choose another --out, or repeat its options to resume it'
    )
  words.refuse(problems)


def _fixed(out: Path, prepared: 'Prepared') -> list[str]:
  """The options among RUNNING that do change the result of this run, once it has trained."""
  statistics = prepared.pretrained.variables.get('batch_stats') or {}
  normed = any(name != labels.BACKBONE or prepared.experiment.norm_statistics == 'batch' for name in statistics)
  trained = any(path.name.isdigit() for path in (out / 'checkpoints').glob('*'))
  return ['micro_batches'] if normed and trained else []


def read(path: Path) -> dict[str, Any]:
  """Reads experiment.json.

  Args:
    path: of the file.

  Returns:
    Its content, with the options and class names that every run has.

  Raises:
    TlxError: if it is missing or damaged.
  """
  record = folder.read_json(path)
  options, data = ({}, {}) if not isinstance(record, dict) else (record.get('experiment'), record.get('data'))
  needed = {'data': str, 'seed': int, 'batch_size': int, 'dtype': str}
  sound = isinstance(options, dict) and all(isinstance(options.get(name), kind) for name, kind in needed.items())
  names = data.get('class_names') if isinstance(data, dict) else None
  if not (sound and isinstance(names, list) and all(isinstance(name, str) for name in names)):
    raise TlxError(f'{path} is damaged: it does not describe a run; {folder.AGAIN}')
  return record


def result_of(out: Path, task: Task) -> dict[str, Any] | None:
  """The content of result.json. None if the run is not complete, or if its result or its model is lost or damaged."""
  try:
    metrics = folder.read_json(out / 'result.json')
  except TlxError:
    return None
  whole = isinstance(metrics, dict) and all(isinstance(metrics.get(name), int | float) for name in task.metrics)
  model = all((out / 'model' / name).is_file() for name in ('config.json', 'model.safetensors'))
  return metrics if whole and model else None


def is_whole(out: Path, task: Task) -> bool:
  """Whether a run is complete, with everything that readers of its folder need."""
  try:
    read(out / 'experiment.json')
  except TlxError:
    return False
  return (out / 'report.html').is_file() and result_of(out, task) is not None


def begin(out: Path, record: Mapping[str, Any], task: Task) -> None:
  """Writes experiment.json. It deletes what killed processes left, and the result of a model that is lost."""
  for place in (out, out / 'model', out / 'mistakes', *(out / 'checkpoints').glob('*')):
    files.sweep(place)
  folder.write_json(out / 'experiment.json', record)
  if result_of(out, task) is None:
    with folder.writing(out / 'result.json'):
      (out / 'result.json').unlink(missing_ok=True)


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
