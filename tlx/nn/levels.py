"""The levels of a backbone: which layers return maps, at which stride and width, found from shapes alone.

Dense heads (segmentation, detection) read a pyramid of them; nothing here or there knows a family.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tlx.nn.model import Backbone
from tlx.types import UsageError

SIDES = (256, 320)  # pixels; of the image that the shapes are read from, where the model takes any size


class Level(NamedTuple):
  """A layer, or a tap inside one ('stem/conv'), whose output is a map [b, h / stride, w / stride, channels]."""

  layer: str
  stride: int
  channels: int
  prefix: int = 0  # tokens ahead of the map's


def levels(backbone: Backbone) -> tuple[Level, ...]:
  """Every layer and tap that returns a map, from input to output; () where none does.

  Nothing is computed: the shapes are those of one image (`jax.eval_shape`). A transformer's tokens count as a map where
  they fill the image's grid, without the tokens ahead of them.
  """
  side = getattr(backbone.config, 'size', None)
  height, width = (side, side) if side else SIDES
  names: list[str] = []

  def shapes(x: jax.Array) -> dict[str, jax.Array]:
    features = backbone.init_with_output(jax.random.key(0), x, taps=True)[0]
    names.extend(features)  # what `eval_shape` returns is sorted
    return features

  features = jax.eval_shape(shapes, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
  prefix = getattr(backbone.config, 'prefix', 0)
  grids = {name: _grid(features[name].shape, prefix, side) for name in names}
  strides = {name: grid and _stride((height, width), grid) for name, grid in grids.items()}
  ahead = lambda name: prefix if features[name].ndim == 3 else 0
  return tuple(Level(name, stride, features[name].shape[-1], ahead(name)) for name, stride in strides.items() if stride)


def pyramid(found: tuple[Level, ...]) -> tuple[Level, ...]:
  """The last level at each stride, from fine to coarse: what a feature pyramid reads."""
  return tuple({level.stride: level for level in found}[stride] for stride in sorted({x.stride for x in found}))


def choose(
  found: tuple[Level, ...], layers: tuple[str, ...] = (), *, head: str, least: int = 2, finest: int = 1
) -> tuple[Level, ...]:
  """The levels that a head reads, from fine to coarse: the pyramid, or those that `layers` names.

  Args:
    found: all levels of the backbone.
    layers: names of layers, taps ('stem/conv') or stages ('stage1' is the last layer of that stage), fine to coarse.
    head: what error messages call the head.
    least: the number of levels that the head needs.
    finest: the smallest stride to take from the pyramid, where enough levels are left.
  Raises: UsageError for an unknown name, strides that do not grow, or too few levels.
  """
  named = [(name, _last(found, name)) for name in layers]
  if unknown := [name for name, level in named if level is None]:
    raise UsageError(f'{head}: no layer with a map is called {", ".join(unknown)}; {_listed(found)}')
  chosen = tuple(level for _, level in named) if layers else _coarse(pyramid(found), finest, least)
  if any(fine.stride >= coarse.stride for fine, coarse in itertools.pairwise(chosen)):
    strides = ', '.join(f'{level.layer} ({level.stride})' for level in chosen)
    raise UsageError(f'{head}: strides must grow from layer to layer, got {strides}; {_listed(found)}')
  if len(chosen) < least:
    raise UsageError(
      f'{head} reads maps of {least} or more strides; {_listed(chosen)}; choose a backbone with stages, such as '
      'resnet50, efficientnet_lite0, convnext_tiny or swin_tiny_patch4_window7_224'
    )
  return chosen


def _coarse(chosen: tuple[Level, ...], finest: int, least: int) -> tuple[Level, ...]:
  """The levels of stride `finest` and more; all where these are fewer than `least`."""
  coarse = tuple(level for level in chosen if level.stride >= finest)
  return coarse if len(coarse) >= least else chosen


def _last(found: tuple[Level, ...], name: str) -> Level | None:
  """The level of that name, or the last one of the stage of that name."""
  of_stage = lambda layer: '/' not in layer and layer.rpartition('_')[0] == name
  return next((level for level in reversed(found) if level.layer == name or of_stage(level.layer)), None)


def _listed(found: tuple[Level, ...]) -> str:
  """What a backbone has, in words."""
  layers = ', '.join(f'{level.layer} (stride {level.stride})' for level in pyramid(found))
  return f'the backbone has {layers or "no layer that returns a map"}'


def as_map(values: jax.Array, prefix: int = 0) -> jax.Array:
  """A layer's output as a map [b, h, w, d]: a transformer's tokens return to their square grid, without `prefix` ahead.

  One vector an image, such as an attention pool's, is a map of one place.
  """
  if values.ndim != 3:
    return values.reshape(len(values), *(values.shape[1:3] if values.ndim == 4 else (1, 1)), values.shape[-1])
  tokens = values[:, prefix:]
  side = round(tokens.shape[1] ** 0.5)
  return tokens.reshape(len(tokens), side, side, -1)


def read(features: Mapping[str, jax.Array], level: Level) -> jax.Array:
  """The level's map [b, h, w, channels] among a backbone's features."""
  return as_map(features[level.layer], level.prefix)


def _grid(shape: tuple[int, ...], prefix: int, side: int | None) -> tuple[int, int] | None:
  """Rows and columns of a layer's output; None where it is one vector an image, or tokens that fill no square."""
  if len(shape) == 4 and min(shape[1:3]) > 1:
    return shape[1], shape[2]
  rows = round((shape[1] - prefix) ** 0.5) if len(shape) == 3 and side else 0
  return (rows, rows) if rows > 1 and rows * rows == shape[1] - prefix else None


def _stride(image: tuple[int, int], grid: tuple[int, int]) -> int | None:
  """Pixels between two places, the nearest power of two where borders cost a place; None where the axes disagree."""
  exact = {side // places for side, places in zip(image, grid) if side % places == 0}
  near = {2 ** round(math.log2(side / places)) for side, places in zip(image, grid)}
  if len(exact) == 1 and all(side % places == 0 for side, places in zip(image, grid)):
    return exact.pop()
  return near.pop() if len(near) == 1 else None
