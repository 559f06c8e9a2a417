"""Convolution, batch norm and activation: the unit of most convolutional networks."""

from collections.abc import Callable

import jax
from flax import linen as nn

from tlx.nn.conv import Conv, Padding
from tlx.nn.norm import BatchNorm


class ConvNorm(nn.Module):
  """Convolution, then batch norm, then the activation unless it is None: [b, h, w, c] -> [b, h', w', features].

  Without `norm` the convolution has a bias instead of the batch norm.
  """

  features: int
  kernel: int | tuple[int, int]
  stride: int = 1
  groups: int = 1
  padding: Padding = 'torch'
  epsilon: float = 1e-5  # batch norm's
  momentum: float = 0.9  # of the batch norm's running statistics
  activation: Callable[[jax.Array], jax.Array] | None = nn.relu
  norm: bool = True
  dilation: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    arguments = self.features, self.kernel, self.stride, self.padding, self.groups, self.dilation
    x = Conv(*arguments, use_bias=not self.norm, name='conv')(x)
    x = BatchNorm(self.momentum, self.epsilon, name='norm')(x, train) if self.norm else x
    return self.activation(x) if self.activation else x
