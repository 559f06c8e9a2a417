"""Finds models, strategies, tasks and data sets by listing folders. It is the only file that imports by name."""

import dataclasses
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn

from tlx import words
from tlx.nn.model import Config
from tlx.types import Checkpoint, Dataset, Strategy, Task, UsageError, WholeModel
from tlx.weights import smp

_ONE = {'models': 'family', 'heads': 'head', 'strategies': 'strategy', 'tasks': 'task', 'datasets': 'data set'}
_CLASS = {'heads': 'Head', 'strategies': 'Strategy', 'tasks': 'Task'}  # what each file of these folders defines
_NONE = dataclasses.MISSING


class Variant(NamedTuple):
  """One row of a family's table."""

  name: str
  family: ModuleType
  config: Config
  checkpoint: Checkpoint | None  # None: no published weights that we know of


def names(folder: str) -> tuple[str, ...]:
  """The alternatives in a plural folder: the names of its files, in alphabetical order."""
  return tuple(sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / folder)])))


def find(folder: str, name: str) -> ModuleType:
  """Imports the alternative `name` of a folder. Raises UsageError, with the most similar names, if there is none."""
  if name not in names(folder):
    raise UsageError(f'no {_ONE[folder]} {name!r}{words.suggest(name, names(folder))}')
  return importlib.import_module(f'tlx.{folder}.{name}')


@cache
def variants() -> dict[str, Variant]:
  """Every variant of every family, by its name in timm's spelling."""
  families = [find('models', family) for family in names('models')]
  return {
    name: Variant(name, family, config, family.CHECKPOINTS.get(name))
    for family in families
    for name, config in family.VARIANTS.items()
  }


def variant(name: str) -> Variant:
  """The variant `name`. Raises UsageError, with the most similar names, if there is none."""
  if name not in variants():
    raise UsageError(f'no model {name!r}{words.suggest(name, list_models())}')
  return variants()[name]


@cache
def wholes() -> dict[str, tuple[str, WholeModel]]:
  """Every backbone that was trained together with a head, as {name: (head, row)}."""
  rows = {folder: getattr(find('heads', folder), 'MODELS', {}) for folder in names('heads')}
  return {name: (folder, whole) for folder, models in rows.items() for name, whole in models.items()}


def whole_of_config(config: Mapping[str, Any]) -> tuple[str, WholeModel] | None:
  """Finds the whole model (backbone and head) that another library's config.json describes.

  Args:
    config: the content of config.json.

  Returns:
    (head, row); None if it does not describe a whole model.

  Raises:
    UsageError: if tlx does not have the model.
  """
  files = {folder: find('heads', folder) for folder in names('heads')}
  if smp.CLASS in config:
    kind, readers = config[smp.CLASS], {k: (f, of) for f, x in files.items() for k, of in getattr(x, 'SMP', {}).items()}
    if kind not in readers:
      raise UsageError(f"no head of segmentation-models-pytorch's class {kind!r}{words.suggest(kind, readers)}")
    folder, read = readers[kind]
    return folder, read(config)
  for folder, file in files.items():
    if found := getattr(file, 'of_config', lambda config: None)(config):
      return folder, found
  return None


def of_config(config: Config, first: str | None = None) -> Variant:
  """Finds the variant with this config, whatever the input size, the output stride and the number of classes.

  Args:
    config: of any family.
    first: a variant's name; it is preferred if several variants have the same config.

  Returns:
    The variant; or a new one, named after the family, if no variant has this config.
  """
  ordered = sorted(variants().values(), key=lambda known: known.name != first)
  for known in ordered:
    if type(known.config) is type(config) and _same(known.config, config):
      return known
  family = next(v.family for v in ordered if isinstance(config, type(v.config)))
  return Variant(_family_name(family), family, config, None)


def of_transformers(config: Mapping[str, Any]) -> Variant:
  """Finds the variant that a complete config.json of transformers describes.

  Raises:
    UsageError: for an unknown model type.
  """
  readers = {kind: read for folder in names('models') for kind, read in _readers(folder).items()}
  if config['model_type'] not in readers:
    kind = config['model_type']
    raise UsageError(f"no model of transformers' type {kind!r}{words.suggest(kind, readers)}")
  ours = readers[config['model_type']](config)
  return of_config(ours)._replace(config=ours)


def _readers(folder: str) -> Mapping[str, Callable[[Mapping[str, Any]], Config]]:
  return getattr(find('models', folder), 'TRANSFORMERS', {})


def options(config: Config) -> dict[str, Any]:
  """The fields in which a backbone may differ from its variant, with their values.

  These are the dilation, the last layers if they are left out, and the momentum of batch norms, because another library
  may use the same weights with another momentum.
  """
  known = {field.name for field in dataclasses.fields(config)}
  loose = {'output_stride', 'dilate_early', 'momentum'} & known
  loose |= {name for name in ('final', 'hidden', 'final_norm') if name in known and not getattr(config, name)}
  return {name: getattr(config, name) for name in sorted(loose)}


def _same(known: Config, config: Config) -> bool:
  """Whether two configs differ only in fields that do not distinguish variants."""
  loose = {'size', 'aux_classes'} & {field.name for field in dataclasses.fields(config)}
  return dataclasses.replace(known, **{name: getattr(config, name) for name in loose}, **options(config)) == config


def _family_name(family: ModuleType) -> str:
  return family.__name__.rpartition('.')[-1]


def list_models(pattern: str = '*') -> list[str]:
  """Lists the models that match a shell pattern such as 'resnet*', without the tiny ones for tests."""
  known = [*variants(), *wholes()]
  return sorted(fnmatch.filter((name for name in known if not name.endswith('_test')), pattern))


def strategy(spec: str) -> Strategy:
  """Makes the Strategy of a text such as 'partial:3' or 'lp_ft(rate=0.01)'.

  Raises:
    UsageError: for an unknown name, and for an argument that is missing, malformed or not allowed.
  """
  name, _, argument = spec.partition(':')
  if not argument or '(' in name:
    return _made('strategies', spec)
  cls = find('strategies', name).Strategy
  wanted = _required(cls)
  if not wanted:
    raise UsageError(f'strategy {name} takes no argument, got {argument!r}')
  try:
    values = [convert(argument) for convert in wanted]
  except ValueError:
    raise UsageError(
      f'strategy {name}: {argument!r} is not a valid {wanted[0].__name__}, for example {example(name)}'
    ) from None
  return cls(*values)


def task(spec: str, **options: Any) -> Task:
  """Makes the Task of a text such as 'segmentation(losses=ce+dice)'. It is not bound to a data set yet.

  Args:
    spec: the text.
    options: further fields.

  Returns:
    The task.

  Raises:
    UsageError: for an unknown name or option.
  """
  return _made('tasks', spec, **options)


def head(spec: str, **options: Any) -> nn.Module:
  """Makes the linen module of a text such as 'unet(widths=(64, 32))'.

  Args:
    spec: the text.
    options: further fields, such as num_classes and levels.

  Returns:
    The module.

  Raises:
    UsageError: for an unknown name or option.
  """
  return _made('heads', spec, **options)


def fields(folder: str, spec: str) -> dict[str, dataclasses.Field[Any]]:
  """The options of the alternative that a text names."""
  made = getattr(find(folder, words.parse(spec)[0]), _CLASS[folder])
  return {field.name: field for field in dataclasses.fields(made) if field.name not in ('parent', 'name')}


def _made(folder: str, spec: str, **options: Any) -> Any:
  """Makes an object of an alternative. Raises UsageError for an option that it does not have."""
  name, given = words.parse(spec)
  made, known = getattr(find(folder, name), _CLASS[folder]), fields(folder, name)
  if wrong := [option for option in given if option not in known]:
    raise UsageError('\n'.join(f'{_ONE[folder]} {name} has no option {w}{words.suggest(w, known)}' for w in wrong))
  given = options | given
  missing = [n for n, f in known.items() if n not in given and (f.default, f.default_factory) == (_NONE, _NONE)]
  if missing and folder == 'strategies':
    raise UsageError(f'strategy {name} needs a number, for example {example(name)}')
  try:
    return made(**given)
  except TypeError as error:
    raise UsageError(f'{_ONE[folder]} {spec}: {error}') from None


def example(name: str) -> str:
  """A strategy as the user writes it.

  >>> example('partial'), example('full')
  ('partial:3', 'full')
  """
  values = [{int: '3', float: '0.8'}[convert] for convert in _required(find('strategies', name).Strategy)]
  return ':'.join([name, *values])


def _required(cls: type) -> list[Any]:
  """The types of the fields without a default; there is at most one."""
  return [field.type for field in dataclasses.fields(cls) if field.default is _NONE]


def dataset(spec: str, *, seed: int = 0) -> Dataset:
  """Loads the Dataset of a text such as 'folder:PATH'.

  Raises:
    UsageError: for an unknown name, and for the problems that the data set finds.
  """
  name, _, argument = spec.partition(':')
  found = find('datasets', name).load(argument, seed=seed)
  names = tuple(map(words.shown, found.info.class_names))  # a name that no encoding has could not be written back
  return found._replace(info=found.info._replace(class_names=names))
