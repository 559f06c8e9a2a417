"""The plain vision transformer that several families share (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929).

It has one resolution and pre-norm blocks. Tokens are [b, n, d]: class token, distillation token, registers, then the
patches row by row; a variant may lack any but the patches. A family's config is a subclass of `TransformerConfig`,
which may override a block's attention and MLP.
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
  size: int = 224  # pixels of the image, height = width; pixels beyond the last whole patch are ignored
  mlp: int | None = None  # hidden channels of the MLPs; 4 * dim by default
  gated: bool = False  # silu(a) * b instead of the activation (SwiGLU)
  activation: str = 'gelu'
  epsilon: float = 1e-6
  qkv_bias: bool = True
  layer_scale: float | None = None  # initial value of the layer scales; None = no layer scales
  class_token: bool = True
  distilled: bool = False  # a second token, which DeiT trains on its teacher's predictions
  registers: int = 0  # tokens without a position (Darcet et al. 2023, https://arxiv.org/abs/2309.16588)
  positions: bool = True  # a learnable position table is added to the tokens
  prefix_positions: bool = True  # the table begins with rows for the class and distillation tokens
  pre_norm: bool = False  # a norm before the blocks and a patch embedding without bias (CLIP)
  # The class token; the mean of the patches; both, concatenated; attention with a learnable query; or the mean of the
  # patches before the norm, which then has no effect.
  pool: Literal['token', 'mean', 'token_mean', 'map', 'raw_mean'] = 'token'
  norm_last: bool = False  # pooling comes before the norm

  @property
  def width(self) -> int:
    return self.dim * (2 if self.pool == 'token_mean' else 1)

  @property
  def grid(self) -> int:
    """Patches along one axis of the image."""
    return self.size // self.patch

  @property
  def specials(self) -> int:
    """Number of class and distillation tokens."""
    return self.class_token + self.distilled

  @property
  def prefix(self) -> int:
    """Number of tokens ahead of the patches."""
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
    """The attention of a block: [b, n, d] -> [b, n, d]."""
    return Attention(self.heads, self.qkv_bias, name=name)

  def perceptron(self, name: str) -> nn.Module:
    """The MLP of a block: [b, n, d] -> [b, n, d]."""
    return GatedMlp(self.hidden, name=name) if self.gated else Mlp(self.hidden, ACTIVATIONS[self.activation], name=name)


class Embedding(nn.Module):
  """Embeds patches as tokens and adds their positions: [b, s, s, c] -> [b, n, d].

  Raises UsageError for images of another size than the config's.
  """

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
    """The same learnable tokens for every image: [b, count, d]."""
    token = self.param(name, token_init, (1, count, self.config.dim)).astype(x.dtype)
    return jnp.broadcast_to(token, (x.shape[0], count, self.config.dim))


class Attention(nn.Module):
  """Self-attention (Vaswani et al. 2017): [b, n, d] -> [b, n, d]. One product, `qkv`, makes query, key and value."""

  heads: int
  qkv_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    qkv = Dense(3 * x.shape[-1], self.qkv_bias, name='qkv')(x)
    return Dense(x.shape[-1], name='proj')(merge_heads(attend(*split_heads(qkv, self.heads))))


class GatedMlp(nn.Module):
  """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202). `fc1` yields the gate and then the value."""

  hidden: int
  norm: float | None = None  # epsilon of a norm before the last product; None = no norm

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate, value = jnp.split(Dense(2 * self.hidden, name='fc1')(x), 2, axis=-1)
    y = silu(gate) * value
    y = y if self.norm is None else LayerNorm(self.norm, name='norm')(y)
    return Dense(x.shape[-1], name='fc2')(y)


class Block(nn.Module):
  """The config's attention and MLP, each after a norm and with a residual connection: [b, n, d] -> [b, n, d]."""

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
  """The last norm and the pooling: [b, n, d] -> [b, width]; or [b, patches, d], if an attention pool follows.

  Sums over tokens are float32, or float64 for float64 input.
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
  """Queries of some tokens, keys and values of others: [b, m, d], [b, n, d] -> query, key, value.

  Parameters: `kernel` [d, 3 d] and `bias` [3 d].
  """

  @nn.compact
  def __call__(self, ours: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    d = ours.shape[-1]
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (d, 3 * d)).astype(ours.dtype)
    bias = self.param('bias', nn.initializers.zeros, (3 * d,)).astype(ours.dtype)
    key, value = jnp.split(theirs @ kernel[:, d:] + bias[d:], 2, axis=-1)
    return ours @ kernel[:, :d] + bias[:d], key, value


class AttentionPool(nn.Module):
  """Attention of one learnable query over all tokens, then an MLP with a residual connection: [b, n, d] -> [b, d].

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
