"""Channel gates: they scale each channel of a feature map by a factor that depends on the whole map."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.conv import Conv


class SqueezeExcite(nn.Module):
  """Squeeze-and-excitation (Hu et al. 2017, https://arxiv.org/abs/1709.01507): [b, h, w, c] -> same.

  Two 1x1 convolutions, `reduce` and `expand`, map the channels' means to the channels' factors.
  """

  squeezed: int  # channels between the two convolutions
  inner: Callable[[jax.Array], jax.Array] = nn.relu
  outer: Callable[[jax.Array], jax.Array] = nn.sigmoid

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = x.mean(axis=(1, 2), keepdims=True)
    gate = self.inner(Conv(self.squeezed, 1, use_bias=True, name='reduce')(gate))
    return x * self.outer(Conv(x.shape[-1], 1, use_bias=True, name='expand')(gate))


class EfficientChannelAttention(nn.Module):
  """Efficient channel attention (Wang et al. 2019, https://arxiv.org/abs/1910.03151): [b, h, w, c] -> same.

  One short convolution along the channel axis maps the channels' means to their factors. `kernel` is float32 [k, 1],
  where k is odd and grows with the logarithm of the number of channels.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = max(3, int((math.log2(x.shape[-1]) + 1) / 2) // 2 * 2 + 1)
    init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    kernel = self.param('kernel', init, (size, 1)).astype(x.dtype)
    means = jnp.pad(x.mean(axis=(1, 2)), ((0, 0), (size // 2, size // 2)))
    gate = sum(kernel[i] * means[:, i : i + x.shape[-1]] for i in range(size))
    return x * nn.sigmoid(gate)[:, None, None]
