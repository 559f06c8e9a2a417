"""Attention and the MLP of a transformer block."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.activation import Activation, gelu
from tlx.nn.conv import Dense
from tlx.nn.dtypes import at_least_float32

table_init = nn.initializers.truncated_normal(0.02)  # for position tables and patch embeddings


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None, scale: float | None = None
) -> jax.Array:
  """Computes softmax(scale * q k' + bias) v in each head (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

  JAX uses a fused kernel where the platform has one.

  Args:
    query: float [b, n, heads, d].
    key: float [b, m, heads, d].
    value: float [b, m, heads, d].
    bias: added to the scaled logits; broadcast to [b, heads, n, m].
    scale: factor of the logits; 1 / sqrt(d) by default.

  Returns:
    [b, n, heads, d] in the dtype of `query`. The softmax is computed in float32, or float64 for float64 input.
  """
  if query.dtype == jnp.float64:  # JAX's attention would compute the softmax in float32
    logits = jnp.einsum('bnhd,bmhd->bhnm', query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    shares = jax.nn.softmax(logits if bias is None else logits + bias)
    return jnp.einsum('bhnm,bmhd->bnhd', shares, value)
  bias = None if bias is None else bias.astype(at_least_float32(query.dtype))
  return jax.nn.dot_product_attention(query, key, value, bias=bias, scale=scale)


def split_heads(qkv: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Splits [b, n, 3 * heads * d] into query, key and value, each [b, n, heads, d]."""
  return tuple(x.reshape(*x.shape[:-1], heads, -1) for x in jnp.split(qkv, 3, axis=-1))


def merge_heads(x: jax.Array) -> jax.Array:
  """Joins the heads: [b, n, heads, d] -> [b, n, heads * d]."""
  return x.reshape(*x.shape[:-2], -1)


class Mlp(nn.Module):
  """Two linear layers with an activation between them: [..., d] -> [..., d]. Submodules: `fc1`, `fc2`."""

  hidden: int
  activation: Activation = gelu

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = self.activation(Dense(self.hidden, name='fc1')(x))
    return Dense(x.shape[-1], name='fc2')(hidden)
