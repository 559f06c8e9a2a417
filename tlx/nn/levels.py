"""The levels of a backbone: which layers return maps, at which stride and width, found from shapes alone.

Dense heads (segmentation, detection) read a pyramid of them; nothing here or there knows a family.
"""

import math

import jax
import jax.numpy as jnp

from tlx.nn.model import Backbone
from tlx.types import Level

SIDES = (256, 320)  # pixels; of the image that the shapes are read from, where the model takes any size


def levels(backbone: Backbone) -> tuple[Level, ...]:
  """Every layer and tap that returns a map, from input to output; () where none does.

  Nothing is computed: the shapes are those of one image (`jax.eval_shape`). A transformer's tokens count as a map where
  they fill the image's grid, without the tokens ahead of them.
  """
  side = backbone.config.size
  height, width = (side, side) if side else SIDES
  names: list[str] = []

  def shapes(x: jax.Array) -> dict[str, jax.Array]:
    features = backbone.init_with_output(jax.random.key(0), x, taps=True)[0]
    names.extend(features)  # what `eval_shape` returns is sorted
    return features

  features = jax.eval_shape(shapes, jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32))
  prefix = backbone.config.prefix
  grids = {name: _grid(features[name].shape, prefix, side) for name in names}
  strides = {name: grid and _stride((height, width), grid) for name, grid in grids.items()}
  return tuple(Level(name, stride, features[name].shape[-1]) for name, stride in strides.items() if stride)


def pyramid(found: tuple[Level, ...]) -> tuple[Level, ...]:
  """The last level at each stride, from fine to coarse: what a feature pyramid reads."""
  return tuple({level.stride: level for level in found}[stride] for stride in sorted({x.stride for x in found}))


def as_map(values: jax.Array, prefix: int = 0) -> jax.Array:
  """A layer's output as a map [b, h, w, d]: a transformer's tokens return to their square grid, without `prefix` ahead.

  One vector an image, such as an attention pool's, is a map of one place.
  """
  if values.ndim != 3:
    return values.reshape(len(values), *(values.shape[1:3] if values.ndim == 4 else (1, 1)), values.shape[-1])
  tokens = values[:, prefix:]
  side = round(tokens.shape[1] ** 0.5)
  return tokens.reshape(len(tokens), side, side, -1)


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
