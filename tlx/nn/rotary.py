"""Rotary position embeddings of the places of a grid (Su et al. 2021, 2104.09864; Heo et al. 2024, 2403.13298).

Every pair of channels of a query or key is turned by an angle that grows with the place's row or column; the logits
then depend on the step between two places only.
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
  """Angles a unit of distance, from 1 down to almost 1 / temperature in equal ratios: float64 [count]."""
  return temperature ** (-np.arange(count) / count)


def axial_angles(rows: np.ndarray, columns: np.ndarray, frequencies: np.ndarray) -> jax.Array:
  """Half of the angles follow the row, half the column.

  Args: rows, columns: the coordinates of the grid, [h] and [w], in any unit; frequencies: [k], radians a unit.
  Returns: [h * w, 2 k], row by row, float32, or float64 where jax has it.
  """
  # In the program, not on the host: the blocks' tables would be its constants, and the compiler makes one of them all.
  rows, columns = (jnp.asarray(axis)[:, None] * jnp.asarray(frequencies) for axis in (rows, columns))
  shape = (len(rows), len(columns), len(frequencies))
  angles = [jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)]
  return jnp.concatenate(angles, axis=-1).reshape(shape[0] * shape[1], -1)


def rotate(x: jax.Array, angles: jax.Array, prefix: int = 0, halves: bool = False) -> jax.Array:
  """Turns each pair of channels of the tokens behind the first `prefix`.

  Args: x: [b, prefix + n, heads, d]; angles: [n, d / 2]; halves: channel i is paired with channel i + d / 2, as in
    DINOv3, not with its neighbour, as in EVA-02. Returns: like x; the arithmetic is at least float32.
  """
  tokens = widened(x[:, prefix:])
  cosine, sine = (turn(angles)[:, None].astype(tokens.dtype) for turn in (jnp.cos, jnp.sin))
  first, second = jnp.split(tokens, 2, axis=-1) if halves else (tokens[..., ::2], tokens[..., 1::2])
  pair = first * cosine - second * sine, second * cosine + first * sine
  turned = jnp.concatenate(pair, axis=-1) if halves else jnp.stack(pair, axis=-1).reshape(tokens.shape)
  return jnp.concatenate([x[:, :prefix], turned.astype(x.dtype)], axis=1)


class RotaryAttention(nn.Module):
  """Self-attention whose queries and keys are turned by their place: [b, prefix + n, d] -> same.

  angles: makes [n, d / heads / 2] inside the program; None = nothing is turned. halves: as of `rotate`.
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
