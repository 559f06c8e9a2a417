"""One map for pictures, masks and boxes: on the host a `Geometry`, on the device a `Warp`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tlx.data import pixels
from tlx.types import Geometry


def nearest(labels: np.ndarray, geometry: Geometry, shape: tuple[int, int], fill: int) -> np.ndarray:
  """The labels [h, w] of a photograph at the places of an array of that shape; `fill` outside the photograph."""
  rows = _places(geometry.top, geometry.bottom, shape[0])
  columns = _places(geometry.left, geometry.right, shape[1])
  height, width = labels.shape[:2]
  found = labels[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
  outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
  return np.where(outside, fill, found).astype(labels.dtype) if outside.any() else found


def back(scores: np.ndarray, geometry: Geometry, rows: tuple[int, int]) -> np.ndarray:
  """Scores [h, w, k] of an array at the pixels of some rows of its photograph, bilinear."""
  inside = np.arange(rows[0], min(rows[1], round(geometry.height)))
  low, high, share = _weights(geometry.top, geometry.bottom, scores.shape[0], inside)
  columns = np.arange(round(geometry.width))
  left, right, across = _weights(geometry.left, geometry.right, scores.shape[1], columns)
  down = scores[low] * (1 - share)[:, None, None] + scores[high] * share[:, None, None]
  return down[:, left] * (1 - across)[:, None] + down[:, right] * across[:, None]


def _places(start: float, stop: float, count: int) -> np.ndarray:
  return np.floor(start + (stop - start) * (np.arange(count) + 0.5) / count).astype(np.int64)


def _weights(start: float, stop: float, count: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(lower place, upper place, share of the upper) of each of these pixels among `count` places."""
  at = np.clip((pixels + 0.5 - start) / (stop - start) * count - 0.5, 0, count - 1)
  low = np.floor(at).astype(np.int64)
  return low, np.minimum(low + 1, count - 1), (at - low).astype(np.float32)


class Warp(struct.PyTreeNode):
  """How the pictures of a batch were cut out of their canvases; the same for what lies on the pictures.

  box: float32 [b, 4] (top, bottom, left, right), shares of the canvas; top > bottom or left > right mirrors.
  angle: float32 [b], radians counter-clockwise, or None. largest: the largest angle that there can be, radians.
  shape: height and width of the result, pixels.
  """

  box: jax.Array
  angle: jax.Array | None
  largest: float = struct.field(pytree_node=False)
  shape: tuple[int, int] = struct.field(pytree_node=False)

  def images(self, canvases: jax.Array) -> jax.Array:
    """uint8 [b, H, W, 3] -> float32 [b, h, w, 3] in [0, 1], antialiased."""
    if self.angle is None:
      return jax.vmap(self._crop)(canvases, self.box)
    return jax.vmap(self._turn)(canvases, self.box, self.angle)

  def labels(self, labels: jax.Array, fill: int) -> jax.Array:
    """Integers [b, H, W] -> [b, h, w], the nearest; `fill` where there is no canvas."""
    return jax.vmap(lambda *one: self._nearest(*one, fill))(labels, self.box, self._angles())

  def _angles(self) -> jax.Array:
    return jnp.zeros(len(self.box)) if self.angle is None else self.angle

  def _crop(self, canvas: jax.Array, box: jax.Array) -> jax.Array:
    return pixels.resample(canvas.astype(jnp.float32) / 255, box * _scale(canvas), self.shape)

  def _turn(self, canvas: jax.Array, box: jax.Array, angle: jax.Array) -> jax.Array:
    """The rotation lies within the crop, as in torchvision's chain of both.

    The corners that turn into view come from the picture around the crop, so the grid is larger by what they need.
    """
    (down, across), (rows, columns) = self._margins(), self.shape
    height, width = (box[1] - box[0]) * down / rows, (box[3] - box[2]) * across / columns
    box = box + jnp.stack([-height, height, -width, width])
    image = canvas.astype(jnp.float32) / 255
    image = pixels.resample(image, box * _scale(canvas), (rows + 2 * down, columns + 2 * across))
    return pixels.affine(image, pixels.rotation_matrix(angle, self.shape, (down, across)), self.shape)

  def _margins(self) -> tuple[int, int]:
    rows, columns = self.shape
    reach = lambda along, other: _reach(along, other, self.largest)
    return math.ceil((reach(rows, columns) - rows) / 2), math.ceil((reach(columns, rows) - columns) / 2)

  def _nearest(self, labels: jax.Array, box: jax.Array, angle: jax.Array, fill: int) -> jax.Array:
    rows, columns = self.shape
    y, x = jnp.arange(rows)[:, None] + 0.5, jnp.arange(columns) + 0.5
    if self.angle is not None:
      x, y = (a * x + b * y + c for a, b, c in pixels.rotation_matrix(angle, self.shape))
    height, width = labels.shape
    y = jnp.floor((box[0] + (box[1] - box[0]) * y / rows) * height).astype(jnp.int32)
    x = jnp.floor((box[2] + (box[3] - box[2]) * x / columns) * width).astype(jnp.int32)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return jnp.where(inside, labels[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)], fill)


def _scale(canvas: jax.Array) -> jax.Array:
  height, width, _ = canvas.shape
  return jnp.array([height, height, width, width], jnp.float32)


def _reach(along: int, other: int, angle: float) -> float:
  """How long a rectangle becomes along one axis, turned by up to `angle`."""
  steepest = math.atan2(other, along)
  return math.hypot(along, other) if angle >= steepest else along * math.cos(angle) + other * math.sin(angle)
