"""The levels of a backbone: the layers that return maps, with their stride and channels, found from shapes alone.

Dense heads (segmentation, detection) read a pyramid of levels. Neither they nor this file know a family.
"""

import functools
import itertools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tlx.nn.model import Backbone
from tlx.types import Level, UsageError

SIDES = (256, 320)  # height and width of the probe image, pixels, if the model takes any size


@functools.lru_cache(maxsize=64)  # tracing takes 0.4 s, and a run asks for its head and for its checks
def levels(backbone: Backbone) -> tuple[Level, ...]:
  """Finds every layer and tap that returns a map.

  It traces one image with `jax.eval_shape` and computes nothing. A transformer's tokens count as a map if, without the
  prefix tokens, they fill the image's grid.

  Args:
    backbone: of any family.

  Returns:
    The levels from input to output; () if no layer returns a map.
  """
  side = backbone.config.size
  height, width = (side, side) if side else SIDES
  names: list[str] = []

  def shapes(x: jax.Array) -> dict[str, jax.Array]:
    features = backbone.init_with_output(jax.random.key(0), x, taps=True)[0]
    names.extend(features)  # `eval_shape` returns a dict in sorted order
    return features

  features = jax.eval_shape(shapes, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
  prefix = backbone.config.prefix
  grids = {name: _grid(features[name].shape, prefix, side) for name in names}
  strides = {name: grid and _stride((height, width), grid) for name, grid in grids.items()}
  ahead = lambda name: prefix if features[name].ndim == 3 else 0
  return tuple(Level(name, stride, features[name].shape[-1], ahead(name)) for name, stride in strides.items() if stride)


def pyramid(found: tuple[Level, ...]) -> tuple[Level, ...]:
  """Picks the last level at each stride, from fine to coarse. A feature pyramid reads these.

  >>> found = pyramid((Level('stem', 2, 16), Level('block0', 4, 24), Level('block1', 4, 32)))
  >>> [level.layer for level in found]
  ['stem', 'block1']
  """
  return tuple({level.stride: level for level in found}[stride] for stride in sorted({x.stride for x in found}))


def choose(
  found: tuple[Level, ...], layers: tuple[str, ...] = (), *, head: str, least: int = 2, finest: int = 1
) -> tuple[Level, ...]:
  """Chooses the levels that a head reads, from fine to coarse: the pyramid, or those that `layers` names.

  Args:
    found: all levels of the backbone.
    layers: names of layers, taps ('stem/conv') or stages ('stage1' is the last layer of that stage), from fine to
      coarse.
    head: the head's name in error messages.
    least: number of levels that the head needs.
    finest: minimum stride of the levels from the pyramid, if enough levels remain.

  Returns:
    The levels.

  Raises:
    UsageError: for an unknown name, strides that do not grow, or too few levels.
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
  """The levels of stride `finest` and more; all levels if these are fewer than `least`."""
  coarse = tuple(level for level in chosen if level.stride >= finest)
  return coarse if len(coarse) >= least else chosen


def _last(found: tuple[Level, ...], name: str) -> Level | None:
  """The level of that name, or the last level of the stage of that name; None if there is none."""
  of_stage = lambda layer: '/' not in layer and layer.rpartition('_')[0] == name
  return next((level for level in reversed(found) if level.layer == name or of_stage(level.layer)), None)


def _listed(found: tuple[Level, ...]) -> str:
  """A list of a backbone's levels, in words."""
  layers = ', '.join(f'{level.layer} (stride {level.stride})' for level in pyramid(found))
  return f'the backbone has {layers or "no layer that returns a map"}'


def as_map(values: jax.Array, prefix: int = 0) -> jax.Array:
  """Turns a layer's output into a map [b, h, w, d].

  Args:
    values: a map [b, h, w, d] (returned as it is), tokens [b, prefix + s * s, d] of a square grid, or one vector an
      image [b, d], such as an attention pool's (a map of one position).
    prefix: number of tokens ahead of the grid's; they are dropped.

  Returns:
    [b, h, w, d], in the dtype of `values`.
  """
  if values.ndim != 3:
    return values.reshape(len(values), *(values.shape[1:3] if values.ndim == 4 else (1, 1)), values.shape[-1])
  tokens = values[:, prefix:]
  side = round(tokens.shape[1] ** 0.5)
  return tokens.reshape(len(tokens), side, side, -1)


def read(features: Mapping[str, jax.Array], level: Level) -> jax.Array:
  """The map [b, h, w, channels] of a level, from a backbone's features."""
  return as_map(features[level.layer], level.prefix)


def _grid(shape: tuple[int, ...], prefix: int, side: int | None) -> tuple[int, int] | None:
  """Rows and columns of a layer's output; None for one vector per image, and for tokens that do not fill a square."""
  if len(shape) == 4 and min(shape[1:3]) > 1:
    return shape[1], shape[2]
  rows = round((shape[1] - prefix) ** 0.5) if len(shape) == 3 and side else 0
  return (rows, rows) if rows > 1 and rows * rows == shape[1] - prefix else None


def _stride(image: tuple[int, int], grid: tuple[int, int]) -> int | None:
  """Pixels between two positions of the grid; None if the two axes disagree.

  Where convolutions without padding cost a position, it is the nearest power of two.
  """
  exact = {side // places for side, places in zip(image, grid) if side % places == 0}
  near = {2 ** round(math.log2(side / places)) for side, places in zip(image, grid)}
  if len(exact) == 1 and all(side % places == 0 for side, places in zip(image, grid)):
    return exact.pop()
  return near.pop() if len(near) == 1 else None
