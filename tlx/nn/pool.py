"""Pooling with PyTorch's arithmetic over square windows: images [b, h, w, c] in the dtype of the input."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx import words
from tlx.types import Level, UsageError


def max_pool(x: jax.Array, window: int, stride: int, *, padding: int = 0, ceil: bool = False) -> jax.Array:
  """Takes the maximum of each window; the padding is -infinity.

  Args:
    x: [b, h, w, c].
    window: height and width of the window, pixels.
    stride: pixels between two windows.
    padding: pixels on each side.
    ceil: whether to add a last window that overlaps the image only partly, if it begins inside (PyTorch's ceil_mode).

  Returns:
    [b, h', w', c].
  """
  pads = [(padding, padding + (_overhang(size, window, stride, padding) if ceil else 0)) for size in x.shape[1:3]]
  return nn.max_pool(x, (window, window), (stride, stride), pads)


def avg_pool(x: jax.Array, window: int, stride: int, *, padding: int = 0) -> jax.Array:
  """Takes the mean of each window; the zeros of the padding count (PyTorch's count_include_pad)."""
  return nn.avg_pool(x, (window, window), (stride, stride), [(padding, padding)] * 2)


def adaptive_avg_pool(x: jax.Array, height: int, width: int) -> jax.Array:
  """Averages over height x width cells that cover the image: [b, h, w, c] -> [b, height, width, c].

  Cell i of m, on an axis of n pixels, covers floor(i n / m) up to ceil((i + 1) n / m), as in PyTorch. Neighbouring
  cells overlap if m does not divide n, and pixels repeat if n < m.
  """
  for axis, cells in ((1, height), (2, width)):
    size = x.shape[axis]
    if size != cells:
      bounds = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
      parts = [jax.lax.slice_in_dim(x, start, end, axis=axis).mean(axis) for start, end in bounds]
      x = jnp.stack(parts, axis)
  return x


POOLS = ('avg', 'max', 'flatten')


def pooled(features: Mapping[str, jax.Array], levels: Sequence[Level], how: str) -> jax.Array:
  """Pools a backbone's features to one vector per image.

  Args:
    features: of the backbone.
    levels: of the backbone.
    how: 'avg' takes the backbone's own pooling; 'max' and 'flatten' read the last map.

  Returns:
    [b, d].

  Raises:
    UsageError: for another word, and if the backbone returns no map to pool.
  """
  if how == 'avg':
    return features['pooled']
  if how not in POOLS:
    raise UsageError(f'no pool {how!r}{words.suggest(how, POOLS)}')
  if not levels:
    raise UsageError(f'pool {how}: the backbone returns one vector per image, not a map; use avg')
  x = features[levels[-1].layer]
  return x.reshape(len(x), -1) if how == 'flatten' else x.max(axis=tuple(range(1, x.ndim - 1)))


def _overhang(size: int, window: int, stride: int, padding: int) -> int:
  """How many pixels the last window reaches beyond the padded end."""
  padded = size + 2 * padding
  windows = -(-(padded - window) // stride) + 1
  if (windows - 1) * stride >= size + padding:  # the last window would lie in the padding
    windows -= 1
  return max(0, (windows - 1) * stride + window - padded)
