"""Mix Transformer, the backbone of SegFormer (Xie et al. 2021, https://arxiv.org/abs/2105.15203).

The model has no position embeddings. The zero padding of the depthwise convolutions tells it the positions, so images
of any size and shape work. Every layer returns a map [b, h, w, c]. The first block of a stage begins with an
overlapping patch embedding; the last block ends with the stage's norm. The last level of each stride is thus the map
that dense heads read.

timm has no such models. A folder without a source layout is written under the authors' names, which
segmentation_models_pytorch also uses. transformers gives every norm an epsilon of 1e-5, whatever its config.json says;
the other two give 1e-6 to the norms of blocks and stages, with the same weights.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn.activation import gelu
from tlx.nn.attention import attend, merge_heads, table_init
from tlx.nn.conv import Conv, Dense
from tlx.nn.model import Layer, Staged
from tlx.nn.norm import LayerNorm
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules, segformer

PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))  # kernel and stride of each stage's patch embedding
EXPANSION = 4  # hidden channels of the MLPs, over the stage's channels
EPSILON = 1e-5  # of the norms after convolutions
dense = partial(Dense, kernel_init=table_init)
conv = partial(Conv, use_bias=True)
depthwise_init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


@dataclasses.dataclass(frozen=True)
class MiTConfig(Staged):
  """Shape of one variant."""

  depths: tuple[int, ...]  # blocks of each stage
  widths: tuple[int, ...]  # channels of each stage
  heads: tuple[int, ...] = (1, 2, 5, 8)  # attention heads of each stage
  reductions: tuple[int, ...] = (8, 4, 2, 1)  # factor by which keys and values shrink along each axis, for each stage
  epsilon: float = 1e-5  # of the norms of blocks and stages

  @property
  def width(self) -> int:
    return self.widths[-1]

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    block = lambda s, b, rate: partial(Block, self, s, b, rate)
    return (Layer('stem', partial(Embedding, self.widths[0], *PATCHES[0])), *self.block_layers(drop_path, block))


class Embedding(nn.Module):
  """Overlapping patches: [b, h, w, c] -> [b, h / stride, w / stride, features], rounded up."""

  features: int
  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv(self.features, self.kernel, self.stride, name='conv')(x)
    return LayerNorm(EPSILON, name='norm')(x)


class Block(nn.Module):
  """Attention and MLP, each after a norm and with a residual connection. A later stage's first block halves the map."""

  config: MiTConfig
  stage: int
  place: int  # position in the stage
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c, width = self.config, self.config.widths[self.stage]
    if self.stage and self.place == 0:
      x = Embedding(width, *PATCHES[self.stage], name='embedding')(x, train)
    attention = ReducedAttention(c.heads[self.stage], c.reductions[self.stage], name='attention')
    for i, branch in ((1, attention), (2, MixMlp(EXPANSION * width, name='mlp'))):
      x = x + DropPath(self.drop_path)(branch(LayerNorm(c.epsilon, name=f'norm{i}')(x)), train)
    return LayerNorm(c.epsilon, name='stage_norm')(x) if self.place == c.depths[self.stage] - 1 else x


class ReducedAttention(nn.Module):
  """Self-attention with keys and values from a smaller map (Sec. 3.1): [b, h, w, c] -> same."""

  heads: int
  reduction: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels, reduced = x.shape[-1], x
    if self.reduction > 1:
      reduced = conv(channels, self.reduction, self.reduction, padding='valid', name='reduce')(x)
      reduced = LayerNorm(EPSILON, name='reduced_norm')(reduced)
    key, value = jnp.split(dense(2 * channels, name='key_value')(reduced), 2, axis=-1)
    tokens = (dense(channels, name='query')(x), key, value)
    heads = [y.reshape(len(y), -1, self.heads, channels // self.heads) for y in tokens]
    return dense(channels, name='proj')(merge_heads(attend(*heads)).reshape(x.shape))


class MixMlp(nn.Module):
  """An MLP with a 3x3 depthwise convolution between its layers (Sec. 3.1): [b, h, w, c] -> same."""

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = dense(self.hidden, name='fc1')(x)
    y = conv(self.hidden, 3, groups=self.hidden, kernel_init=depthwise_init, name='depthwise')(y)
    return dense(x.shape[-1], name='fc2')(gelu(y))


class Names(NamedTuple):
  """A library's names of the tensors. {s} is a stage from 0, {n} a stage from 1, {b} a block in it."""

  embedding: str  # a patch embedding
  embedding_norm: str  # inside the patch embedding
  block: str
  norms: tuple[str, str]  # of a block
  query: str
  key_value: tuple[str, ...]  # one tensor, or two
  reduce: tuple[str, str]  # convolution and norm
  proj: str
  perceptron: tuple[str, str, str]
  norm: str  # of a stage
  head: str


NVIDIA = Names(
  'patch_embed{n}.', 'norm', 'block{n}.{b}.', ('norm1', 'norm2'), 'attn.q', ('attn.kv',), ('attn.sr', 'attn.norm'),
  'attn.proj', ('mlp.fc1', 'mlp.dwconv.dwconv', 'mlp.fc2'), 'norm{n}', 'head',
)  # fmt: skip
TRANSFORMERS_NAMES = Names(
  'encoder.patch_embeddings.{s}.', 'layer_norm', 'encoder.block.{s}.{b}.', ('layer_norm_1', 'layer_norm_2'),
  'attention.self.query', ('attention.self.key', 'attention.self.value'),
  ('attention.self.sr', 'attention.self.layer_norm'), 'attention.output.dense',
  ('mlp.dense1', 'mlp.dwconv.dwconv', 'mlp.dense2'), 'encoder.layer_norm.{s}', 'classifier',
)  # fmt: skip


def _layout(config: MiTConfig, names: Names, prefix: str = '') -> Iterator[rules.Rule]:
  """The table that all layouts share. `prefix` precedes every name but the classifier's."""
  for s, b in config.blocks():
    layer, at = f'backbone/stage{s}_block{b}', {'s': s, 'n': s + 1, 'b': b}
    if b == 0:
      source, target = prefix + names.embedding.format(**at), f'{layer}/embedding' if s else 'backbone/stem'
      yield from (rules.conv if s else rules.stem)(f'{source}proj', f'{target}/conv', bias=True)
      yield from rules.affine(source + names.embedding_norm, f'{target}/norm')
    yield from _block(config, s, layer, names, prefix + names.block.format(**at))
    if b == config.depths[s] - 1:
      yield from rules.affine(prefix + names.norm.format(**at), f'{layer}/stage_norm')
  yield from rules.dense(names.head, 'head/logits')


def _block(config: MiTConfig, stage: int, layer: str, names: Names, prefix: str) -> Iterator[rules.Rule]:
  """One block, without the patch embedding before it and the norm after it."""
  for i, norm in enumerate(names.norms, 1):
    yield from rules.affine(prefix + norm, f'{layer}/norm{i}')
  yield from rules.dense(prefix + names.query, f'{layer}/attention/query')
  for part in names.key_value:
    yield from rules.dense(prefix + part, f'{layer}/attention/key_value')
  if config.reductions[stage] > 1:
    yield from rules.conv(prefix + names.reduce[0], f'{layer}/attention/reduce', bias=True)
    yield from rules.affine(prefix + names.reduce[1], f'{layer}/attention/reduced_norm')
  yield from rules.dense(prefix + names.proj, f'{layer}/attention/proj')
  fc1, depthwise, fc2 = (prefix + part for part in names.perceptron)
  yield from rules.dense(fc1, f'{layer}/mlp/fc1')
  yield from rules.conv(depthwise, f'{layer}/mlp/depthwise', bias=True)
  yield from rules.dense(fc2, f'{layer}/mlp/fc2')


def nvidia(config: MiTConfig) -> Iterator[rules.Rule]:
  """The authors' and segmentation_models_pytorch's names: patch_embed1.proj, block1.0.attn.q, norm1, head."""
  return _layout(config, NVIDIA)


def transformers(config: MiTConfig, prefix: str = 'segformer.') -> Iterator[rules.Rule]:
  """transformers' names: segformer.encoder.block.0.0.attention.self.query, segformer.encoder.layer_norm.0."""
  return _layout(config, TRANSFORMERS_NAMES, prefix)


def of_transformers(config: Mapping[str, Any]) -> MiTConfig:
  """Makes our config from a complete config of transformers. Raises UsageError with all settings that tlx lacks."""
  return MiTConfig(**segformer.backbone(config))


_WIDE = (64, 128, 320, 512)
VARIANTS = {
  'mit_b0': MiTConfig((2, 2, 2, 2), (32, 64, 160, 256)),
  'mit_b1': MiTConfig((2, 2, 2, 2), _WIDE),
  'mit_b2': MiTConfig((3, 4, 6, 3), _WIDE),
  'mit_b3': MiTConfig((3, 4, 18, 3), _WIDE),
  'mit_b4': MiTConfig((3, 8, 27, 3), _WIDE),
  'mit_b5': MiTConfig((3, 6, 40, 3), _WIDE),
  'mit_test': MiTConfig((1, 2, 1), (4, 8, 12), (1, 2, 3), (4, 2, 1)),
}
LAYOUTS = {'nvidia': nvidia, 'transformers': transformers, 'transformers_base': partial(transformers, prefix='')}
TRANSFORMERS = {'segformer': of_transformers}
CHECKPOINTS = {
  name: Checkpoint(
    name,
    f'hf-hub:nvidia/{name.replace("_", "-")}',
    'transformers',
    Preprocess(512, 1.0, 'bilinear', mode='squash'),
    license='other',  # as the hub says; NVIDIA's source code licence allows research and evaluation only
    source='https://arxiv.org/abs/2105.15203',
  )
  for name in VARIANTS
  if not name.endswith('_test')
}
FIGURES = {  # top-1: table 7 of the paper, at 224 pixels
  'mit_b0': Figures(3_576_392, 0.452, 224, 70.5),
  'mit_b1': Figures(13_664_424, 1.676, 224, 78.7),
  'mit_b2': Figures(24_709_288, 3.271, 224, 81.6),
  'mit_b3': Figures(44_585_128, 6.142, 224, 83.1),
  'mit_b4': Figures(61_355_688, 8.920, 224, 83.6),
  'mit_b5': Figures(81_956_008, 11.717, 224, 83.8),
}
