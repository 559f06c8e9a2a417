"""Parametrisations of a picture: its pixels, or the Fourier coefficients of its decorrelated colours.

Both can represent the same pictures, but gradient descent finds different ones first. Coefficients weighted by 1 /
frequency, as in photographs, give every scale its share and avoid high-frequency noise (Olah et al. 2017, section
"Preconditioning", https://distill.pub/2017/feature-visualization).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Square root of the covariance of the colours in ImageNet, one component a column: brightness, red to blue,
# green to purple. The authors of Lucid measured it (github.com/tensorflow/lucid, optvis/param/color.py, Apache-2.0).
COLOURS = np.array([(0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03)])
CONTRAST = 1.5  # standard deviation of the pixels' log-odds, for coefficients of 1 at every frequency
LOWEST = 3  # cycles per axis; the weights stay constant below it, or else whole pictures drift to white or black


class Parametrisation(NamedTuple):
  """How the parameters of the descent make pixels."""

  start: Callable[[jax.Array, int], jax.Array]  # (key, side) -> parameters of one nearly grey picture
  pixels: Callable[[jax.Array], jax.Array]  # parameters float [b, s, s, 3] -> pixels float [b, s, s, 3] in [0, 1]
  project: Callable[[jax.Array], jax.Array]  # parameters -> the nearest allowed parameters
  rate: float  # learning rate for Adam


def hartley(values: jax.Array) -> jax.Array:
  """Two-dimensional discrete Hartley transform of float [..., h, w, c]. It is real, orthonormal and its own inverse.

  It is a Fourier transform for real arrays with as many coefficients as pixels, none of them redundant (Bracewell
  1983).

  >>> x = jnp.arange(12.0).reshape(2, 2, 3)
  >>> print(jnp.allclose(hartley(hartley(x)), x, atol=1e-5))
  True
  """
  waves = jnp.fft.fft2(values, axes=(-3, -2), norm='ortho')
  return waves.real - waves.imag


def falloff(height: int, width: int) -> np.ndarray:
  """Weight of each frequency, float [h, w, 1]: 1 / frequency, constant below `LOWEST`, with mean square 1."""
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
  weights = 1 / np.maximum(frequency, LOWEST / max(height, width))
  return (weights / np.sqrt(np.mean(weights**2)))[..., None]


def to_pixels(coefficients: jax.Array) -> jax.Array:
  """Turns coefficients float [b, h, w, 3] of decorrelated colours into pixels in [0, 1].

  Zero gives grey; independent normal draws give natural-looking pictures.
  """
  weights = jnp.asarray(falloff(*coefficients.shape[-3:-1]), coefficients.dtype)
  mixing = COLOURS / np.linalg.norm(COLOURS, axis=0).max()
  return jax.nn.sigmoid(CONTRAST * hartley(weights * coefficients) @ jnp.asarray(mixing.T, coefficients.dtype))


def _noise(mean: float, deviation: float) -> Callable[[jax.Array, int], jax.Array]:
  return lambda key, side: mean + deviation * jax.random.normal(key, (side, side, 3))


PARAMETRISATIONS = {
  'fourier': Parametrisation(_noise(0, 0.05), to_pixels, lambda parameters: parameters, 0.05),
  'pixels': Parametrisation(_noise(0.5, 0.05), lambda p: p, lambda p: jnp.clip(p, 0, 1), 0.02),
}
