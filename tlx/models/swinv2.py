"""Swin transformer V2 (Liu et al. 2022, https://arxiv.org/abs/2111.09883): cosine attention, continuous position bias.

Each branch of a block ends with its norm. A small network computes the position bias, so a larger window needs no
resampling. As in Swin, the first block of a stage contains the patch merging, and maps are [b, h, w, c].
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tlx.nn import window_rules as names
from tlx.nn.attention import attend, merge_heads, table_init
from tlx.nn.conv import Dense
from tlx.nn.dtypes import at_least_float32, widened
from tlx.nn.qkv import QueryKeyValue
from tlx.nn.window import PyramidConfig, partition, relative_positions, restore, window_bias
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

HIDDEN = 512  # hidden channels of the position network
LARGEST_SCALE = 100.0  # maximum factor of the cosines
LARGEST_BIAS = 16.0


@dataclasses.dataclass(frozen=True)
class SwinV2Config(PyramidConfig):
  """Shape of one variant."""

  norm_last: bool = True
  pretrained: tuple[int, ...] = (0, 0, 0, 0)  # each stage's window in pretraining; 0 = the same as now

  def attention(self, stage: int, block: int, name: str) -> nn.Module:
    window, shift = self.window(stage), self.shift(stage, block)
    return CosineAttention(self.heads[stage], window, shift, self.pretrained[stage], name=name)


class ContinuousPositionBias(nn.Module):
  """A bias from 0 to 16 for every offset of two positions, from a network of the offset's logarithm (Sec. 3.3).

  Parameters [2, 512], [512] and [512, heads] have no weight decay. It returns [heads, n, n] with n = side * side, in
  float32 or float64.
  """

  side: int
  heads: int
  pretrained: int  # window in pretraining

  @nn.compact
  def __call__(self, dtype: Any) -> jax.Array:
    hidden = self.param('hidden', table_init, (2, HIDDEN))
    bias = self.param('hidden_bias', nn.initializers.zeros, (HIDDEN,))
    output = self.param('output', table_init, (HIDDEN, self.heads))
    hidden, bias, output = (x.astype(at_least_float32(dtype)) for x in (hidden, bias, output))
    steps = jnp.asarray(log_steps(self.side, self.pretrained), hidden.dtype)
    table = nn.relu(steps @ hidden + bias) @ output
    return LARGEST_BIAS * nn.sigmoid(relative_positions(table, self.side))


def log_steps(side: int, pretrained: int = 0) -> np.ndarray:
  """Row and column of every offset on a logarithmic scale, on which 1 is seven eighths of a window: [offsets^2, 2]."""
  step = np.arange(1 - side, side) * (8 / max(1, (pretrained or side) - 1))
  step = np.sign(step) * np.log2(np.abs(step) + 1) / np.log2(8)
  return np.stack(np.meshgrid(step, step, indexing='ij'), axis=-1).reshape(-1, 2)


class CosineAttention(nn.Module):
  """Self-attention inside windows by the cosine of query and key times a learnable factor: [b, h, w, c] -> same."""

  heads: int
  window: int
  shift: int
  pretrained: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size, channels = x.shape[1:3], x.shape[3]
    scale = self.param('logit_scale', nn.initializers.constant(math.log(10)), (self.heads,))
    positions = ContinuousPositionBias(self.window, self.heads, self.pretrained, name='position_bias')(x.dtype)
    x = partition(x, self.window, self.shift)
    query, key, value = QueryKeyValue(self.heads, name='qkv')(x)
    factor = jnp.exp(jnp.minimum(scale, math.log(LARGEST_SCALE)))
    query, key = _unit(query, factor[:, None]), _unit(key)
    x = attend(query, key, value, window_bias(positions, len(x), size, self.window, self.shift), scale=1.0)
    return restore(Dense(channels, name='proj')(merge_heads(x)), size, self.window, self.shift)


def _unit(x: jax.Array, factor: jax.Array | float = 1.0) -> jax.Array:
  """Scales x to length `factor` along the last axis. The divisor is at least 1e-12, because padding has length 0."""
  wide = widened(x)
  square = jnp.square(wide).sum(axis=-1, keepdims=True)
  return (wide * (jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * factor)).astype(x.dtype)


def _layout(config: SwinV2Config, layout: names.Names, attention: str, network: str) -> Iterator[rules.Rule]:
  """The table of all layouts.

  `attention` stands between a block's name and its attention's names; `network` is the position network's name.
  """

  def positions(source: str, target: str) -> Iterator[rules.Rule]:
    source, target = source + attention, f'params/{target}/attention'
    yield rules.Rule(f'{source}logit_scale', f'{target}/logit_scale', rules.reshape((-1, 1, 1), (-1,)))
    yield rules.Rule(f'{source}{network}.0.weight', f'{target}/position_bias/hidden', rules.DENSE)
    yield rules.Rule(f'{source}{network}.0.bias', f'{target}/position_bias/hidden_bias')
    yield rules.Rule(f'{source}{network}.2.weight', f'{target}/position_bias/output', rules.DENSE)

  return names.layout(config, layout, positions)


def timm(config: SwinV2Config) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, layers.1.downsample, layers.0.blocks.0.attn.qkv, head.fc."""
  return _layout(config, names.TIMM._replace(biases=('attn.q_bias', 'attn.v_bias')), 'attn.', 'cpb_mlp')


def microsoft(config: SwinV2Config) -> Iterator[rules.Rule]:
  """Names in the authors' files: timm's, except layers.0.downsample (the merging ends a stage) and head."""
  return _layout(config, names.MICROSOFT._replace(biases=('attn.q_bias', 'attn.v_bias')), 'attn.', 'cpb_mlp')


# torchvision stores a bias of the keys, but computes with zeros instead.
_WITH_KEY = rules.Transform(
  lambda bias: np.delete(bias.reshape(3, -1), 1, axis=0).reshape(-1),
  lambda bias: np.insert(bias.reshape(2, -1), 1, 0, axis=0).reshape(-1),
  exact=False,
)


def torchvision(config: SwinV2Config) -> Iterator[rules.Rule]:
  """torchvision's names: features.0.0, features.1.0.attn.qkv, features.2.reduction, head."""
  if any(config.pretrained):
    raise rules.NoLayoutError('torchvision has no Swin V2 with other windows in pretraining')
  names.require_tiles(config, 'torchvision')
  yield from _layout(config, names.TORCHVISION._replace(bias_transform=_WITH_KEY), 'attn.', 'cpb_mlp')
  buffers = {'relative_position_index': names.position_index, 'relative_coords_table': _coordinates}
  yield from names.torchvision_buffers(config, buffers)


def _coordinates(side: int) -> np.ndarray:
  return log_steps(side).astype(np.float32).reshape(1, 2 * side - 1, 2 * side - 1, 2)


def transformers(config: SwinV2Config, prefix: str = 'swinv2.') -> Iterator[rules.Rule]:
  """transformers' names: swinv2.embeddings, swinv2.encoder.layers.0.blocks.0.attention.self.query, classifier."""
  names.require_tiles(config, 'transformers', shrinks=True)
  layout = names.TRANSFORMERS.under(prefix)
  layout = layout._replace(biases=('attention.self.query.bias', 'attention.self.value.bias'))
  yield from _layout(config, layout, 'attention.self.', 'continuous_position_bias_mlp')
  yield from names.pretraining(prefix)


def of_transformers(config: Mapping[str, Any]) -> SwinV2Config:
  """Makes our config from a complete config of transformers."""
  known = tuple(config['pretrained_window_sizes'])
  return names.of_transformers(SwinV2Config, config, shrinks=True, pretrained=known)


_SIZES = {  # blocks of the third stage, heads of the first, channels of the first
  'tiny': (6, 3, 96),
  'small': (18, 3, 96),
  'base': (18, 4, 128),
  'large': (18, 6, 192),
}


def _config(size: str, window: int, image: int, pretrained: tuple[int, ...] = (0, 0, 0, 0)) -> SwinV2Config:
  depth, heads, base = _SIZES[size]
  heads = tuple(heads * 2**s for s in range(4))
  return SwinV2Config((2, 2, depth, 2), heads, base, (window,) * 4, image, pretrained=pretrained)


VARIANTS = {
  **{f'swinv2_{size}_window{w}_256': _config(size, w, 256) for size in ('tiny', 'small', 'base') for w in (8, 16)},
  **{f'swinv2_{size}_window12_192': _config(size, 12, 192) for size in ('base', 'large')},
  **{
    f'swinv2_{size}_window12to{w}_192to{image}': _config(size, w, image, (12, 12, 12, 6))
    for size in ('base', 'large')
    for w, image in ((16, 256), (24, 384))
  },
  'swinv2_test': SwinV2Config((2, 1), (2, 4), 8, (3, 8), 64, pretrained=(0, 4)),
}
LAYOUTS = {
  'timm': timm,
  'microsoft': microsoft,
  'torchvision': torchvision,
  'transformers': transformers,
  'transformers_base': partial(transformers, prefix=''),
}
TRANSFORMERS = {'swinv2': of_transformers}


def _checkpoint(name: str) -> Checkpoint:
  tag = 'ms_in22k' if name.endswith('_192') else 'ms_in22k_ft_in1k' if 'to' in name else 'ms_in1k'
  size = VARIANTS[name].size
  preprocess = Preprocess(size, 1.0 if size == 384 else 0.9)
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, 'mit', 'https://arxiv.org/abs/2111.09883')


CHECKPOINTS = {name: _checkpoint(name) for name in VARIANTS if not name.endswith('_test')}
FIGURES = {  # top-1: timm's results/results-imagenet.csv; ms_in22k (192 pixels) has 21,841 other classes
  'swinv2_tiny_window8_256': Figures(28_347_154, 5.940, 256, 81.824),
  'swinv2_tiny_window16_256': Figures(28_347_154, 6.661, 256, 82.828),
  'swinv2_small_window8_256': Figures(49_728_418, 11.546, 256, 83.844),
  'swinv2_small_window16_256': Figures(49_728_418, 12.783, 256, 84.216),
  'swinv2_base_window8_256': Figures(87_918_816, 20.325, 256, 84.246),
  'swinv2_base_window16_256': Figures(87_918_816, 21.969, 256, 84.608),
  'swinv2_base_window12_192': Figures(87_918_816, 11.856, 192),
  'swinv2_large_window12_192': Figures(196_739_932, 26.102, 192),
  'swinv2_base_window12to16_192to256': Figures(87_918_816, 21.969, 256, 86.270),
  'swinv2_base_window12to24_192to384': Figures(87_918_816, 55.148, 384, 87.142),
  'swinv2_large_window12to16_192to256': Figures(196_739_932, 47.740, 256, 86.934),
  'swinv2_large_window12to24_192to384': Figures(196_739_932, 115.991, 384, 87.474),
}
