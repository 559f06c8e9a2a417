"""tlx: transfer learning in computer vision with JAX. Pretrained backbones, exact freezing, exact resume."""

import importlib

__version__ = '0.1.0'

# Loaded when first asked for: a tool that wants one function does not pay for all of JAX.
_HOMES = {
  'list_models': 'tlx.catalog',
  'load': 'tlx.pretrained',
  'save': 'tlx.pretrained',
  'features': 'tlx.pretrained',
  'Experiment': 'tlx.experiment',
  'Result': 'tlx.actions.finetune',
  'Pretrained': 'tlx.types',
  'Preprocess': 'tlx.types',
  'TlxError': 'tlx.types',
  'UsageError': 'tlx.types',
}


def finetune(experiment, **options):
  """Runs a `tlx.Experiment`, what `tlx finetune` does; see `tlx.actions.finetune.run`."""
  from tlx.actions.finetune import run

  return run(experiment, **options)


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f'module tlx has no attribute {name!r}; it has {", ".join(__all__)}')
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
  return __all__


__all__ = ['__version__', 'finetune', *_HOMES]
