"""A name, a folder or a hub id -> a model that is ready to use, and back: `load`, `save`; `build` makes the modules."""

from tlx.pretrained.found import Asked, Found, locate, resolve
from tlx.pretrained.load import load
from tlx.pretrained.modules import abstract, build, example, features
from tlx.pretrained.save import save

__all__ = [
  'Asked', 'Found', 'abstract', 'build', 'example', 'features', 'load', 'locate', 'resolve', 'save',
]  # fmt: skip
