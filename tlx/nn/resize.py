"""Resizes maps [b, h, w, c] with the arithmetic of `torch.nn.functional.interpolate`, in the dtype of the input.

None of these functions antialiases; `jax.image.resize` antialiases by default when it shrinks a map.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tlx.nn.dtypes import widened
from tlx.types import UsageError


def bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear interpolation between the centres of pixels: `mode='bilinear', align_corners=False`.

  Args:
    x: float [b, h, w, c].
    size: height and width of the result.

  Returns:
    [b, *size, c] in the dtype of x; the arithmetic is float32, or float64 for float64 input.
  """
  shape = (x.shape[0], *size, x.shape[3])
  return jax.image.resize(widened(x), shape, 'linear', antialias=False).astype(x.dtype)


def bilinear_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear interpolation that maps corner pixels onto corner pixels: `align_corners=True`.

  TensorFlow's DeepLab uses it. Arguments and result are those of `bilinear`.
  """
  if x.shape[1:3] == tuple(size):
    return x
  wide = widened(x)
  rows, columns = (jnp.asarray(_corner_weights(*sides), wide.dtype) for sides in zip(x.shape[1:3], size))
  resized = jnp.einsum('bhwc,yh,xw->byxc', wide, rows, columns, precision=jax.lax.Precision.HIGHEST)
  return resized.astype(x.dtype)


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Copies input pixel floor(i * old / new) to output pixel i: `mode='nearest'`, without half-pixel centres.

  Arguments and result are those of `bilinear`.
  """
  for axis, new in zip((1, 2), size):
    places = _nearest_places(x.shape[axis], new)
    times = new // x.shape[axis]
    if np.array_equal(places, np.repeat(np.arange(x.shape[axis]), times)):
      x = jnp.repeat(x, times, axis) if times != 1 else x  # repeat's gradient is a sum, take's is a slow scatter
    else:
      x = jnp.take(x, places, axis)
  return x


def _corner_weights(old: int, new: int) -> np.ndarray:
  """Weights float64 [new, old] of the input pixels in each output pixel, along one axis."""
  positions = np.linspace(0, old - 1, new)
  return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(old)))


def _nearest_places(old: int, new: int) -> np.ndarray:
  """int [new]: the input pixel of each output pixel.

  PyTorch multiplies by a float32 ratio, which rounds some pixels down where the exact fraction would not.
  """
  ratio = np.float32(old) / np.float32(new)
  places = np.floor(np.arange(new, dtype=np.float32) * ratio).astype(np.int32)
  return np.minimum(places, old - 1)


def method(name: str) -> Callable[[jax.Array, tuple[int, int]], jax.Array]:
  """The function that a head's option `interpolation` names. Raises UsageError for another name."""
  methods = {'nearest': nearest, 'bilinear': bilinear}
  if name not in methods:
    raise UsageError(f'interpolation {name!r}; choose {" or ".join(methods)}')
  return methods[name]
