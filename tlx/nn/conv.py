"""Convolution and dense layers that compute in the dtype of their input, with fast forms for CPUs.

Images are [b, h, w, c] and kernels are HWIO. GPUs and TPUs run XLA's convolution; CPUs run the forms of `conv_cpu`. JAX
makes the choice when it lowers the program, so one traced function serves every platform.

`conv2d` has a custom reverse rule. Reverse mode works, also nested and under vmap, scan, remat and pmap. Forward mode
applied to it directly (`jax.jvp`, `jax.jacfwd`) does not work; forward over reverse does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from tlx.nn import conv_cpu
from tlx.nn.conv_cpu import Spec

Padding = str | int | Sequence[Sequence[int]]
fan_out_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015, as in timm's CNNs


def pair(value: int | Sequence[int]) -> tuple[int, int]:
  """Repeats an int: 3 -> (3, 3). A pair stays as it is."""
  return (value, value) if isinstance(value, int) else (value[0], value[1])


def explicit_padding(padding: Padding, size, window, strides, dilation) -> tuple[tuple[int, int], tuple[int, int]]:
  """Computes how many zeros to add before and after the height and the width.

  Args:
    padding: 'same' follows TensorFlow: ceil(size / stride) outputs, with the odd zero after. 'torch' adds
      (window - 1) * dilation // 2 zeros on each side, whatever the stride. 'valid' adds none. An int adds that many
      zeros on each side. ((top, bottom), (left, right)) is taken as it is.
    size: height and width of the input, pixels.
    window: height and width of the kernel, pixels.
    strides: vertical and horizontal stride, pixels.
    dilation: vertical and horizontal distance between two kernel positions, pixels.

  Returns:
    ((top, bottom), (left, right)).

  Raises:
    ValueError: for any other padding.

  Examples:
    >>> explicit_padding('same', size=(224, 224), window=(3, 3), strides=(2, 2), dilation=(1, 1))
    ((0, 1), (0, 1))
    >>> explicit_padding('torch', size=(224, 224), window=(3, 3), strides=(2, 2), dilation=(1, 1))
    ((1, 1), (1, 1))
  """
  reach = [(w - 1) * d for w, d in zip(window, dilation)]
  if padding == 'valid':
    return (0, 0), (0, 0)
  if padding == 'torch':
    return tuple((r // 2, r // 2) for r in reach)
  if padding == 'same':
    total = [max(0, (-(-n // s) - 1) * s + r + 1 - n) for n, s, r in zip(size, strides, reach)]
    return tuple((t // 2, t - t // 2) for t in total)
  if isinstance(padding, int):
    return ((padding, padding),) * 2
  if isinstance(padding, str) or len(padding) != 2 or any(len(p) != 2 for p in padding):
    raise ValueError(f"padding {padding!r}: use 'same', 'torch', 'valid', an int, or ((top, bottom), (left, right))")
  return tuple((int(before), int(after)) for before, after in padding)


def library_conv(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
  """XLA's convolution: the form for GPUs and TPUs, and the reference for the CPU forms."""
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, kernel, spec.strides, spec.padding, None, spec.dilation, numbers, feature_group_count=spec.groups
  )


def library_input_gradient(dy: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """The gradient of `library_conv` with respect to x, given the gradient `dy` of its result."""
  like = jax.ShapeDtypeStruct(x_shape, dy.dtype)
  return jax.linear_transpose(lambda x: library_conv(x, kernel, spec), like)(dy)[0]


def library_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """The gradient of `library_conv` with respect to the kernel, given the gradient `dy` of its result."""
  like = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
  return jax.linear_transpose(lambda kernel: library_conv(x, kernel, spec), like)(dy)[0]


def cpu_conv(x: jax.Array, kernel: jax.Array, spec: Spec) -> jax.Array:
  """Computes what `library_conv` computes, in the form that is fastest on a CPU."""
  out = output_size(x.shape, kernel.shape, spec)
  if conv_cpu.is_depthwise(x.shape, spec):
    return conv_cpu.depthwise(x, kernel, out, spec)
  if conv_cpu.is_pointwise(kernel.shape, spec):
    return conv_cpu.pointwise(x, kernel, out, spec)
  return library_conv(x, kernel, spec)


def cpu_input_gradient(dy: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Computes what `library_input_gradient` computes, in the form that is fastest on a CPU."""
  if conv_cpu.is_depthwise(x_shape, spec):
    return conv_cpu.depthwise_input_gradient(dy, kernel, x_shape, spec)
  wide_strided = max(spec.strides) > 1 and kernel.shape[2] >= conv_cpu.WIDE and spec.groups == 1
  if conv_cpu.is_pointwise(kernel.shape, spec) or wide_strided:
    return conv_cpu.dense_input_gradient(dy, kernel, x_shape, spec)
  return library_input_gradient(dy, kernel, x_shape, spec)


def cpu_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Computes what `library_kernel_gradient` computes, in the form that is fastest on a CPU."""
  if conv_cpu.is_depthwise(x.shape, spec):
    return conv_cpu.depthwise_kernel_gradient(x, dy, kernel_shape, spec)
  if spec.groups > 1:
    return conv_cpu.grouped_kernel_gradient(x, dy, kernel_shape, spec)
  pointwise = conv_cpu.is_pointwise(kernel_shape, spec)
  if (pointwise or dy.shape[1] * dy.shape[2] >= conv_cpu.LARGE) and jax.device_count() == 1:
    return conv_cpu.dense_kernel_gradient(x, dy, kernel_shape, spec)
  if pointwise:
    return conv_cpu.pointwise_kernel_gradient(x, dy, kernel_shape, spec)
  return library_kernel_gradient(x, dy, kernel_shape, spec)


def output_size(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], spec: Spec) -> tuple[int, int]:
  """Height and width of the result. They are zero or negative where the kernel is larger than the padded input."""
  axes = zip(x_shape[1:3], kernel_shape[:2], spec.strides, spec.padding, spec.dilation)
  return tuple((size + sum(pads) - (window - 1) * d - 1) // s + 1 for size, window, s, pads, d in axes)


def by_platform(cpu: Callable, library: Callable, a: jax.Array, b: jax.Array, *static: Any) -> jax.Array:
  """Runs cpu(a, b, *static) on CPUs and library(a, b, *static) elsewhere; JAX chooses when it lowers the program."""
  return lax.platform_dependent(a, b, cpu=lambda a, b: cpu(a, b, *static), default=lambda a, b: library(a, b, *static))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, spec):
  return by_platform(cpu_conv, library_conv, x, kernel, spec)


def _conv_forward(x, kernel, spec):
  # This does not call _conv, because forward over reverse differentiates it and _conv has no forward rule.
  return by_platform(cpu_conv, library_conv, x, kernel, spec), (x, kernel)


def _conv_backward(spec, residuals, dy):
  # Two separate computations, so that jit can drop an unused one (the kernel's gradient, where the kernel is frozen).
  x, kernel = residuals
  return (
    by_platform(cpu_input_gradient, library_input_gradient, dy, kernel, x.shape, spec),
    by_platform(cpu_kernel_gradient, library_kernel_gradient, x, dy, kernel.shape, spec),
  )


_conv.defvjp(_conv_forward, _conv_backward)


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: int | Sequence[int] = 1,
  padding: Padding,
  groups: int = 1,
  dilation: int | Sequence[int] = 1,
) -> jax.Array:
  """Two-dimensional convolution. It is a cross-correlation, as everywhere in deep learning: the kernel is not flipped.

  Args:
    x: float [b, h, w, c].
    kernel: float [kh, kw, c / groups, out]; cast to the dtype of x.
    strides: one int, or (vertical, horizontal), pixels.
    padding: see `explicit_padding`.
    groups: number of channel groups; c = a depthwise convolution.
    dilation: one int, or (vertical, horizontal): distance between two kernel positions, pixels.

  Returns:
    [b, h', w', out] in the dtype of x.

  Raises:
    ValueError: if the shapes do not fit together, or the kernel is larger than the padded input.
  """
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
    raise ValueError(
      f'conv2d: input {x.shape} and kernel {kernel.shape} do not fit with groups={groups}; '
      'need [b, h, w, c] and [kh, kw, c / groups, out] with out a multiple of groups'
    )
  strides, dilation = pair(strides), pair(dilation)
  padding = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], strides, dilation)
  spec = Spec(strides, padding, groups, dilation)
  if min(output_size(x.shape, kernel.shape, spec)) < 1:
    raise ValueError(f'conv2d: kernel {kernel.shape} is larger than the padded input {x.shape}; use larger images')
  return _conv(x, kernel.astype(x.dtype), spec)


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes [..., c] @ [c, d], with a faster kernel gradient on CPUs. It differentiates in the modes of `conv2d`."""
  return x @ kernel


def _linear_backward(residuals, dy):
  x, kernel = residuals
  return dy @ kernel.T, by_platform(conv_cpu.linear_kernel_gradient, library_linear_kernel_gradient, x, dy)


linear.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _linear_backward)


def library_linear_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
  """The gradient of `linear` with respect to its kernel: [..., c], [..., d] -> [c, d]."""
  return jnp.einsum('...c,...d->cd', x, dy)


class Conv(nn.Module):
  """A convolution layer with parameters `kernel` float32 HWIO and `bias` float32 [features].

  It computes in the dtype of its input.
  """

  features: int
  kernel_size: int | Sequence[int]
  strides: int | Sequence[int] = 1
  padding: Padding = 'torch'
  groups: int = 1
  dilation: int | Sequence[int] = 1
  use_bias: bool = False
  kernel_init: Any = fan_out_init

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
    kernel = self.prepared(self.param('kernel', self.kernel_init, shape), x.dtype)
    y = conv2d(x, kernel, strides=self.strides, padding=self.padding, groups=self.groups, dilation=self.dilation)
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
    return y

  def prepared(self, kernel: jax.Array, dtype: Any) -> jax.Array:
    """Returns the kernel to convolve with an input of that dtype. Subclasses override it (`StdConv`)."""
    return kernel


class Dense(nn.Module):
  """A linear layer over the last axis, with parameters `kernel` float32 [in, features] and `bias` float32 [features].

  It computes in the dtype of its input.

  A new head starts from `nn.initializers.zeros`: its first logits are then uniform, and its first gradient with respect
  to the backbone is zero.
  """

  features: int
  use_bias: bool = True
  kernel_init: Any = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
    y = linear(x, kernel.astype(x.dtype))
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
    return y
