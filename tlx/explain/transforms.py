"""Random shifts, scales and rotations of a picture during optimisation.

Patterns that depend on an exact alignment of pixels disappear, and the result is legible (Olah et al. 2017,
https://distill.pub/2017/feature-visualization).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tlx.data.pixels import FILL, affine


class Transforms(NamedTuple):
  """The ranges of the random transforms. With all at zero the picture stays as it is."""

  jitter: float = 1 / 14  # maximum shift along each axis, as a share of its length: 16 of 224 pixels
  scale: float = 0.2  # maximum magnification or reduction: a factor of 1 + scale
  turn: float = 15.0  # maximum rotation, degrees


USUAL, NONE = Transforms(), Transforms(0, 0, 0)


def transformed(key: jax.Array, pixels: jax.Array, strength: Transforms = USUAL) -> jax.Array:
  """Applies a random transform of its own to each image, with bilinear interpolation.

  The outside is filled with grey: repeated edge pixels would collect the gradient of the whole outside, and stand out.

  Args:
    key: random key.
    pixels: float [b, h, w, 3].
    strength: ranges of the transforms.

  Returns:
    float [b, h, w, 3].
  """
  if strength == NONE:
    return pixels
  keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(pixels)))
  matrices = jax.vmap(partial(_matrix, shape=pixels.shape[1:3], strength=strength))(keys)
  return jax.vmap(partial(affine, fill=FILL))(pixels, matrices.astype(pixels.dtype))


def _matrix(key: jax.Array, shape: tuple[int, int], strength: Transforms) -> jax.Array:
  """The matrix float [2, 3] from a pixel of the result to its position in the picture, about the picture's centre."""
  height, width = shape
  down, right, scale, turn = jax.random.uniform(key, (4,), minval=-1, maxval=1)
  factor, angle = (1 + strength.scale) ** scale, jnp.deg2rad(strength.turn * turn)
  c, s = factor * jnp.cos(angle), factor * jnp.sin(angle)
  x = width * (0.5 + strength.jitter * right) - (c * width - s * height) / 2
  y = height * (0.5 + strength.jitter * down) - (s * width + c * height) / 2
  return jnp.array([[c, -s, x], [s, c, y]])
