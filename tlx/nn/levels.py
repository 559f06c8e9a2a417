"""The levels of a backbone: the layers that return maps, with their stride and channels, found from shapes alone.

Dense heads (segmentation, detection) read a pyramid of levels. Neither they nor this file know a family.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from tlx.nn.model import Backbone
from tlx.types import Level

SIDES = (256, 320)  # height and width of the probe image, pixels, if the model takes any size


def levels(backbone: Backbone) -> tuple[Level, ...]:
  """Finds every layer and tap that returns a map.

  It traces one image with `jax.eval_shape` and computes nothing. A transformer's tokens count as a map if, without the
  prefix tokens, they fill the image's grid.

  Args:
    backbone: of any family.

  Returns:
    The levels from input to output; () if no layer returns a map.
  """
  side = getattr(backbone.config, 'size', None)
  height, width = (side, side) if side else SIDES
  names: list[str] = []

  def shapes(x: jax.Array) -> dict[str, jax.Array]:
    features = backbone.init_with_output(jax.random.key(0), x, taps=True)[0]
    names.extend(features)  # `eval_shape` returns a dict in sorted order
    return features

  features = jax.eval_shape(shapes, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
  prefix = getattr(backbone.config, 'prefix', 0)
  grids = {name: _grid(features[name].shape, prefix, side) for name in names}
  strides = {name: grid and _stride((height, width), grid) for name, grid in grids.items()}
  ahead = lambda name: prefix if features[name].ndim == 3 else 0
  return tuple(Level(name, stride, features[name].shape[-1], ahead(name)) for name, stride in strides.items() if stride)


def pyramid(found: tuple[Level, ...]) -> tuple[Level, ...]:
  """Picks the last level at each stride, from fine to coarse. A feature pyramid reads these.

  >>> pyramid((Level('stem', 2, 16), Level('block0', 4, 24), Level('block1', 4, 32)))
  (Level(layer='stem', stride=2, channels=16), Level(layer='block1', stride=4, channels=32))
  """
  return tuple({level.stride: level for level in found}[stride] for stride in sorted({x.stride for x in found}))


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
