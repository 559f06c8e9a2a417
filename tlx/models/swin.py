"""Swin transformer (Liu et al. 2021, https://arxiv.org/abs/2103.14030), and S3 (Chen et al. 2021, 2111.14725).

The first block of a stage contains the patch merging, because the published weights have no layer in between. The last
block of each stage is then its map for dense tasks, [b, h, w, c].
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from tlx.nn import window_rules as names
from tlx.nn.attention import attend, merge_heads, split_heads
from tlx.nn.conv import Dense
from tlx.nn.window import PyramidConfig, RelativePositionBias, partition, restore, window_bias
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules
from tlx.weights.resample_tables import relative_table


@dataclasses.dataclass(frozen=True)
class SwinConfig(PyramidConfig):
  """Shape of one variant."""

  def attention(self, stage: int, block: int, name: str) -> nn.Module:
    return WindowAttention(self.heads[stage], self.window(stage), self.shift(stage, block), name=name)


class WindowAttention(nn.Module):
  """Self-attention inside windows, with a learnable bias for every offset of two positions: [b, h, w, c] -> same."""

  heads: int
  window: int
  shift: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size, channels = x.shape[1:3], x.shape[3]
    positions = RelativePositionBias(self.window, self.heads, name='position_bias')()
    x = partition(x, self.window, self.shift)
    query, key, value = split_heads(Dense(3 * channels, name='qkv')(x), self.heads)
    x = attend(query, key, value, window_bias(positions, len(x), size, self.window, self.shift))
    return restore(Dense(channels, name='proj')(merge_heads(x)), size, self.window, self.shift)


def _layout(config: SwinConfig, layout: names.Names, table: str = 'attn.') -> Iterator[rules.Rule]:
  """The table of all layouts. `table` stands between a block's name and the relative position table's."""

  def positions(source: str, target: str) -> Iterator[rules.Rule]:
    name, leaf = f'{source}{table}relative_position_bias_table', f'params/{target}/attention/position_bias/table'
    yield rules.Rule(name, leaf, rules.SAME, relative_table)

  return names.layout(config, layout, positions)


def timm(config: SwinConfig) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, layers.1.downsample, layers.0.blocks.0.attn.qkv, head.fc."""
  return _layout(config, names.TIMM)


def microsoft(config: SwinConfig) -> Iterator[rules.Rule]:
  """Names in the authors' files: timm's, except layers.0.downsample (the merging ends a stage) and head."""
  return _layout(config, names.MICROSOFT)


def torchvision(config: SwinConfig) -> Iterator[rules.Rule]:
  """torchvision's names: features.0.0, features.1.0.attn.qkv, features.2.reduction, head."""
  names.require_tiles(config, 'torchvision')
  yield from _layout(config, names.TORCHVISION)
  yield from names.torchvision_buffers(config, {'relative_position_index': names.position_index})


def transformers(config: SwinConfig, prefix: str = 'swin.') -> Iterator[rules.Rule]:
  """transformers' names: swin.embeddings, swin.encoder.layers.0.blocks.0.attention.self.query, classifier."""
  names.require_tiles(config, 'transformers')
  yield from _layout(config, names.TRANSFORMERS.under(prefix), 'attention.self.')
  yield from names.pretraining(prefix)


def of_transformers(config: Mapping[str, Any]) -> SwinConfig:
  """Makes our config from a complete config of transformers."""
  return names.of_transformers(SwinConfig, config)


_SIZES = {  # blocks of the third stage, heads of the first, channels of the first
  'tiny': (6, 3, 96),
  'small': (18, 3, 96),
  'base': (18, 4, 128),
  'large': (18, 6, 192),
}


def _config(size: str, windows: tuple[int, ...], image: int, third: int | None = None) -> SwinConfig:
  depth, heads, base = _SIZES[size]
  return SwinConfig((2, 2, third or depth, 2), tuple(heads * 2**s for s in range(4)), base, windows, image)


VARIANTS = {
  **{f'swin_{size}_patch4_window7_224': _config(size, (7,) * 4, 224) for size in _SIZES},
  **{f'swin_{size}_patch4_window12_384': _config(size, (12,) * 4, 384) for size in ('base', 'large')},
  'swin_s3_tiny_224': _config('tiny', (7, 7, 14, 7), 224),
  'swin_s3_small_224': _config('small', (14, 14, 14, 7), 224),
  'swin_s3_base_224': _config('small', (7, 7, 14, 7), 224, third=30),
  'swin_test': SwinConfig((2, 1), (2, 4), 8, (3, 8), 64),
}
LAYOUTS = {
  'timm': timm,
  'microsoft': microsoft,
  'torchvision': torchvision,
  'transformers': transformers,
  'transformers_base': partial(transformers, prefix=''),
}
TRANSFORMERS = {'swin': of_transformers}


def _checkpoint(name: str) -> Checkpoint:
  tag = 'ms_in1k' if 's3' in name or 'tiny' in name else 'ms_in22k_ft_in1k'
  source = 'https://arxiv.org/abs/2111.14725' if 's3' in name else 'https://arxiv.org/abs/2103.14030'
  size = VARIANTS[name].size
  preprocess = Preprocess(size, 0.9 if size == 224 else 1.0)
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, 'mit', source)


CHECKPOINTS = {name: _checkpoint(name) for name in VARIANTS if not name.endswith('_test')}
FIGURES = {  # top-1: timm's results/results-imagenet.csv
  'swin_tiny_patch4_window7_224': Figures(28_288_354, 4.491, 224, 81.388),
  'swin_small_patch4_window7_224': Figures(49_606_258, 8.741, 224, 83.330),
  'swin_base_patch4_window7_224': Figures(87_768_224, 15.431, 224, 85.276),
  'swin_large_patch4_window7_224': Figures(196_532_476, 34.476, 224, 86.320),
  'swin_base_patch4_window12_384': Figures(87_903_584, 47.083, 384, 86.442),
  'swin_large_patch4_window12_384': Figures(196_735_516, 103.919, 384, 87.142),
  'swin_s3_tiny_224': Figures(28_328_674, 4.623, 224, 82.128),
  'swin_s3_small_224': Figures(49_737_298, 9.405, 224, 83.778),
  'swin_s3_base_224': Figures(71_125_762, 13.655, 224, 83.920),
}
