"""What an ideal picture is made of: its pixels, or the Fourier coefficients of its decorrelated colours.

Both draw the same pictures; they differ in which of them gradient descent comes to first. Coefficients weighted by
1 / frequency, as in photographs, give every scale its share and no high-frequency noise (Olah et al. 2017, the section
on preconditioning, https://distill.pub/2017/feature-visualization).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Square root of the covariance of the colours of ImageNet's photographs, a column a component: light, red to blue,
# green to purple; as measured by the authors of Lucid (github.com/tensorflow/lucid, optvis/param/color.py, Apache-2.0).
COLOURS = np.array([(0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03)])
CONTRAST = 1.5  # log-odds of pixels for a coefficient of 1 at every frequency
LOWEST = 3  # waves a side: below it the weights grow no more, or whole pictures drift to white and black


class Parametrisation(NamedTuple):
  """How parameters, which descent changes, make pixels."""

  start: Callable[[jax.Array, int], jax.Array]  # (key, side) -> parameters of one picture, nearly grey
  pixels: Callable[[jax.Array], jax.Array]  # parameters float [b, s, s, 3] -> pixels float [b, s, s, 3] in [0, 1]
  project: Callable[[jax.Array], jax.Array]  # parameters -> the nearest allowed
  rate: float  # that suits Adam


def hartley(values: jax.Array) -> jax.Array:
  """Two-dimensional discrete Hartley transform of float [..., h, w, c]: real, orthonormal and its own inverse.

  The Fourier transform for real pictures: as many coefficients as pixels, none of them redundant (Bracewell 1983).
  """
  waves = jnp.fft.fft2(values, axes=(-3, -2), norm='ortho')
  return waves.real - waves.imag


def falloff(height: int, width: int) -> np.ndarray:
  """Weight of each frequency, float [h, w, 1]: 1 / frequency, below `LOWEST` as there; mean square 1."""
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
  weights = 1 / np.maximum(frequency, LOWEST / max(height, width))
  return (weights / np.sqrt(np.mean(weights**2)))[..., None]


def to_pixels(coefficients: jax.Array) -> jax.Array:
  """float [b, h, w, 3] of decorrelated colours -> pixels in [0, 1]; zero is grey, independent draws look natural."""
  weights = jnp.asarray(falloff(*coefficients.shape[-3:-1]), coefficients.dtype)
  mixing = COLOURS / np.linalg.norm(COLOURS, axis=0).max()
  return jax.nn.sigmoid(CONTRAST * hartley(weights * coefficients) @ jnp.asarray(mixing.T, coefficients.dtype))


def _noise(mean: float, deviation: float) -> Callable[[jax.Array, int], jax.Array]:
  return lambda key, side: mean + deviation * jax.random.normal(key, (side, side, 3))


PARAMETRISATIONS = {
  'fourier': Parametrisation(_noise(0, 0.05), to_pixels, lambda parameters: parameters, 0.05),
  'pixels': Parametrisation(_noise(0.5, 0.05), lambda p: p, lambda p: jnp.clip(p, 0, 1), 0.02),
}
