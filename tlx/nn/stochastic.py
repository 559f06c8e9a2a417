"""Dropout and stochastic depth with masks that depend only on the key and the example's position in the global batch.

The masks are the same on one device or many, under `jit` or `pmap`. With rate 0 or train=False a layer is the identity
and needs no key; otherwise it draws its key from the collection 'dropout'.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.devices import example_positions


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
  """Draws a bool mask of `shape` that is true with probability 1 - rate.

  Args:
    key: random key.
    rate: drop probability, [0, 1).
    shape: shape of the mask; its first axis is the batch.

  Returns:
    bool `shape`. Row i depends on `key` and on the position of example i in the global batch.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, example_positions(shape[0]))
  return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape[1:]))(keys)


class Dropout(nn.Module):
  """Zeroes each value with probability `rate` and scales the others by 1 / (1 - rate) (Srivastava et al. 2014)."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return _dropped(self, x, x.shape, train)


class ChannelDropout(nn.Module):
  """Zeroes whole channels of a map [b, h, w, c] (Tompson et al. 2014, https://arxiv.org/abs/1411.4280).

  It scales the other channels by 1 / (1 - rate).
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return _dropped(self, x, (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]), train)


class DropPath(nn.Module):
  """Zeroes the residual branch of a whole example with probability `rate` (stochastic depth, Huang et al. 2016).

  It scales the other examples by 1 / (1 - rate). https://arxiv.org/abs/1603.09382.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return _dropped(self, x, (x.shape[0],) + (1,) * (x.ndim - 1), train)


def _dropped(module: nn.Module, x: jax.Array, shape: tuple[int, ...], train: bool) -> jax.Array:
  """Applies a mask of that shape, broadcast, to x. Raises ValueError for a rate outside [0, 1)."""
  if not 0 <= module.rate < 1:
    raise ValueError(f'dropout rate {module.rate}: use a number from 0 up to, not including, 1')
  if not (module.rate and train):
    return x
  mask = keep_mask(module.make_rng('dropout'), module.rate, shape)
  return jnp.where(mask, x / (1 - module.rate), 0).astype(x.dtype)
