"""Convolution forms for CPUs, where XLA's own are slow: depthwise, 1x1, and strided input gradients.

Arrays are [b, h, w, c], kernels HWIO [kh, kw, c / groups, out]. Sums of bfloat16 are kept in float32.
No form loops over examples, so a batch that is sharded over devices stays so. Padding stands behind an optimisation
barrier: fused into the taps it would be recomputed for each of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tlx.nn.dtypes import at_least_float32, widened

BLOCK = 1 << 20  # bytes of gathered inputs: what stays in a core's cache beside the result
LARGE = 14 * 14  # positions of a result from which products by blocks of rows beat the library's kernel gradient
WIDE = 32  # input channels from which products beat the library's strided input gradient; it wins at RGB stems


class Spec(NamedTuple):
  """A convolution's static part; hashable."""

  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]  # (before, after) of height and of width
  groups: int
  dilation: tuple[int, int]


def is_depthwise(x_shape: tuple[int, ...], spec: Spec) -> bool:
  """Whether each output channel sees one input channel."""
  return spec.groups == x_shape[3] and spec.groups > 1


def is_pointwise(kernel_shape: tuple[int, ...], spec: Spec) -> bool:
  """Whether each output position sees one input position, of all channels."""
  return kernel_shape[:2] == (1, 1) and spec.groups == 1


def pad(x: jax.Array, pads: tuple[tuple[int, int], ...]) -> jax.Array:
  """Zero padding of height and width, materialised."""
  if not any(map(any, pads)):
    return x
  config = ((0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0))
  return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), config))


def taps(x: jax.Array, window: tuple[int, int], out: tuple[int, int], spec: Spec) -> list[jax.Array]:
  """What each kernel position multiplies, row by row: kh * kw arrays [b, *out, c]."""
  padded, (sh, sw), (dh, dw) = pad(x, spec.padding), spec.strides, spec.dilation

  def tap(i: int, j: int) -> jax.Array:
    stop = (x.shape[0], i * dh + (out[0] - 1) * sh + 1, j * dw + (out[1] - 1) * sw + 1, x.shape[3])
    return lax.slice(padded, (0, i * dh, j * dw, 0), stop, (1, sh, sw, 1))

  return [tap(i, j) for i in range(window[0]) for j in range(window[1])]


# Depthwise: shifted multiply-adds.


def depthwise(x: jax.Array, kernel: jax.Array, out: tuple[int, int], spec: Spec) -> jax.Array:
  """[b, h, w, c] -> [b, *out, c * multiplier]."""
  x = jnp.repeat(x, kernel.shape[3] // x.shape[3], axis=3)
  weights = widened(kernel).reshape(-1, kernel.shape[3])
  return sum(tap * weight for tap, weight in zip(taps(x, kernel.shape[:2], out, spec), weights)).astype(x.dtype)


def depthwise_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """One pass over x and dy feeds a sum for every tap, which is then rounded to the dtype of x."""
  repeated, dy = jnp.repeat(x, dy.shape[3] // x.shape[3], axis=3), widened(dy)
  products = tuple(tap * dy for tap in taps(repeated, kernel_shape[:2], dy.shape[1:3], spec))

  def add(a, b):
    return tuple(u + v for u, v in zip(a, b))

  sums = lax.reduce(products, (jnp.zeros((), dy.dtype),) * len(products), add, (1, 2))  # kh * kw of [b, c * multiplier]
  return jnp.stack(sums).sum(1).reshape(kernel_shape).astype(x.dtype)


def phases(size: int, taps_: int, stride: int, before: int, dilation: int) -> list[list[tuple[int, int]]]:
  """For input positions stride * q + phase: the (tap i, offset) pairs through which output q + offset saw them."""
  reach = [(before - i * dilation, i) for i in range(taps_)]
  return [[(i, (p + r) // stride) for r, i in reach if (p + r) % stride == 0] for p in range(min(stride, size))]


def input_gradient(
  dy: jax.Array, x_shape: tuple[int, ...], window: tuple[int, int], spec: Spec, apply: Callable
) -> jax.Array:
  """One stride-1 sum for each remainder of position modulo stride, interleaved: no zero is multiplied.

  `apply(shifted dy, i, j)` is what tap (i, j) contributes, [b, q, q, channels], at least float32.
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
  empty = jnp.zeros_like(next(part for part in grid.values() if part is not None))  # a stride longer than the window
  parts = [[empty if grid[r, c] is None else grid[r, c] for c in range(len(columns))] for r in range(len(rows))]
  dx = jnp.stack([jnp.stack(row, 3) for row in parts], 2)  # [b, q, phase, q, phase, channels]
  dx = dx.reshape(dx.shape[0], counts[0] * len(rows), counts[1] * len(columns), dx.shape[5])
  return dx[:, : x_shape[1], : x_shape[2]]


def depthwise_input_gradient(dy: jax.Array, kernel: jax.Array, x_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """[b, h', w', c * multiplier] -> x_shape."""
  weights = widened(kernel)[:, :, 0]
  dx = input_gradient(dy, x_shape, kernel.shape[:2], spec, lambda shifted, i, j: shifted * weights[i, j])
  return dx if dx.shape == x_shape else dx.reshape(*x_shape, -1).sum(-1)


# Dense: matrix products.


def product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """Einsum of two arrays of one dtype, with the result left at least float32."""
  return jnp.einsum(equation, a, b, preferred_element_type=at_least_float32(a.dtype))


def pointwise(x: jax.Array, kernel: jax.Array, out: tuple[int, int], spec: Spec) -> jax.Array:
  """[b, h, w, c] -> [b, *out, features]; positions that a stride skips are dropped first."""
  return product('bhwc,cd->bhwd', taps(x, (1, 1), out, spec)[0], kernel[0, 0]).astype(x.dtype)


def pointwise_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """[1, 1, c, features]."""
  return linear_kernel_gradient(taps(x, (1, 1), dy.shape[1:3], spec)[0], dy).reshape(kernel_shape)


def linear_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
  """[..., c], [..., d] -> [c, d].

  Behind a barrier: the copy that puts channels first would compute again all the sums of residuals that dy is.
  """
  x, dy = lax.optimization_barrier((x, dy))
  dk = by_channels(x, dy).astype(x.dtype)
  return dk.T if is_wider(x.shape[-1], dy) else dk


def is_wider(channels: int, dy: jax.Array) -> bool:
  """Whether the inputs of a product have more channels than dy."""
  return channels > dy.shape[-1]


def by_channels(inputs: jax.Array, dy: jax.Array) -> jax.Array:
  """Sum over all positions of inputs times dy, [c, d], or [d, c] where the inputs are wider.

  XLA copies the left side of such a product, channels first, at a tenth of the product's speed: the narrower is left.
  Widened before, because XLA:CPU compiles some products of bfloat16 with a float32 result that it cannot run.
  """
  inputs, dy = widened(inputs), widened(dy)
  if is_wider(inputs.shape[-1], dy):
    return product('...d,...c->dc', dy, inputs)
  return product('...c,...d->cd', inputs, dy)


def grouped_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """One product a tap, batched over the groups; the library's takes groups one after the other."""

  def grouped(array: jax.Array) -> jax.Array:
    return array.reshape(*array.shape[:3], spec.groups, -1)

  dy, inputs = grouped(dy), taps(x, kernel_shape[:2], dy.shape[1:3], spec)
  return (
    jnp.stack([product('bhwgc,bhwgd->cgd', grouped(tap), dy) for tap in inputs]).reshape(kernel_shape).astype(x.dtype)
  )


def dense_kernel_gradient(x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], spec: Spec) -> jax.Array:
  """One product for each block of output rows, of the inputs that all taps see there, gathered side by side.

  The blocks come one after the other and the batch stays whole, but the sum over it is taken in each: devices that
  share a batch would meet that often, and must not take this form.
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
  """One product for each tap, at the size of dy."""

  def apply(shifted: jax.Array, i: int, j: int) -> jax.Array:
    return product('bhwd,cd->bhwc', shifted, kernel[i, j])

  return input_gradient(dy, x_shape, kernel.shape[:2], spec, apply)
