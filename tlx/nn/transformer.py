"""The plain vision transformer (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929) that several families share.

Tokens are [b, n, d]: class token, distillation token, registers, then the patches row by row; what a variant lacks is
left out. One resolution, pre-norm blocks; a family's config is a subclass of `TransformerConfig`, which may override
what a block is made of.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.activation import Activation, gelu, gelu_tanh, quick_gelu, silu
from tlx.nn.attention import Mlp, attend, merge_heads, split_heads, table_init
from tlx.nn.conv import Conv, Dense
from tlx.nn.dtypes import at_least_float32
from tlx.nn.model import Config, Layer
from tlx.nn.norm import LayerNorm, LayerScale
from tlx.nn.stochastic import DropPath
from tlx.types import UsageError

ACTIVATIONS: Mapping[str, Activation] = {'gelu': gelu, 'gelu_tanh': gelu_tanh, 'quick_gelu': quick_gelu}
token_init = nn.initializers.normal(1e-6)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Config):
  """Shape of one variant."""

  dim: int  # channels of a token
  depth: int
  heads: int
  patch: int = 16  # pixels, height = width
  size: int = 224  # pixels of the image, height = width; what a last patch does not fill is cut off
  mlp: int | None = None  # hidden channels of the perceptrons; four times dim by default
  gated: bool = False  # silu(a) * b in place of the activation (SwiGLU)
  activation: str = 'gelu'
  epsilon: float = 1e-6
  qkv_bias: bool = True
  layer_scale: float | None = None  # its initial value
  class_token: bool = True
  distilled: bool = False  # a second token, which DeiT learns from its teacher
  registers: int = 0  # tokens without a position (Darcet et al. 2023, https://arxiv.org/abs/2309.16588)
  positions: bool = True  # a table of them is added to the tokens
  prefix_positions: bool = True  # that table has rows for the class and the distillation token, ahead of the grid's
  pre_norm: bool = False  # a norm before the blocks, and then no bias in the patch embedding (CLIP)
  # The class token; the mean of the patches; both, one after the other; attention from a learnt query; or the mean of
  # the patches before the norm, which then has no effect.
  pool: Literal['token', 'mean', 'token_mean', 'map', 'raw_mean'] = 'token'
  norm_last: bool = False  # the norm follows the pooling

  @property
  def width(self) -> int:
    return self.dim * (2 if self.pool == 'token_mean' else 1)

  @property
  def grid(self) -> int:
    """Patches along a side."""
    return self.size // self.patch

  @property
  def specials(self) -> int:
    """Class and distillation tokens."""
    return self.class_token + self.distilled

  @property
  def prefix(self) -> int:
    """Tokens ahead of the patches."""
    return self.specials + self.registers

  @property
  def placeless(self) -> int:
    """Rows of the position table ahead of the grid's."""
    return self.specials if self.positions and self.prefix_positions else 0

  @property
  def hidden(self) -> int:
    return self.mlp or 4 * self.dim

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    last = max(1, self.depth - 1)
    return (
      Layer('stem', partial(Embedding, self)),
      *(Layer(f'block{i}', partial(Block, self, drop_path * i / last)) for i in range(self.depth)),
      Layer('norm', partial(Norm, self)),
      *([Layer('pool', partial(AttentionPool, self))] if self.pool == 'map' else []),
    )

  def attention(self, name: str) -> nn.Module:
    """Of a block: [b, n, d] -> [b, n, d]."""
    return Attention(self.heads, self.qkv_bias, name=name)

  def perceptron(self, name: str) -> nn.Module:
    """Of a block: [b, n, d] -> [b, n, d]."""
    return GatedMlp(self.hidden, name=name) if self.gated else Mlp(self.hidden, ACTIVATIONS[self.activation], name=name)


class Embedding(nn.Module):
  """Patches to tokens with their positions: [b, s, s, c] -> [b, n, d]. Raises UsageError for another size."""

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c = self.config
    if x.shape[1:3] != (c.size, c.size):
      raise UsageError(
        f'this transformer takes images of {c.size} x {c.size} pixels, not {x.shape[1]} x {x.shape[2]}: '
        'load it with the image_size (--image-size) that you need'
      )
    x = Conv(c.dim, c.patch, c.patch, 'valid', use_bias=not c.pre_norm, kernel_init=table_init, name='patches')(x)
    tokens = [x.reshape(x.shape[0], -1, c.dim)]
    if c.positions:
      table = self.param('position_table', table_init, (1, c.placeless + c.grid**2, c.dim)).astype(x.dtype)
      tokens[0] += table[:, c.placeless :]
    if c.registers:
      tokens.insert(0, self._token('register_tokens', c.registers, x))
    for row, name in reversed(list(enumerate(['class_token', 'distillation_token'][: c.specials]))):
      tokens.insert(0, self._token(name, 1, x) + (table[:, row : row + 1] if c.placeless else 0))
    x = jnp.concatenate(tokens, axis=1)
    return LayerNorm(c.epsilon, name='pre_norm')(x) if c.pre_norm else x

  def _token(self, name: str, count: int, x: jax.Array) -> jax.Array:
    """The same learnt tokens for every image: [b, count, d]."""
    token = self.param(name, token_init, (1, count, self.config.dim)).astype(x.dtype)
    return jnp.broadcast_to(token, (x.shape[0], count, self.config.dim))


class Attention(nn.Module):
  """Self-attention (Vaswani et al. 2017): [b, n, d] -> [b, n, d]; query, key and value are one product, `qkv`."""

  heads: int
  qkv_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    qkv = Dense(3 * x.shape[-1], self.qkv_bias, name='qkv')(x)
    return Dense(x.shape[-1], name='proj')(merge_heads(attend(*split_heads(qkv, self.heads))))


class GatedMlp(nn.Module):
  """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202): `fc1` yields gate and value in that order."""

  hidden: int
  norm: float | None = None  # epsilon of a norm before the last product; None = there is none

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate, value = jnp.split(Dense(2 * self.hidden, name='fc1')(x), 2, axis=-1)
    y = silu(gate) * value
    y = y if self.norm is None else LayerNorm(self.norm, name='norm')(y)
    return Dense(x.shape[-1], name='fc2')(y)


class Block(nn.Module):
  """The config's attention and perceptron, each behind a norm and beside a shortcut: [b, n, d] -> [b, n, d]."""

  config: TransformerConfig
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c = self.config
    for i, branch in ((1, c.attention(name='attention')), (2, c.perceptron(name='mlp'))):
      y = branch(LayerNorm(c.epsilon, name=f'norm{i}')(x))
      y = y if c.layer_scale is None else LayerScale(c.layer_scale, name=f'scale{i}')(y)
      x = x + DropPath(self.drop_path)(y, train)
    return x


class Norm(nn.Module):
  """The last norm and whatever pooling has no parameters: [b, n, d] -> [b, width], or [b, n, d] for attention pooling.

  Sums over tokens are at least float32.
  """

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = LayerNorm(self.config.epsilon, name='norm')
    if self.config.norm_last:
      return norm(self._pooled(x))
    normalised = norm(x)
    return self._pooled(x if self.config.pool == 'raw_mean' else normalised)

  def _pooled(self, x: jax.Array) -> jax.Array:
    token, patches = x[:, 0], x[:, self.config.prefix :]
    if self.config.pool == 'map':
      return patches
    if self.config.pool == 'token':
      return token
    mean = patches.mean(axis=1, dtype=at_least_float32(x.dtype)).astype(x.dtype)
    return jnp.concatenate([token, mean], axis=-1) if self.config.pool == 'token_mean' else mean


class Projections(nn.Module):
  """Queries of some tokens, keys and values of others: [b, m, d], [b, n, d] -> three; `kernel` [d, 3 d], `bias`."""

  @nn.compact
  def __call__(self, ours: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    d = ours.shape[-1]
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (d, 3 * d)).astype(ours.dtype)
    bias = self.param('bias', nn.initializers.zeros, (3 * d,)).astype(ours.dtype)
    key, value = jnp.split(theirs @ kernel[:, d:] + bias[d:], 2, axis=-1)
    return ours @ kernel[:, :d] + bias[:d], key, value


class AttentionPool(nn.Module):
  """Attention of one learnt query over all tokens, and a perceptron beside a shortcut: [b, n, d] -> [b, d].

  (Zhai et al. 2021, https://arxiv.org/abs/2106.04560.)
  """

  config: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c = self.config
    token = self.param('query_token', nn.initializers.truncated_normal(c.dim**-0.5), (1, 1, c.dim)).astype(x.dtype)
    projected = Projections(name='qkv')(jnp.broadcast_to(token, (x.shape[0], 1, c.dim)), x)
    heads = [y.reshape(*y.shape[:-1], c.heads, -1) for y in projected]
    x = Dense(c.dim, name='proj')(merge_heads(attend(*heads)))
    mlp = Mlp(c.hidden, ACTIVATIONS[c.activation], name='mlp')
    return (x + mlp(LayerNorm(c.epsilon, name='norm')(x)))[:, 0]
