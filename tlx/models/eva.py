"""EVA-02 (Fang et al. 2023, https://arxiv.org/abs/2303.11331) and EVA (Fang et al. 2022, 2211.07636).

EVA-02 turns queries and keys by their place (rotary positions) besides adding a table of positions, and gates its
perceptrons; EVA is a plain transformer. Both pool the mean of the patches and then normalise.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from flax import linen as nn

from tlx.nn import transformer_rules
from tlx.nn.attention import attend, merge_heads
from tlx.nn.conv import Dense
from tlx.nn.qkv import QueryKeyValue
from tlx.nn.rotary import axial_angles, frequencies, rotate
from tlx.nn.transformer import GatedMlp, TransformerConfig
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

REFERENCE = 16  # patches along a side in pretraining: a larger grid lies between the same angles


@dataclasses.dataclass(frozen=True)
class EvaConfig(TransformerConfig):
  """Shape of one variant; the rotary ones are EVA-02's."""

  patch: int = 14
  pool: str = 'mean'
  norm_last: bool = True
  rotary: bool = False
  mlp_norm: bool = False  # inside the gated perceptrons; the weights then keep apart what is one product here

  def attention(self, name: str) -> nn.Module:
    return Attention(self, name=name)

  def perceptron(self, name: str) -> nn.Module:
    norm = self.epsilon if self.mlp_norm else None
    return GatedMlp(self.hidden, norm, name=name) if self.gated else super().perceptron(name)


class Attention(nn.Module):
  """Self-attention whose queries and keys are turned by their place: [b, 1 + n, d] -> same."""

  config: EvaConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    query, key, value = QueryKeyValue(c.heads, name='qkv')(x)
    if c.rotary:
      places = np.arange(c.grid) * (REFERENCE / c.grid)
      angles = axial_angles(places, places, frequencies(c.dim // c.heads // 4))
      query, key = (rotate(tokens, angles, c.prefix) for tokens in (query, key))
    return Dense(c.dim, name='proj')(merge_heads(attend(query, key, value)))


def timm(config: EvaConfig) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, blocks.0.attn.q_bias or blocks.0.attn.q_proj, fc_norm, head."""
  yield from rules.conv('patch_embed.proj', 'backbone/stem/patches', bias=True, fit=transformer_rules.fit_patches)
  yield rules.Rule('cls_token', 'params/backbone/stem/class_token')
  positions = transformer_rules.fit_positions(config)
  yield rules.Rule('pos_embed', 'params/backbone/stem/position_table', rules.SAME, positions)
  for i in range(config.depth):
    yield from _block(config, f'blocks.{i}', f'backbone/block{i}')
  yield from rules.affine('fc_norm', 'backbone/norm/norm')
  yield from rules.dense('head', 'head/logits')
  yield from (rules.Rule(pattern, None) for pattern in ('rope.*', '*.rope.*'))  # angles, from the size


def _block(config: EvaConfig, source: str, target: str) -> Iterator[rules.Rule]:
  apart = config.mlp_norm
  kernels = ('q_proj.weight', 'k_proj.weight', 'v_proj.weight') if apart else ('qkv.weight',)
  biases = ('q_proj.bias', 'v_proj.bias') if apart else ('q_bias', 'v_bias')
  for names, leaf, transform in ((kernels, 'kernel', rules.DENSE), (biases, 'bias', rules.SAME)):
    for name in names:
      yield rules.Rule(f'{source}.attn.{name}', f'params/{target}/attention/qkv/{leaf}', transform)
  yield from rules.dense(f'{source}.attn.proj', f'{target}/attention/proj')
  for name in ('norm1', 'norm2'):
    yield from rules.affine(f'{source}.{name}', f'{target}/{name}')
  for name in ('fc1_g', 'fc1_x') if apart else ('fc1',):
    yield from rules.dense(f'{source}.mlp.{name}', f'{target}/mlp/fc1')
  if apart:
    yield from rules.affine(f'{source}.mlp.norm', f'{target}/mlp/norm')
  yield from rules.dense(f'{source}.mlp.fc2', f'{target}/mlp/fc2')


_SIZES = {  # dim, depth, heads, hidden channels of the perceptrons, sizes of images
  'tiny': (192, 12, 3, 512, (224, 336)),
  'small': (384, 12, 6, 1024, (224, 336)),
  'base': (768, 12, 12, 2048, (224, 448)),
  'large': (1024, 24, 16, 2730, (224, 448)),
}
VARIANTS = {
  f'eva02_{name}_patch14_{size}': EvaConfig(
    dim, depth, heads, 14, size, mlp, gated=True, rotary=True, mlp_norm=name in ('base', 'large')
  )
  for name, (dim, depth, heads, mlp, sizes) in _SIZES.items()
  for size in sizes
}
VARIANTS |= {f'eva_giant_patch14_{size}': EvaConfig(1408, 40, 16, 14, size, 6144) for size in (224, 336, 560)}
VARIANTS['eva_test'] = EvaConfig(8, 2, 2, 16, 64, 12, gated=True, rotary=True, mlp_norm=True)
VARIANTS['eva_small_test'] = EvaConfig(8, 2, 2, 16, 64, 12, gated=True, rotary=True)
LAYOUTS = {'timm': timm}

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_TAGS = {  # tag of timm's default weights, crop mode; those of 224 pixels but for giant have no head
  **{f'eva02_{name}_patch14_224': ('mim_in22k', 'center') for name in _SIZES},
  **{f'eva02_{name}_patch14_336': ('mim_in22k_ft_in1k', 'center') for name in ('tiny', 'small')},
  **{f'eva02_{name}_patch14_448': ('mim_in22k_ft_in22k_in1k', 'squash') for name in ('base', 'large')},
  'eva_giant_patch14_224': ('clip_ft_in1k', 'center'),
  'eva_giant_patch14_336': ('clip_ft_in1k', 'squash'),
  'eva_giant_patch14_560': ('m30m_ft_in22k_in1k', 'squash'),
}


def _checkpoint(name: str, tag: str, mode: str) -> Checkpoint:
  colours = () if tag.startswith('m30m') else _CLIP
  size = VARIANTS[name].size
  preprocess = Preprocess(size, 0.9 if size == 224 else 1.0, 'bicubic', *colours, mode)
  source = f'https://arxiv.org/abs/{"2303.11331" if VARIANTS[name].rotary else "2211.07636"}'
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, 'mit', source)


CHECKPOINTS = {name: _checkpoint(name, *tag) for name, tag in _TAGS.items()}
FIGURES = {  # top-1: timm's results/results-imagenet.csv; mim_in22k's weights have no head
  'eva02_tiny_patch14_224': Figures(5_695_144, 1.698, 224),
  'eva02_tiny_patch14_336': Figures(5_756_584, 4.662, 336, 80.648),
  'eva02_small_patch14_224': Figures(22_006_120, 6.124, 224),
  'eva02_small_patch14_336': Figures(22_129_000, 15.451, 336, 85.770),
  'eva02_base_patch14_224': Figures(86_527_720, 23.162, 224),
  'eva02_base_patch14_448': Figures(87_117_544, 106.886, 448, 88.678),
  'eva02_large_patch14_224': Figures(304_293_800, 81.000, 224),
  'eva02_large_patch14_448': Figures(305_080_232, 361.747, 448, 89.956),
  'eva_giant_patch14_224': Figures(1_012_555_112, 267.031, 224, 88.896),
  'eva_giant_patch14_336': Figures(1_013_005_672, 620.319, 336, 89.462),
  'eva_giant_patch14_560': Figures(1_014_447_464, 1905.861, 560, 89.790),
}
