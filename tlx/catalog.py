"""What there is, found by listing folders: the only dynamic import of the project."""

import dataclasses
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tlx import words
from tlx.nn.model import Config
from tlx.types import Checkpoint, Dataset, UsageError

_ONE = {'models': 'family', 'heads': 'head', 'strategies': 'strategy', 'tasks': 'task', 'datasets': 'data set'}


class Variant(NamedTuple):
  """One row of a family's table."""

  name: str
  family: ModuleType
  config: Config
  checkpoint: Checkpoint | None  # None: no published weights that we know of


def names(folder: str) -> tuple[str, ...]:
  """The alternatives in a plural folder, by file name, in alphabetical order."""
  return tuple(sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / folder)])))


def find(folder: str, name: str) -> ModuleType:
  """The alternative `name` of a folder; raises UsageError with the nearest names."""
  if name not in names(folder):
    raise UsageError(f'no {_ONE[folder]} {name!r}{words.suggest(name, names(folder))}')
  return importlib.import_module(f'tlx.{folder}.{name}')


@cache
def variants() -> dict[str, Variant]:
  """Every variant of every family by its name, timm's spelling."""
  families = [find('models', family) for family in names('models')]
  return {
    name: Variant(name, family, config, family.CHECKPOINTS.get(name))
    for family in families
    for name, config in family.VARIANTS.items()
  }


def variant(name: str) -> Variant:
  """The variant `name`; raises UsageError with the nearest names."""
  if name not in variants():
    raise UsageError(f'no model {name!r}{words.suggest(name, list_models())}')
  return variants()[name]


def of_config(config: Config, first: str | None = None) -> Variant:
  """The variant whose config this is, at any input size and output stride and with any number of classes.

  `first` is the name that wins where several variants fit.
  """
  ordered = sorted(variants().values(), key=lambda known: known.name != first)
  for known in ordered:
    if type(known.config) is type(config) and _same(known.config, config):
      return known
  family = next(v.family for v in ordered if isinstance(config, type(v.config)))
  return Variant(_family_name(family), family, config, None)


def of_transformers(config: Mapping[str, Any]) -> Variant:
  """The variant that a complete config.json of transformers describes; raises UsageError for an unknown model type."""
  readers = {kind: read for folder in names('models') for kind, read in _readers(folder).items()}
  if config['model_type'] not in readers:
    kind = config['model_type']
    raise UsageError(f"no model of transformers' type {kind!r}{words.suggest(kind, readers)}")
  ours = readers[config['model_type']](config)
  return of_config(ours)._replace(config=ours)


def _readers(folder: str) -> Mapping[str, Callable[[Mapping[str, Any]], Config]]:
  return getattr(find('models', folder), 'TRANSFORMERS', {})


def _same(known: Config, config: Config) -> bool:
  names = ('size', 'aux_classes', 'output_stride')
  loose = {name: getattr(config, name) for name in names if hasattr(config, name)}
  return dataclasses.replace(known, **loose) == config


def _family_name(family: ModuleType) -> str:
  return family.__name__.rpartition('.')[-1]


def list_models(pattern: str = '*') -> list[str]:
  """Names that match a shell pattern such as 'resnet*'; the tiny variants for tests are left out."""
  return sorted(fnmatch.filter((name for name in variants() if not name.endswith('_test')), pattern))


def strategy(spec: str):
  """'partial:3' -> its Strategy; raises UsageError for a wrong name, a missing, needless or malformed argument."""
  name, _, argument = spec.partition(':')
  cls = find('strategies', name).Strategy
  wanted = _required(cls)
  if bool(wanted) != bool(argument):
    problem = f'needs a number, for example {example(name)}' if wanted else f'takes no argument, got {argument!r}'
    raise UsageError(f'strategy {name} {problem}')
  try:
    values = [convert(argument) for convert in wanted]
  except ValueError:
    raise UsageError(f'strategy {name}: {argument!r} is no {wanted[0].__name__}, for example {example(name)}') from None
  return cls(*values)


def example(name: str) -> str:
  """A strategy as a user writes it: 'partial:3', 'full'."""
  values = [{int: '3', float: '0.8'}[convert] for convert in _required(find('strategies', name).Strategy)]
  return ':'.join([name, *values])


def _required(cls: type) -> list[type]:
  """Types of the arguments without a default: at most one."""
  return [field.type for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]


def dataset(spec: str, *, seed: int = 0) -> Dataset:
  """'folder:PATH' -> its Dataset; raises UsageError for a wrong name, and what the data set finds wrong."""
  name, _, argument = spec.partition(':')
  return find('datasets', name).load(argument, seed=seed)
