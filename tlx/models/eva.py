"""EVA-02 (Fang et al. 2023, https://arxiv.org/abs/2303.11331) and EVA (Fang et al. 2022, 2211.07636).

EVA-02 adds rotary positions to the position table, and has gated MLPs. EVA is a plain transformer. Both pool the mean
of the patches and then normalise.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from flax import linen as nn

from tlx.nn import transformer_rules as names
from tlx.nn.rotary import RotaryAttention, axial_angles, frequencies
from tlx.nn.transformer import GatedMlp, TransformerConfig
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

REFERENCE = 16  # patches along an axis in pretraining; other grids are scaled to this range of angles


@dataclasses.dataclass(frozen=True)
class EvaConfig(TransformerConfig):
  """Shape of one variant. The rotary variants are EVA-02's."""

  patch: int = 14
  pool: str = 'mean'
  norm_last: bool = True
  rotary: bool = False
  mlp_norm: bool = False  # a norm in the gated MLPs; checkpoints then store fc1's gate and value separately

  def attention(self, name: str) -> nn.Module:
    return RotaryAttention(self.heads, self.prefix, self.angles if self.rotary else None, name=name)

  def angles(self) -> jax.Array:
    places = np.arange(self.grid) * (REFERENCE / self.grid)
    return axial_angles(places, places, frequencies(self.dim // self.heads // 4))

  def perceptron(self, name: str) -> nn.Module:
    norm = self.epsilon if self.mlp_norm else None
    return GatedMlp(self.hidden, norm, name=name) if self.gated else super().perceptron(name)


def timm(config: EvaConfig) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, blocks.0.attn.q_bias or blocks.0.attn.q_proj, fc_norm, head."""
  layout = names.TIMM._replace(norm='fc_norm', biases=('attn.q_bias', 'attn.v_bias'))
  if config.mlp_norm:
    layout = layout._replace(
      qkv=('attn.q_proj.', 'attn.k_proj.', 'attn.v_proj.'),
      biases=('attn.q_proj.bias', 'attn.v_proj.bias'),
      mlp=('mlp.fc1_g', 'mlp.fc1_x', 'mlp.fc2'),
    )
  yield from names.layout(config, layout)
  for i in range(config.depth if config.mlp_norm else 0):
    yield from rules.affine(f'blocks.{i}.mlp.norm', f'backbone/block{i}/mlp/norm')
  yield from (rules.Rule(pattern, None) for pattern in ('rope.*', '*.rope.*'))  # angles, derived from the size


_SIZES = {  # dim, depth, heads, hidden channels of the MLPs, image sizes
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
_TAGS = {  # tag of timm's default weights, crop mode; at 224 pixels only giant's have a head
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
FIGURES = {  # top-1: timm's results/results-imagenet.csv; the weights mim_in22k have no head
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
