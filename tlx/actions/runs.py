"""Opens a finished run or a pretrained model: its folder, model, options, task and data set."""

from pathlib import Path
from typing import Any

from tlx import catalog, pretrained, weights, words
from tlx.actions import run_record, tasks
from tlx.report import terminal
from tlx.types import Dataset, Pretrained, Task, UsageError
from tlx.weights import hub


def run_folder(path: str | Path) -> Path:
  """Returns the path of a finished run. Raises UsageError if it does not exist, is not a run or is not finished."""
  path = Path(path)
  if not path.is_dir():
    near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    hint = words.did_you_mean(path.name, near) or '; `tlx finetune` makes one below runs/'
    raise UsageError(f'no run folder {path}{hint}')
  if not (path / 'experiment.json').exists():
    raise UsageError(f'{path} is not a run folder: it has no experiment.json; `tlx finetune --out {path}` makes one')
  if not (path / 'model' / 'config.json').exists():
    raise UsageError(f'{path} is not finished: run its `tlx finetune` command again to resume it')
  return path


def load_run(path: str | Path) -> Pretrained:
  """Loads the trained model of a run. Raises UsageError as `run_folder` does."""
  return pretrained.load(str((run_folder(path) / 'model').absolute()))


def first_at_hand(*names: str) -> str:
  """The first of these variants whose weights are on this machine; the last one if none are."""
  known = [(name, catalog.variant(name).checkpoint) for name in names]
  return next((name for name, at in known if at and weights.at_hand(at.location, at.revision)), names[-1])


def load_any(name: str) -> Pretrained:
  """Loads the model of a run, or a pretrained model.

  Args:
    name: a run folder (it has experiment.json), a variant, 'hf-hub:OWNER/NAME', or a folder with config.json.

  Returns:
    The model.

  Raises:
    UsageError: if there is no such run or model.
  """
  folder = Path(name)
  if name in catalog.variants() or (not folder.exists() and pretrained.on_hub(name)):
    return pretrained.load(name)
  if (folder / 'config.json').is_file() and not (folder / 'experiment.json').exists():
    return pretrained.load(str(folder.absolute()))
  on_hub = f'; if it is on the hub, write hf-hub:{name}' if hub.NAME.fullmatch(name) else ''
  hint = words.did_you_mean(name, catalog.list_models(), cutoff=0.8) or (not folder.parent.exists() and on_hub)
  if hint and not folder.exists():
    raise UsageError(f'no run folder and no model {name!r}{hint}')
  return load_run(name)


def options(run: str | Path) -> dict[str, Any]:
  """The options of a finished run; defaults are filled in. Raises TlxError as `run_folder` and `run_record.read` do."""
  return run_record.read(run_folder(run) / 'experiment.json')['experiment']


def task_of_run(run: str | Path) -> Task:
  """Makes the task of a run, with its classes, from experiment.json only."""
  record = run_record.read(run_folder(run) / 'experiment.json')
  return tasks.of_record(record.get('task'), record['data']['class_names'])


def task_of(model: Pretrained) -> Task:
  """Makes the task of a model's head, with its classes; without names, they are called 'class 0' and so on."""
  names = model.class_names or [f'class {i}' for i in range(getattr(model.module.head, 'num_classes', 0))]
  return tasks.of_record(model.source.task, names)


def data_of(name: str | Path, data: str | None, split: str) -> Dataset:
  """Loads a data set.

  Args:
    name: a run folder or a model's name.
    data: text of the data set, such as 'folder:PATH'; None is the run's own.
    split: that the data set must have.

  Returns:
    The data set.

  Raises:
    UsageError: if a model is given without `data`, or the data set or split does not exist.
  """
  is_run = (Path(name) / 'experiment.json').exists()
  if data is None and not is_run:
    raise UsageError(f'{name} has no data set of its own: name one with --data')
  record = options(name) if is_run else {'seed': 0}
  found = catalog.dataset(data or record['data'], seed=record['seed'])
  terminal.Console().warn(*(found.info.notes if data else ()))
  if split not in found.splits:
    raise UsageError(f'{found.info.name} has no split {split!r}{words.suggest(split, found.splits)}')
  return found


def check_classes(data: Dataset, name: str | Path, model: Pretrained) -> None:
  """Checks that a data set has the same classes as a model, in the same order.

  Args:
    data: the data set.
    name: of the model, for the message.
    model: has the classes.

  Raises:
    UsageError: if they differ.
  """
  there, here = list(data.info.class_names), list(model.class_names)
  only = lambda a, b: ', '.join(sorted(set(a) - set(b))[:10]) or 'none'
  if there != here:
    raise UsageError(
      f'{data.info.name} has other classes than {name}: only there {only(there, here)}; only here {only(here, there)}'
    )
