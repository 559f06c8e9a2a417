"""Tiny networks and batches, all random, for tests that need no file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomised

import tlx
from tlx import catalog, pretrained
from tlx.tasks import classification
from tlx.types import Source

CLASSES = 5
NAMES = [name for name in catalog.variants() if name.endswith('_test')]
KINDS = {  # one variant for each kind of layer, which every run of the tests takes
  'efficientnet_test': 'depthwise convolutions, gates, batch norm',
  'resnet_test': 'dense convolutions, batch norm',
  'convnext_test': 'convolutions with layer norm',
  'densenet_test': 'blocks that see all earlier ones',
  'inception_test': 'a second head in training',
  'squeezenet_test': 'a head that sees the map',
  'vit_test': 'a class token',
  'siglip_test': 'an attention pool',
  'swin_test': 'windows',
}
FAMILIES = [name.removesuffix('_test') for name in KINDS]


def matrix(names, often=KINDS) -> list:
  """Parameters of a test: names that are not among `often` belong to the full matrix."""
  return [name if name in often else pytest.param(name, marks=pytest.mark.full) for name in names]


def task(classes: int = CLASSES, **options) -> classification.Task:
  """A classifier of so many classes."""
  return classification.Task(tuple(f'class {i}' for i in range(classes)), **options)


def built(name: str, **options) -> tlx.Pretrained:
  """The variant with five classes, every tensor random; options: dropout, drop_path."""
  variant = catalog.variant(name)
  module = pretrained.build(variant, CLASSES, **options)
  variables = jax.tree.map(jnp.array, _drawn(name))  # copies: a test may donate its own
  return tlx.Pretrained(module, variables, tlx.Preprocess(side(module, 64), 1.0), (), Source(name))


@functools.cache
def _drawn(name: str):
  return randomised(pretrained.abstract(pretrained.build(catalog.variant(name), CLASSES)))


def side(module, pixels: int = 32) -> int:
  """Of images: the one that the model takes, or that many pixels."""
  return module.backbone.config.size or pixels


def batch(seed: int = 0, size: int = 8, pixels: int = 32) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (size, pixels, pixels, 3), dtype=np.uint8),
    'target': {'label': rng.integers(0, CLASSES, size, dtype=np.int32)},
    'mask': np.ones(size, bool),
    'geometry': np.tile(np.float32([pixels, pixels, 0, 0, pixels, pixels]), (size, 1)),
  }
