"""Channel gates: each channel of a feature map is scaled by a number between 0 and 1 that depends on the whole map."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.conv import Conv


class SqueezeExcite(nn.Module):
  """Two 1x1 convolutions on the channels' means (Hu et al. 2017, https://arxiv.org/abs/1709.01507): [b, h, w, c]."""

  squeezed: int  # channels between the two
  inner: Callable[[jax.Array], jax.Array] = nn.relu
  outer: Callable[[jax.Array], jax.Array] = nn.sigmoid

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = x.mean(axis=(1, 2), keepdims=True)
    gate = self.inner(Conv(self.squeezed, 1, use_bias=True, name='reduce')(gate))
    return x * self.outer(Conv(x.shape[-1], 1, use_bias=True, name='expand')(gate))


class EfficientChannelAttention(nn.Module):
  """One short convolution along the channels' means (Wang et al. 2019, https://arxiv.org/abs/1910.03151).

  `kernel` float32 [k, 1]; k grows with the logarithm of the channels and is odd.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = max(3, int((math.log2(x.shape[-1]) + 1) / 2) // 2 * 2 + 1)
    init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    kernel = self.param('kernel', init, (size, 1)).astype(x.dtype)
    means = jnp.pad(x.mean(axis=(1, 2)), ((0, 0), (size // 2, size // 2)))
    gate = sum(kernel[i] * means[:, i : i + x.shape[-1]] for i in range(size))
    return x * nn.sigmoid(gate)[:, None, None]
