"""What a layer must know of the devices that share a batch, whichever way the step was compiled.

Under `pmap` or `shard_map` over the axis AXIS a layer sees one device's examples and must ask the others; under `jit`
over a mesh it sees the whole batch and the compiler asks.
"""

import jax
import jax.numpy as jnp
from jax import lax

AXIS = 'data'  # the mesh or pmap axis along which a batch is split


def axis_is_bound() -> bool:
  """Whether this code is being traced for one device of AXIS."""
  try:
    lax.axis_index(AXIS)
  except NameError:
    return False
  return True


def mean_over_devices(x: jax.Array) -> jax.Array:
  """Mean over the devices of AXIS where each holds a part of the batch (equal parts), else x."""
  return lax.pmean(x, AXIS) if axis_is_bound() else x


def device_count() -> int:
  """How many devices share the batch that this code sees a part of; 1 where it sees all of it."""
  return lax.axis_size(AXIS) if axis_is_bound() else 1


def example_positions(count: int) -> jax.Array:
  """int32 [count]: positions in the global batch of the `count` examples that this code sees."""
  first = lax.axis_index(AXIS) * count if axis_is_bound() else 0
  return first + jnp.arange(count, dtype=jnp.int32)
