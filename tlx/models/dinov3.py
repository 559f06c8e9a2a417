"""DINOv3 ViTs (Siméoni et al. 2025, https://arxiv.org/abs/2508.10104) and the tiny one of EUPE (2603.22387).

Queries and keys are rotated by the position of the patch, in place of a table of positions. Any image size works, for
example tlx.load('vit_small_patch16_dinov3', image_size=512). Pretraining also rescales the positions at
random; fine-tuning leaves that out. Checkpoints have no head. The product for query, key and value has no bias, because
the learned ones are zero; the variants named qkvb have it. timm's models pool the patches, transformers' the class
token.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from tlx.nn import transformer_rules as names
from tlx.nn.rotary import RotaryAttention, axial_angles, frequencies
from tlx.nn.transformer import TransformerConfig
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules

TEMPERATURE = 100.0  # from the image's centre to its edge the fastest angle makes one turn, the slowest 1 / 100
_TRANSFORMERS = names.TRANSFORMERS._replace(
  patches='embeddings.patch_embeddings',
  block='layer.{}',
  norms=('norm1', 'norm2'),
  qkv=('attention.q_proj.', 'attention.k_proj.', 'attention.v_proj.'),
  biases=('attention.q_proj.bias', 'attention.v_proj.bias'),
  proj='attention.o_proj',
  norm='norm',
)


@dataclasses.dataclass(frozen=True)
class Dino3Config(TransformerConfig):
  """Shape of one variant."""

  size: int = 256
  epsilon: float = 1e-5
  qkv_bias: bool = False  # a bias of queries and values; keys have none
  layer_scale: float | None = 1e-5
  registers: int = 4
  positions: bool = False
  pool: str = 'mean'

  def attention(self, name: str) -> nn.Module:
    return RotaryAttention(self.heads, self.prefix, self.angles, halves=True, qkv_bias=self.qkv_bias, name=name)

  def angles(self) -> jax.Array:
    """The rotary angles at each patch's centre: [grid * grid, dim / heads / 2], radians."""
    places = 2 * np.pi * ((2 * np.arange(self.grid) + 1) / self.grid - 1)
    return axial_angles(places, places, frequencies(self.dim // self.heads // 4, TEMPERATURE))


def timm(config: Dino3Config) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, reg_token, blocks.0.attn.qkv, blocks.0.mlp.fc1 or blocks.0.mlp.fc1_g, head."""
  mlp = ('mlp.fc1_g', 'mlp.fc1_x', 'mlp.fc2') if config.gated else ('mlp.fc1', 'mlp.fc2')
  biases = ('attn.q_bias', 'attn.v_bias')
  return names.layout(config, names.TIMM._replace(scales=('gamma_1', 'gamma_2'), biases=biases, mlp=mlp))


def transformers(config: Dino3Config) -> Iterator[rules.Rule]:
  """transformers' names: embeddings.cls_token, layer.0.attention.q_proj. It has no head; ours is called classifier."""
  mlp = ('mlp.gate_proj',) * config.gated + ('mlp.up_proj', 'mlp.down_proj')
  yield from names.layout(config, _TRANSFORMERS._replace(mlp=mlp))
  yield rules.Rule('embeddings.mask_token', None)
  if not config.registers:
    yield rules.Rule('embeddings.register_tokens', None)  # empty


def of_transformers(config: Mapping[str, Any]) -> Dino3Config:
  """Makes our config from a complete config of transformers. Raises UsageError with all settings that tlx lacks."""
  gated, bias = config['use_gated_mlp'], config['query_bias']
  known = {'key_bias': False, 'value_bias': bias, 'proj_bias': True, 'mlp_bias': True, 'rope_theta': TEMPERATURE}
  records.require(config, known | ({'hidden_act': 'silu'} if gated else {}))
  return names.of_transformers(
    Dino3Config,
    {**config, 'hidden_act': 'gelu'} if gated else config,  # a gated MLP has a fixed activation
    gated=gated,
    qkv_bias=bias,
    registers=config['num_register_tokens'],
    pool='token',
  )


_SIZES = {  # dim, depth, heads, and the hidden channels of the MLPs unless they are 4 * dim
  'tiny': (192, 12, 3),
  'small': (384, 12, 6),
  'small_plus': (384, 12, 6),
  'base': (768, 12, 12),
  'large': (1024, 24, 16),
  'huge_plus': (1280, 32, 20),
  '7b': (4096, 40, 32, 16, 256, 8192),
}
VARIANTS = {
  f'vit_{size}_patch16_dinov3{"_qkvb" if bias else ""}': Dino3Config(
    *shape, gated=size.endswith(('plus', '7b')), qkv_bias=bias
  )
  for size, shape in _SIZES.items()
  for bias in {'tiny': (True,), '7b': (False,)}.get(size, (False, True))
}


def _checkpoint(name: str) -> Checkpoint:
  """Weights from web images. Those from satellite images (.sat493m) have their own preprocessing records on the hub."""
  tag, licence, paper = 'lvd1689m', 'dinov3-license', '2508.10104'
  if name.startswith('vit_tiny'):
    tag, licence, paper = 'eupe_lvd1689m', 'fair-noncommercial-research-license', '2603.22387'
  source = f'https://arxiv.org/abs/{paper}'
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', Preprocess(256, 1.0), licence, source)


CHECKPOINTS = {name: _checkpoint(name) for name in VARIANTS}
VARIANTS['dinov3_test'] = Dino3Config(16, 2, 2, size=64, mlp=24, gated=True, layer_scale=0.1, registers=2)
LAYOUTS = {'timm': timm, 'transformers': transformers}
TRANSFORMERS = {'dinov3_vit': of_transformers}
FIGURES = {  # with a head of 1,000 classes
  'vit_tiny_patch16_dinov3_qkvb': Figures(5_682_664, 1.737, 256),
  'vit_small_patch16_dinov3': Figures(21_971_944, 6.246, 256),
  'vit_small_patch16_dinov3_qkvb': Figures(21_981_160, 6.246, 256),
  'vit_small_plus_patch16_dinov3': Figures(29_068_264, 8.093, 256),
  'vit_small_plus_patch16_dinov3_qkvb': Figures(29_077_480, 8.093, 256),
  'vit_base_patch16_dinov3': Figures(86_410_216, 23.575, 256),
  'vit_base_patch16_dinov3_qkvb': Figures(86_428_648, 23.575, 256),
  'vit_large_patch16_dinov3': Figures(304_104_424, 82.370, 256),
  'vit_large_patch16_dinov3_qkvb': Figures(304_153_576, 82.370, 256),
  'vit_huge_plus_patch16_dinov3': Figures(841_790_440, 224.776, 256),
  'vit_huge_plus_patch16_dinov3_qkvb': Figures(841_872_360, 224.776, 256),
  'vit_7b_patch16_dinov3': Figures(6_720_127_976, 1774.673, 256),
}
