"""Loads and saves models: `load` takes a name, a folder or a hub id; `save` writes a folder; `build` makes modules."""

from tlx.pretrained.found import Asked, Found, locate, on_hub, resolve
from tlx.pretrained.load import load
from tlx.pretrained.modules import abstract, build, example, features
from tlx.pretrained.save import save

__all__ = [
  'Asked', 'Found', 'abstract', 'build', 'example', 'features', 'load', 'locate', 'on_hub', 'resolve', 'save',
]  # fmt: skip
