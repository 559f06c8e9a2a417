"""Rotary position embeddings for the positions of a grid (Su et al. 2021, 2104.09864; Heo et al. 2024, 2403.13298).

They rotate each pair of channels of a query or key by an angle proportional to the token's row or column. The logits
then depend only on the offset between two positions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tlx.nn.attention import attend, merge_heads
from tlx.nn.conv import Dense
from tlx.nn.dtypes import widened
from tlx.nn.qkv import QueryKeyValue


def frequencies(count: int, temperature: float = 10_000.0) -> np.ndarray:
  """A geometric series from 1 down to almost 1 / temperature, in radians per unit of distance: float64 [count]."""
  return temperature ** (-np.arange(count) / count)


def axial_angles(rows: np.ndarray, columns: np.ndarray, frequencies: np.ndarray) -> jax.Array:
  """Computes the angle of each channel pair at each position; half of the pairs follow the row, half the column.

  Args:
    rows: row coordinates of the grid, [h], in any unit.
    columns: column coordinates of the grid, [w], in the same unit.
    frequencies: [k], radians per unit.

  Returns:
    [h * w, 2 k], row by row, in radians; float32, or float64 where jax enables it.
  """
  # Computed in the program, so that XLA shares one table among the blocks; from the host each would be a constant.
  rows, columns = (jnp.asarray(axis)[:, None] * jnp.asarray(frequencies) for axis in (rows, columns))
  shape = (len(rows), len(columns), len(frequencies))
  angles = [jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)]
  return jnp.concatenate(angles, axis=-1).reshape(shape[0] * shape[1], -1)


def rotate(x: jax.Array, angles: jax.Array, prefix: int = 0, halves: bool = False) -> jax.Array:
  """Rotates each pair of channels of the tokens after the first `prefix`.

  Args:
    x: queries or keys, [b, prefix + n, heads, d].
    angles: [n, d / 2], radians.
    prefix: number of leading tokens without a position; they stay as they are.
    halves: whether channel i pairs with channel i + d / 2 (DINOv3) or with its neighbour (EVA-02).

  Returns:
    An array of the shape and dtype of x; the arithmetic is float32, or float64 for float64 input.
  """
  tokens = widened(x[:, prefix:])
  cosine, sine = (turn(angles)[:, None].astype(tokens.dtype) for turn in (jnp.cos, jnp.sin))
  first, second = jnp.split(tokens, 2, axis=-1) if halves else (tokens[..., ::2], tokens[..., 1::2])
  pair = first * cosine - second * sine, second * cosine + first * sine
  turned = jnp.concatenate(pair, axis=-1) if halves else jnp.stack(pair, axis=-1).reshape(tokens.shape)
  return jnp.concatenate([x[:, :prefix], turned.astype(x.dtype)], axis=1)


class RotaryAttention(nn.Module):
  """Self-attention with rotary position embeddings: [b, prefix + n, d] -> same.

  `angles` makes the angles [n, d / heads / 2] inside the program; None turns the rotation off. For `halves` see
  `rotate`.
  """

  heads: int
  prefix: int
  angles: Callable[[], jax.Array] | None
  halves: bool = False
  qkv_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    query, key, value = QueryKeyValue(self.heads, self.qkv_bias, name='qkv')(x)
    if self.angles:
      angles = self.angles()
      query, key = (rotate(tokens, angles, self.prefix, self.halves) for tokens in (query, key))
    return Dense(x.shape[-1], name='proj')(merge_heads(attend(query, key, value)))
