"""Normalisation layers with PyTorch's arithmetic."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from tlx.nn.devices import device_count, mean_over_devices
from tlx.nn.dtypes import widened


class BatchNorm(nn.Module):
  """Normalises over all axes but the last (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

  Parameters `scale`, `bias` and batch_stats `mean`, `var` are float32 [c].

  With train=True it normalises by the mean and the biased variance of the batch, over all devices. It updates the
  running statistics, running = momentum * running + (1 - momentum) * batch, with the unbiased variance, so the caller
  must make `batch_stats` mutable. Momentum 0.9 here is 0.1 in PyTorch. With train=False it is one multiply-add with the
  running statistics, which stay as they are. A parent with some frozen layers chooses `train` for each layer.
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
  """Makes the batch norms of one top-level module use their stored statistics, which then stay as they are.

  Their scale and bias still learn; dropout and stochastic depth still run. It affects code that applies a model, at the
  time JAX traces it.

  Args:
    root: name of the top-level module, such as 'backbone'.
  """

  def stored(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
    inside = isinstance(context.module, BatchNorm) and context.module.path[:1] == (root,)
    return call(args[0], False) if inside and context.method_name == '__call__' else call(*args, **kwargs)

  with nn.intercept_methods(stored):
    yield


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Computes (mean, biased variance), each [c], over all other axes and all devices, in float32 or float64.

  It takes two passes, because E[x^2] - E[x]^2 loses all digits where the mean is large.
  """
  x = widened(x)
  axes = tuple(range(x.ndim - 1))
  mean = mean_over_devices(x.mean(axes))
  return mean, mean_over_devices(jnp.square(x - mean).mean(axes))


class LayerNorm(nn.Module):
  """Normalises each position over its channels, the last axis (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

  Parameters `scale` and `bias` are float32 [c].
  """

  epsilon: float = 1e-6
  initial: float = 1.0  # initial value of `scale`

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return _affine(self, x, _standardised(x, (-1,), self.epsilon), self.initial)


class GroupNorm(nn.Module):
  """Normalises each image over its positions and over `groups` groups of channels: [b, ..., c] -> same.

  (Wu and He 2018, https://arxiv.org/abs/1803.08494.) Parameters `scale` and `bias` are float32 [c].
  """

  groups: int = 32
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    grouped = x.reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
    return _affine(self, x, _standardised(grouped, (1, 3), self.epsilon).reshape(x.shape))


class LayerScale(nn.Module):
  """Multiplies each channel by a learnable factor `scale` (Touvron et al. 2021, https://arxiv.org/abs/2103.17239)."""

  initial: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x * self.param('scale', nn.initializers.constant(self.initial), (x.shape[-1],)).astype(x.dtype)


def _standardised(x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
  """Subtracts the mean and divides by the standard deviation over `axes`, in float32 or float64."""
  x = widened(x)
  centred = x - x.mean(axes, keepdims=True)
  return centred * lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)


def _affine(module: nn.Module, x: jax.Array, standardised: jax.Array, initial: float = 1.0) -> jax.Array:
  """Computes standardised * scale + bias with the module's parameters, in the dtype of x."""
  scale = module.param('scale', nn.initializers.constant(initial), (x.shape[-1],))
  bias = module.param('bias', nn.initializers.zeros, (x.shape[-1],))
  return (standardised * scale + bias).astype(x.dtype)
