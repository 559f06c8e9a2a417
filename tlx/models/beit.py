"""BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254) and BEiT v2 (Peng et al. 2022, 2208.06366).

The attention of each block has a bias for every offset between patches, in place of a position table.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from tlx.nn import transformer_rules as names
from tlx.nn.attention import attend, merge_heads
from tlx.nn.conv import Dense
from tlx.nn.qkv import QueryKeyValue
from tlx.nn.transformer import TransformerConfig
from tlx.nn.window import RelativePositionBias
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules
from tlx.weights.resample_tables import relative_table


@dataclasses.dataclass(frozen=True)
class BeitConfig(TransformerConfig):
  """Shape of one variant. The last norm follows the pooling: the patches' mean, or the class token (pool='token')."""

  layer_scale: float | None = 0.1
  positions: bool = False
  pool: str = 'mean'
  norm_last: bool = True

  def attention(self, name: str) -> nn.Module:
    return Attention(self, name=name)


class Attention(nn.Module):
  """Self-attention with a learnable bias for every offset between two patches: [b, 1 + n, d] -> same."""

  config: BeitConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    bias = RelativePositionBias(c.grid, c.heads, class_token=True, name='position_bias')()
    x = attend(*QueryKeyValue(c.heads, name='qkv')(x), bias[None])
    return Dense(c.dim, name='proj')(merge_heads(x))


def _layout(config: BeitConfig, layout: names.Names, table: str) -> Iterator[rules.Rule]:
  """The table of all layouts. `table` is the name of the relative position table inside a block."""
  yield from names.layout(config, layout)
  for i in range(config.depth):
    target = f'params/backbone/block{i}/attention/position_bias/table'
    yield rules.Rule(f'{layout.block.format(i)}.{table}', target, rules.SAME, partial(relative_table, extra=3))
  yield rules.Rule('*.relative_position_index', None)  # derived from the size


def timm(config: BeitConfig) -> Iterator[rules.Rule]:
  """timm's names, which are also the authors': patch_embed.proj, blocks.0.attn.q_bias, fc_norm, head."""
  norm = 'fc_norm' if config.pool == 'mean' else 'norm'
  layout = names.TIMM._replace(scales=('gamma_1', 'gamma_2'), norm=norm, biases=('attn.q_bias', 'attn.v_bias'))
  return _layout(config, layout, 'attn.relative_position_bias_table')


def transformers(config: BeitConfig, prefix: str = 'beit.') -> Iterator[rules.Rule]:
  """transformers' names: beit.embeddings.cls_token, beit.encoder.layer.0, beit.pooler.layernorm, classifier."""
  norm = 'pooler.layernorm' if config.pool == 'mean' else 'layernorm'
  biases = ('attention.attention.query.bias', 'attention.attention.value.bias')
  layout = names.TRANSFORMERS._replace(scales=('lambda_1', 'lambda_2'), norm=norm, biases=biases).under(prefix)
  yield from _layout(config, layout, 'attention.attention.relative_position_bias.relative_position_bias_table')
  yield rules.Rule(f'{prefix}embeddings.mask_token', None)  # only for masked pretraining


def of_transformers(config: Mapping[str, Any]) -> BeitConfig:
  """Makes our config from a complete config of transformers. Raises UsageError with all settings that tlx lacks.

  Only models for masked images share one position table among all blocks; classifiers do not.
  """
  known = {'use_relative_position_bias': True, 'use_shared_relative_position_bias': False,
           'use_absolute_position_embeddings': False}  # fmt: skip
  unscaled = [] if config['layer_scale_init_value'] > 0 else ['layer_scale_init_value 0, so no layer scales']
  records.require(config, known, *unscaled)
  pool = 'mean' if config['use_mean_pooling'] else 'token'
  return names.of_transformers(BeitConfig, config, pool=pool, layer_scale=config['layer_scale_init_value'])


_SIZES = {'base': (768, 12, 12), 'large': (1024, 24, 16)}  # dim, depth, heads
_SCALES = {'beit_base': 0.1, 'beit_large': 1e-5, 'beitv2_base': 1e-5, 'beitv2_large': 1e-5}  # initial layer scale
VARIANTS = {
  f'{name}_patch16_{size}': BeitConfig(*_SIZES[name.split('_')[1]], size=size, layer_scale=scale)
  for name, scale in _SCALES.items()
  for size in {'beit_base': (224, 384), 'beit_large': (224, 384, 512)}.get(name, (224,))
}
VARIANTS['beit_test'] = BeitConfig(8, 2, 2, size=64)
LAYOUTS = {'timm': timm, 'transformers': transformers, 'transformers_base': partial(transformers, prefix='')}
TRANSFORMERS = {'beit': of_transformers}


def _checkpoint(name: str) -> Checkpoint:
  second, size = name.startswith('beitv2'), VARIANTS[name].size
  tag = 'in1k_ft_in22k_in1k' if second else 'in22k_ft_in22k_in1k'
  crop = 1.0 if size > 224 else 0.95 if name.startswith('beitv2_large') else 0.9
  colours = () if second else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
  source = f'https://arxiv.org/abs/{"2208.06366" if second else "2106.08254"}'
  preprocess = Preprocess(size, crop, 'bicubic', *colours)
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, 'apache-2.0', source)


CHECKPOINTS = {name: _checkpoint(name) for name in VARIANTS if not name.endswith('_test')}
FIGURES = {  # top-1: timm's results/results-imagenet.csv
  'beit_base_patch16_224': Figures(86_530_984, 17.564, 224, 85.238),
  'beit_base_patch16_384': Figures(86_744_104, 55.484, 384, 86.814),
  'beit_large_patch16_224': Figures(304_430_568, 61.555, 224, 87.486),
  'beit_large_patch16_384': Figures(304_998_888, 191.066, 384, 88.380),
  'beit_large_patch16_512': Figures(305_674_728, 361.986, 512, 88.576),
  'beitv2_base_patch16_224': Figures(86_530_984, 17.564, 224, 86.494),
  'beitv2_large_patch16_224': Figures(304_430_568, 61.555, 224, 88.406),
}
