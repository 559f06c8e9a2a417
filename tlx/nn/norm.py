"""Normalisation with PyTorch's arithmetic; batch statistics are float32 and move only in train mode."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from tlx.nn.devices import device_count, mean_over_devices
from tlx.nn.dtypes import widened


class BatchNorm(nn.Module):
  """Normalises over all axes but the last (Ioffe and Szegedy 2015), over the batches of all devices together.

  Params `scale`, `bias`, batch_stats `mean`, `var`: float32 [c]. With train=True it normalises by the batch (biased
  variance) and moves the statistics, running = momentum * running + (1 - momentum) * batch, by the unbiased variance;
  the caller makes `batch_stats` mutable, and momentum 0.9 here is 0.1 in PyTorch. With train=False it is one
  multiply-add and leaves `batch_stats` alone. A parent that holds some layers still decides `train` for each.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (c,), jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, (c,), jnp.float32)
    if not train:
      factor = scale * lax.rsqrt(var.value + self.epsilon)
      return x * factor.astype(x.dtype) + (bias - mean.value * factor).astype(x.dtype)
    batch_mean, batch_var = batch_statistics(x)
    if not self.is_initializing():
      count = x.size // c * device_count()
      unbiased = batch_var * (count / max(count - 1, 1))
      mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
      var.value = self.momentum * var.value + (1 - self.momentum) * unbiased
    factor = scale * lax.rsqrt(batch_var + self.epsilon)
    return ((x.astype(batch_mean.dtype) - batch_mean) * factor + bias).astype(x.dtype)


@contextlib.contextmanager
def stored_statistics(root: str) -> Iterator[None]:
  """Inside it, the batch norms of the top-level module named `root` use their stored statistics, which do not move.

  Scale and bias still learn, and dropout and stochastic depth go on. For code that applies a model, while it is traced.
  """

  def stored(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
    inside = isinstance(context.module, BatchNorm) and context.module.path[:1] == (root,)
    return call(args[0], False) if inside and context.method_name == '__call__' else call(*args, **kwargs)

  with nn.intercept_methods(stored):
    yield


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(mean, biased variance) [c] over all other axes and all devices, in float32, or float64 where x is.

  Two passes: the mean of squares less the squared mean loses all digits where the mean is large.
  """
  x = widened(x)
  axes = tuple(range(x.ndim - 1))
  mean = mean_over_devices(x.mean(axes))
  return mean, mean_over_devices(jnp.square(x - mean).mean(axes))


class LayerNorm(nn.Module):
  """Normalises each position over its channels, the last axis (Ba et al. 2016); `scale`, `bias` float32 [c]."""

  epsilon: float = 1e-6
  initial: float = 1.0  # of the scale

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return _affine(self, x, _standardised(x, (-1,), self.epsilon), self.initial)


class GroupNorm(nn.Module):
  """Normalises each image over its places and `groups` groups of channels (Wu and He 2018): [b, ..., c]."""

  groups: int = 32
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    grouped = x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
    return _affine(self, x, _standardised(grouped, (1, 3), self.epsilon).reshape(x.shape))


class LayerScale(nn.Module):
  """Multiplies each channel by a learnt factor (Touvron et al. 2021, https://arxiv.org/abs/2103.17239); `scale`."""

  initial: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x * self.param('scale', nn.initializers.constant(self.initial), (x.shape[-1],)).astype(x.dtype)


def _standardised(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
  """Mean 0 and variance 1 over `axes`, at least float32."""
  x = widened(x)
  centred = x - x.mean(axes, keepdims=True)
  return centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)


def _affine(module: nn.Module, x: jax.Array, standardised: jax.Array, initial: float = 1.0) -> jax.Array:
  """standardised * scale + bias, with the module's parameters, in the dtype of x."""
  scale = module.param('scale', nn.initializers.constant(initial), (x.shape[-1],))
  bias = module.param('bias', nn.initializers.zeros, (x.shape[-1],))
  return (standardised * scale + bias).astype(x.dtype)
