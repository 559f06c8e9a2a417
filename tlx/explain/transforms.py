"""What a picture must survive for a backbone to see the same in it: small random shifts, scales and turns.

Patterns that only one alignment of pixels brings about are lost, and what remains is legible (Olah et al. 2017,
https://distill.pub/2017/feature-visualization).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tlx.data.pixels import FILL, affine


class Transforms(NamedTuple):
  """How far each goes; all zero leaves the picture as it is."""

  jitter: float = 1 / 14  # share of the side, either way, in both directions: 16 of 224 pixels
  scale: float = 0.2  # magnified or reduced by a factor of up to 1 + scale
  turn: float = 15.0  # degrees, either way


USUAL, NONE = Transforms(), Transforms(0, 0, 0)


def transformed(key: jax.Array, pixels: jax.Array, strength: Transforms = USUAL) -> jax.Array:
  """float [b, h, w, 3] -> the same shape; each image by its own draw, read bilinearly, grey around it.

  Edge pixels that went on would gather the slope of all that lies beyond them, and stand out.
  """
  if strength == NONE:
    return pixels
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(pixels)))
  matrices = jax.vmap(partial(_matrix, shape=pixels.shape[1:3], strength=strength))(keys)
  return jax.vmap(partial(affine, fill=FILL))(pixels, matrices.astype(pixels.dtype))


def _matrix(key: jax.Array, shape: tuple[int, int], strength: Transforms) -> jax.Array:
  """Where a pixel of the result lies in the picture: float [2, 3], about the picture's centre."""
  height, width = shape
  down, right, scale, turn = jax.random.uniform(key, (4,), minval=-1, maxval=1)
  factor, angle = (1 + strength.scale) ** scale, jnp.deg2rad(strength.turn * turn)
  c, s = factor * jnp.cos(angle), factor * jnp.sin(angle)
  x = width * (0.5 + strength.jitter * right) - (c * width - s * height) / 2
  y = height * (0.5 + strength.jitter * down) - (s * width + c * height) / 2
  return jnp.array([[c, -s, x], [s, c, y]])
