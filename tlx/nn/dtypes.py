"""In what dtype sums over many values are kept: float32, or float64 where the values are."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
  """bfloat16, float16 and float32 -> float32; float64 stays."""
  return jnp.promote_types(dtype, jnp.float32)


def widened(x: jax.Array) -> jax.Array:
  """x, at least float32."""
  return x.astype(at_least_float32(x.dtype))
