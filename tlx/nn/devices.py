"""Reductions over the devices that share a batch, under `jit` and under `pmap`.

Under `pmap` or `shard_map` over the axis AXIS, a layer sees the examples of one device and must reduce over the others.
Under `jit` over a mesh it sees the whole batch, and the compiler inserts the communication.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

AXIS = 'data'  # the mesh or pmap axis along which a batch is split
_part: contextvars.ContextVar[tuple[jax.Array, int] | None] = contextvars.ContextVar('part', default=None)


def axis_is_bound() -> bool:
  """Whether JAX is tracing this code for one device of AXIS."""
  try:
    lax.axis_index(AXIS)
  except NameError:
    return False
  return True


def mean_over_devices(x: jax.Array) -> jax.Array:
  """The mean of x over the devices of AXIS, if each holds an equal part of the batch; else x."""
  return lax.pmean(x, AXIS) if axis_is_bound() else x


def device_count() -> int:
  """The number of devices that share the batch, if this code sees one device's part; 1 if it sees the whole batch."""
  return lax.axis_size(AXIS) if axis_is_bound() else 1


@contextlib.contextmanager
def micro_batch(index: jax.Array, count: int) -> Iterator[None]:
  """Within the block, code sees the examples index, index + count, index + 2 count, ... of its part of the batch.

  Args:
    index: of the micro-batch, int32 [].
    count: number of micro-batches.
  """
  token = _part.set((index, count))
  try:
    yield
  finally:
    _part.reset(token)


def example_positions(count: int) -> jax.Array:
  """Positions in the global batch of the `count` examples that this code sees: int32 [count]."""
  index, parts = _part.get() or (0, 1)
  first = lax.axis_index(AXIS) * count * parts if axis_is_bound() else 0
  return first + index + parts * jnp.arange(count, dtype=jnp.int32)
