"""Forms of the convolution for CPUs, where XLA's are slow: depthwise, 1x1, and the gradients of strided inputs.

Arrays are [b, h, w, c] and kernels are HWIO [kh, kw, c / groups, out]. Sums of bfloat16 values are kept in float32.
Without a loop over examples, a batch that is sharded over devices stays sharded. An optimisation barrier follows the
padding, because XLA would otherwise recompute the padding for each kernel position.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tlx.nn.dtypes import at_least_float32, widened

BLOCK = 1 << 20  # maximum bytes of gathered inputs, so that they stay in a core's cache next to the result
LARGE = 14 * 14  # from this many output positions on, products over blocks of rows beat XLA's kernel gradient
WIDE = 32  # from this many input channels on, products beat XLA's strided input gradient; XLA wins at RGB stems


class Spec(NamedTuple):
  """The static part of a convolution. It is hashable."""

  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
  groups: int
  dilation: tuple[int, int]


def is_depthwise(x_shape: tuple[int, ...], spec: Spec) -> bool:
  """Whether each output channel reads exactly one input channel."""
  return spec.groups == x_shape[3] and spec.groups > 1


def is_pointwise(kernel_shape: tuple[int, ...], spec: Spec) -> bool:
  """Whether each output position reads exactly one input position, in all channels."""
  return kernel_shape[:2] == (1, 1) and spec.groups == 1


def pad(x: jax.Array, pads: tuple[tuple[int, int], ...]) -> jax.Array:
  """Pads height and width with zeros, in an array of its own (see the barrier above)."""
  if not any(map(any, pads)):
    return x
  config = ((0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0))
  return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), config))


def taps(x: jax.Array, window: tuple[int, int], out: tuple[int, int], spec: Spec) -> list[jax.Array]:
  """Returns the input values that each kernel position multiplies, row by row: kh * kw arrays [b, *out, c]."""
  padded, (sh, sw), (dh, dw) = pad(x, spec.padding), spec.strides, spec.dilation

  def tap(i: int, j: int) -> jax.Array:
    stop = (x.shape[0], i * dh + (out[0] - 1) * sh + 1, j * dw + (out[1] - 1) * sw + 1, x.shape[3])
    return lax.slice(padded, (0, i * dh, j * dw, 0), stop, (1, sh, sw, 1))

  return [tap(i, j) for i in range(window[0]) for j in range(window[1])]


# Depthwise convolutions are shifted multiply-adds.


def depthwise(x: jax.Array, kernel: jax.Array, out: tuple[int, int], spec: Spec) -> jax.Array:
  """Depthwise convolution: [b, h, w, c] -> [b, *out, c * multiplier]."""
  x = jnp.repeat(x, kernel.shape[3] // x.shape[3], axis=3)
  weights = widened(kernel).reshape(-1, kernel.shape[3])
  return sum(tap * weight for tap, weight in zip(taps(x, kernel.shape[:2], out, spec), weights)).astype(x.dtype)


def depthwise_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Computes the sums of all kernel positions in one pass over x and dy, then rounds them to the dtype of x."""
  repeated, dy = jnp.repeat(x, dy.shape[3] // x.shape[3], axis=3), widened(dy)
  products = tuple(tap * dy for tap in taps(repeated, kernel_shape[:2], dy.shape[1:3], spec))

  def add(a, b):
    return tuple(u + v for u, v in zip(a, b))

  sums = lax.reduce(products, (jnp.zeros((), dy.dtype),) * len(products), add, (1, 2))  # kh * kw of [b, c * multiplier]
  return jnp.stack(sums).sum(1).reshape(kernel_shape).astype(x.dtype)


def phases(size: int, taps_: int, stride: int, before: int, dilation: int) -> list[list[tuple[int, int]]]:
  """For each remainder of the input position modulo the stride, lists the outputs that read it.

  Args:
    size: input positions along the axis.
    taps_: kernel positions along the axis.
    stride: input positions between two outputs.
    before: zeros of padding ahead of the input.
    dilation: input positions between two kernel positions.

  Returns:
    For input position stride * q + phase, the pairs (tap i, offset): output q + offset reads it through tap i.
  """
  reach = [(before - i * dilation, i) for i in range(taps_)]
  return [[(i, (p + r) // stride) for r, i in reach if (p + r) % stride == 0] for p in range(min(stride, size))]


def input_gradient(
  dy: jax.Array, x_shape: tuple[int, ...], window: tuple[int, int], spec: Spec, apply: Callable
) -> jax.Array:
  """Computes one stride-1 sum for each remainder of the position modulo the stride, and interleaves the sums.

  A transposed convolution would multiply the zeros between strided outputs; this form multiplies none.

  Args:
    dy: gradient of the result, [b, h', w', out].
    x_shape: shape of the input, [b, h, w, c].
    window: height and width of the kernel.
    spec: the convolution.
    apply: apply(shifted dy, i, j) returns the contribution of kernel position (i, j), [b, q, q, channels], in float32
      or float64.

  Returns:
    The gradient with respect to the input, [b, h, w, channels], in the dtype of dy.
  """
  args = zip(x_shape[1:3], window, spec.strides, (before for before, _ in spec.padding), spec.dilation)
  rows, columns = (phases(*axis) for axis in args)
  counts = [-(-size // stride) for size, stride in zip(x_shape[1:3], spec.strides)]
  offsets = [[o for phase in axis for _, o in phase] or [0] for axis in (rows, columns)]
  before = [max(0, -min(o)) for o in offsets]
  after = [max(0, n - 1 + max(o) - (size - 1)) for n, o, size in zip(counts, offsets, dy.shape[1:3])]
  padded = pad(dy, tuple(zip(before, after)))

  def shifted(o: int, q: int) -> jax.Array:
    top, left = o + before[0], q + before[1]
    return padded[:, top : top + counts[0], left : left + counts[1]]

  def phase(row: list, column: list) -> jax.Array:
    terms = [apply(shifted(o, q), i, j) for i, o in row for j, q in column]
    return sum(terms).astype(dy.dtype) if terms else None

  grid = {(r, c): phase(row, column) for r, row in enumerate(rows) for c, column in enumerate(columns)}
  empty = jnp.zeros_like(next(part for part in grid.values() if part is not None))  # if stride > window
  parts = [[empty if grid[r, c] is None else grid[r, c] for c in range(len(columns))] for r in range(len(rows))]
  dx = jnp.stack([jnp.stack(row, 3) for row in parts], 2)  # [b, q, phase, q, phase, channels]
  dx = dx.reshape(dx.shape[0], counts[0] * len(rows), counts[1] * len(columns), dx.shape[5])
  return dx[:, : x_shape[1], : x_shape[2]]


def depthwise_input_gradient(dy: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """[b, h', w', c * multiplier] -> x_shape."""
  weights = widened(kernel)[:, :, 0]
  dx = input_gradient(dy, x_shape, kernel.shape[:2], spec, lambda shifted, i, j: shifted * weights[i, j])
  return dx if dx.shape == x_shape else dx.reshape(*x_shape, -1).sum(-1)


# Dense convolutions are matrix products.


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Einsum of two arrays of one dtype; the result is float32, or float64 for float64 input."""
  return jnp.einsum(equation, a, b, preferred_element_type=at_least_float32(a.dtype))


def pointwise(x: jax.Array, kernel: jax.Array, out: tuple[int, int], spec: Spec) -> jax.Array:
  """1x1 convolution: [b, h, w, c] -> [b, *out, features]. Positions that a stride skips are dropped first."""
  return product('bhwc,cd->bhwd', taps(x, (1, 1), out, spec)[0], kernel[0, 0]).astype(x.dtype)


def pointwise_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """The kernel gradient of a 1x1 convolution: [1, 1, c, features]."""
  return linear_kernel_gradient(taps(x, (1, 1), dy.shape[1:3], spec)[0], dy).reshape(kernel_shape)


def linear_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
  """The kernel gradient of a linear layer: [..., c], [..., d] -> [c, d].

  A barrier precedes the product, because the copy of dy to channels-first order would recompute the sums of residual
  branches that produced dy.
  """
  x, dy = lax.optimization_barrier((x, dy))
  dk = by_channels(x, dy).astype(x.dtype)
  return dk.T if is_wider(x.shape[-1], dy) else dk


def is_wider(channels: int, dy: jax.Array) -> bool:
  """Whether the inputs of a product have more channels than dy."""
  return channels > dy.shape[-1]


def by_channels(inputs: jax.Array, dy: jax.Array) -> jax.Array:
  """Sums inputs times dy over all positions: [c, d], or [d, c] where the inputs have more channels.

  XLA copies the left operand to channels-first order, at a tenth of the product's speed, so the array with fewer
  channels stands on the left. Both operands are widened first, because XLA:CPU compiles some products of bfloat16 with
  a float32 result that it cannot run.
  """
  inputs, dy = widened(inputs), widened(dy)
  if is_wider(inputs.shape[-1], dy):
    return product('...d,...c->dc', dy, inputs)
  return product('...c,...d->cd', inputs, dy)


def grouped_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Computes one product for each kernel position, batched over the groups. XLA's form takes the groups one by one."""

  def grouped(array: jax.Array) -> jax.Array:
    return array.reshape(*array.shape[:3], spec.groups, -1)

  dy, inputs = grouped(dy), taps(x, kernel_shape[:2], dy.shape[1:3], spec)
  return (
    jnp.stack([product('bhwgc,bhwgd->cgd', grouped(tap), dy) for tap in inputs]).reshape(kernel_shape).astype(x.dtype)
  )


def dense_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Computes one product for each block of output rows, over the gathered inputs of all kernel positions.

  A scan runs over the blocks and each block holds the whole batch. A batch that is sharded over devices would be
  all-reduced once per block, so the caller takes another form there.
  """
  (kh, kw, c, features), (examples, height, width, _) = kernel_shape, dy.shape
  one_row = examples * width * kh * kw * c * x.dtype.itemsize
  rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * one_row <= BLOCK))
  padded, reach = pad(x, spec.padding), (rows - 1) * spec.strides[0] + (kh - 1) * spec.dilation[0] + 1
  unpadded = spec._replace(padding=((0, 0), (0, 0)))

  wider = is_wider(kh * kw * c, dy)

  def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
    seen = lax.dynamic_slice_in_dim(padded, block * rows * spec.strides[0], reach, axis=1)
    inputs = jnp.concatenate(taps(seen, (kh, kw), (rows, width), unpadded), axis=3)
    return total + by_channels(inputs, lax.dynamic_slice_in_dim(dy, block * rows, rows, axis=1)), None

  shape = (features, kh * kw * c) if wider else (kh * kw * c, features)
  total, _ = lax.scan(add, jnp.zeros(shape, at_least_float32(x.dtype)), jnp.arange(height // rows))
  return (total.T if wider else total).reshape(kernel_shape).astype(x.dtype)


def dense_input_gradient(dy: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """Computes one product for each kernel position, at the size of dy."""

  def apply(shifted: jax.Array, i: int, j: int) -> jax.Array:
    return product('bhwd,cd->bhwc', shifted, kernel[i, j])

  return input_gradient(dy, x_shape, kernel.shape[:2], spec, apply)
