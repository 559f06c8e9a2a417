"""Query, key and value from one matrix product, with an optional bias for query and value."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.attention import split_heads
from tlx.nn.conv import linear


class QueryKeyValue(nn.Module):
  """Projects tokens [b, n, d] to query, key and value [b, n, heads, d / heads].

  Parameters: `kernel` [d, 3 d]; `bias` [2 d], the query's and then the value's. A bias of the keys would add the same
  constant to all logits of a query, and the softmax cancels it (Bao et al. 2021, https://arxiv.org/abs/2106.08254).
  """

  heads: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    d = x.shape[-1]
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (d, 3 * d))
    qkv = linear(x, kernel.astype(x.dtype))
    if not self.use_bias:
      return split_heads(qkv, self.heads)
    query, value = jnp.split(self.param('bias', nn.initializers.zeros, (2 * d,)), 2)
    bias = jnp.concatenate([query, jnp.zeros_like(query), value])
    return split_heads(qkv + bias.astype(x.dtype), self.heads)
