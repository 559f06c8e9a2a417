"""tlx: transfer learning in computer vision with JAX. Pretrained backbones, exact freezing, exact resume."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what a type checker and an editor see; at run time `__getattr__` imports the same names
  from tlx.actions.finetune import Result
  from tlx.actions.finetune import run as finetune
  from tlx.catalog import dataset as load_dataset
  from tlx.catalog import list_models
  from tlx.experiment import Experiment
  from tlx.pretrained.load import load
  from tlx.pretrained.modules import features
  from tlx.pretrained.save import save
  from tlx.types import Dataset, Preprocess, Pretrained, TlxError, UsageError

__version__ = '0.1.0'
__all__ = [
  'Dataset',
  'Experiment',
  'Preprocess',
  'Pretrained',
  'Result',
  'TlxError',
  'UsageError',
  '__version__',
  'features',
  'finetune',
  'list_models',
  'load',
  'load_dataset',
  'save',
]

# Imported when first asked for: a tool that wants one function does not pay for all of JAX.
_HOMES = {
  'Dataset': 'tlx.types:Dataset',
  'Experiment': 'tlx.experiment:Experiment',
  'Preprocess': 'tlx.types:Preprocess',
  'Pretrained': 'tlx.types:Pretrained',
  'Result': 'tlx.actions.finetune:Result',
  'TlxError': 'tlx.types:TlxError',
  'UsageError': 'tlx.types:UsageError',
  'features': 'tlx.pretrained:features',
  'finetune': 'tlx.actions.finetune:run',
  'list_models': 'tlx.catalog:list_models',
  'load': 'tlx.pretrained:load',
  'load_dataset': 'tlx.catalog:dataset',
  'save': 'tlx.pretrained:save',
}

if not TYPE_CHECKING:  # else a type checker would take any name for known

  def __getattr__(name: str):
    if name not in _HOMES:
      raise AttributeError(f'module tlx has no attribute {name!r}; it has {", ".join(__all__)}')
    module, _, attribute = _HOMES[name].partition(':')
    return getattr(importlib.import_module(module), attribute)

  def __dir__():
    return __all__
