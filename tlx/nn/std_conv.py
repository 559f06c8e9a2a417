"""Convolution with weight standardisation (Qiao et al. 2019, https://arxiv.org/abs/1903.10520)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tlx.nn.conv import Conv
from tlx.nn.dtypes import at_least_float32


def standardise(kernel: jax.Array, epsilon: float) -> jax.Array:
  """Standardises each output channel's kernel to mean 0 and (biased) variance 1: [kh, kw, c / groups, out] -> same."""
  centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
  return centred * lax.rsqrt((centred * centred).mean((0, 1, 2), keepdims=True) + epsilon)


class StdConv(Conv):
  """A `Conv` that standardises its kernel at each call, in float32, or float64 for float64 input."""

  epsilon: float = 1e-6

  def prepared(self, kernel: jax.Array, dtype: Any) -> jax.Array:
    # A jax array, because NumPy's means (of a kernel that was read from a file) differ from XLA's in the last digits.
    return standardise(jnp.asarray(kernel, at_least_float32(dtype)), self.epsilon)
