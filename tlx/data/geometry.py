"""Moves images and their annotations in the same way: by a `Geometry` on the host, by a `Warp` on the device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tlx.data import pixels
from tlx.types import Geometry


def nearest(labels: np.ndarray, geometry: Geometry, shape: tuple[int, int], fill: int) -> np.ndarray:
  """Samples the labels of a photograph at the positions of an array, by the nearest pixel.

  Args:
    labels: integers [h, w], one per pixel of the photograph.
    geometry: the part of the photograph that the array shows.
    shape: height and width of the array.
    fill: label outside the photograph.

  Returns:
    [*shape], in the dtype of `labels`.

  Examples:
    >>> nearest(np.array([[1, 2], [3, 4]]), Geometry(2, 2, top=0, left=0, bottom=2, right=4), (2, 4), fill=255)
    array([[  1,   2, 255, 255],
           [  3,   4, 255, 255]])
  """
  rows = _places(geometry.top, geometry.bottom, shape[0])
  columns = _places(geometry.left, geometry.right, shape[1])
  height, width = labels.shape[:2]
  found = labels[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
  outside = ((rows < 0) | (rows >= height))[:, None] | ((columns < 0) | (columns >= width))
  return np.where(outside, fill, found).astype(labels.dtype) if outside.any() else found


def back(scores: np.ndarray, geometry: Geometry, rows: tuple[int, int]) -> np.ndarray:
  """Resamples the scores of an array at the pixels of its photograph, bilinearly: the way back from `Geometry`.

  Args:
    scores: float [h, w, k], one vector per position of the array.
    geometry: the part of the photograph that the array shows.
    rows: first row of the photograph to compute, and the row after the last; so a caller can limit the memory.

  Returns:
    float [r, width of the photograph, k] for r rows. Beyond the array's edge it repeats the scores of the edge.
  """
  inside = np.arange(rows[0], min(rows[1], round(geometry.height)))
  low, high, share = _weights(geometry.top, geometry.bottom, scores.shape[0], inside)
  columns = np.arange(round(geometry.width))
  left, right, across = _weights(geometry.left, geometry.right, scores.shape[1], columns)
  down = scores[low] * (1 - share)[:, None, None] + scores[high] * share[:, None, None]
  return down[:, left] * (1 - across)[:, None] + down[:, right] * across[:, None]


def _places(start: float, stop: float, count: int) -> np.ndarray:
  """The pixel under the centre of each of `count` equal parts from `start` to `stop`: int64 [count]."""
  return np.floor(start + (stop - start) * (np.arange(count) + 0.5) / count).astype(np.int64)


def _weights(start: float, stop: float, count: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The two of `count` positions around each pixel, and the weight of the second: (lower, upper, weight)."""
  at = np.clip((pixels + 0.5 - start) / (stop - start) * count - 0.5, 0, count - 1)
  low = np.floor(at).astype(np.int64)
  return low, np.minimum(low + 1, count - 1), (at - low).astype(np.float32)


class Warp(struct.PyTreeNode):
  """Crops, mirrors and rotates the images of a batch, and their masks in the same way.

  Each image is stored squashed into a canvas [H, W, 3].
  """

  box: jax.Array  # float32 [b, 4]: top, bottom, left, right, shares of the canvas; top > bottom or left > right mirrors
  angle: jax.Array | None  # float32 [b], radians counter-clockwise; None = no rotation
  largest: float = struct.field(pytree_node=False)  # upper limit of the angles, radians
  shape: tuple[int, int] = struct.field(pytree_node=False)  # height and width of the result, pixels

  def images(self, canvases: jax.Array) -> jax.Array:
    """Moves the images, with an antialiasing filter.

    Args:
      canvases: uint8 [b, H, W, 3].

    Returns:
      float32 [b, h, w, 3] in [0, 1], except for rounding.
    """
    if self.angle is None:
      return jax.vmap(self._crop)(canvases, self.box)
    return jax.vmap(self._turn)(canvases, self.box, self.angle)

  def labels(self, labels: jax.Array, fill: int) -> jax.Array:
    """Moves labels as `images` moves the pixels, by the nearest position.

    Args:
      labels: integers [b, H, W].
      fill: label outside the canvas.

    Returns:
      [b, h, w], in the dtype of `labels`.
    """
    return jax.vmap(lambda *one: self._nearest(*one, fill))(labels, self.box, self._angles())

  def _angles(self) -> jax.Array:
    return jnp.zeros(len(self.box)) if self.angle is None else self.angle

  def _crop(self, canvas: jax.Array, box: jax.Array) -> jax.Array:
    return pixels.resample(canvas.astype(jnp.float32) / 255, box * _scale(canvas), self.shape)

  def _turn(self, canvas: jax.Array, box: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates within the crop, as torchvision does when a rotation follows a crop.

    The corners of a rotated crop show pixels from outside the crop. So the crop is resampled with a margin first.
    """
    (down, across), (rows, columns) = self._margins(), self.shape
    height, width = (box[1] - box[0]) * down / rows, (box[3] - box[2]) * across / columns
    box = box + jnp.stack([-height, height, -width, width])
    image = canvas.astype(jnp.float32) / 255
    image = pixels.resample(image, box * _scale(canvas), (rows + 2 * down, columns + 2 * across))
    return pixels.affine(image, pixels.rotation_matrix(angle, self.shape, (down, across)), self.shape)

  def _margins(self) -> tuple[int, int]:
    """Rows above and columns left of the crop that the largest rotation brings into view, pixels of the result."""
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
  """float32 [4]: factors that turn a box of shares into pixels of the canvas."""
  height, width, _ = canvas.shape
  return jnp.array([height, height, width, width], jnp.float32)


def _reach(along: int, other: int, angle: float) -> float:
  """The maximum extent of a rectangle along one axis when it is rotated by up to `angle`."""
  steepest = math.atan2(other, along)
  return math.hypot(along, other) if angle >= steepest else along * math.cos(angle) + other * math.sin(angle)
