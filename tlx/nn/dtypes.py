"""The dtype in which sums over many values are kept: float32, or float64 for float64 values."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
  """Maps bfloat16, float16 and float32 to float32, and float64 to float64."""
  return jnp.promote_types(dtype, jnp.float32)


def widened(x: jax.Array) -> jax.Array:
  """Casts bfloat16 and float16 arrays to float32; float32 and float64 arrays stay as they are."""
  return x.astype(at_least_float32(x.dtype))
