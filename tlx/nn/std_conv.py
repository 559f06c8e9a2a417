"""Convolution with weight standardisation (Qiao et al. 2019, https://arxiv.org/abs/1903.10520)."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from tlx.nn.conv import Conv, conv2d, pair
from tlx.nn.model import at_least_float32


def standardise(kernel: jax.Array, epsilon: float) -> jax.Array:
  """Mean 0 and (biased) variance 1 over the inputs of each output channel: [kh, kw, c / groups, out], same dtype."""
  centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
  return centred * lax.rsqrt((centred * centred).mean((0, 1, 2), keepdims=True) + epsilon)


class StdConv(Conv):
  """A convolution whose kernel is standardised at each call, in float32 (float64 for float64); see `Conv`."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
    # As a jax array: NumPy's means of a kernel that was read from a file differ from XLA's in the last digits.
    kernel = jnp.asarray(self.param('kernel', self.kernel_init, shape), at_least_float32(x.dtype))
    kernel = standardise(kernel, self.epsilon)
    y = conv2d(x, kernel, strides=self.strides, padding=self.padding, groups=self.groups, dilation=self.dilation)
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
    return y
