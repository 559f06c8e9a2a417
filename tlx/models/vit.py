"""ViT tiny to gigantic (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929), with AugReg's or MAE's weights.

MAE's weights are 'hf-hub:timm/vit_base_patch16_224.mae', or facebook/vit-mae-base in transformers' layout. Google's own
files (B_16.npz, ...) need no config: tlx.load('vit_base_patch16_224', weights='B_16.npz').
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tlx.nn import transformer_rules as names
from tlx.nn.transformer import TransformerConfig
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
  """Shape of one variant. The defaults are ViT's."""


def timm(config: ViTConfig) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, blocks.0.attn.qkv, head."""
  yield from names.timm(config)
  yield rules.Rule('pre_logits.*', None)  # a pretraining layer; the fine-tuned models lack it


def torchvision(config: ViTConfig) -> Iterator[rules.Rule]:
  """torchvision's names: conv_proj, encoder.layers.encoder_layer_0.self_attention.in_proj_weight, heads.head."""
  return names.layout(config, names.TORCHVISION)


def torchvision_files(config: ViTConfig) -> Iterator[rules.Rule]:
  """Names in torchvision's files, some older than in its code: encoder.layers.encoder_layer_0.mlp.linear_1."""
  return names.layout(config, names.TORCHVISION._replace(mlp=('mlp.linear_1', 'mlp.linear_2')))


def transformers(config: ViTConfig, prefix: str = 'vit.') -> Iterator[rules.Rule]:
  """transformers' names for ViT and ViTMAE's encoder: vit.embeddings.cls_token, vit.encoder.layer.0, classifier."""
  yield from names.layout(config, names.TRANSFORMERS.under(prefix))
  for unused in ('pooler.*', 'embeddings.mask_token'):
    yield rules.Rule(prefix + unused, None)
  yield rules.Rule('decoder.*', None)  # only for masked pretraining


def big_vision(config: ViTConfig) -> Iterator[rules.Rule]:
  """The npz files of google-research/big_vision: params/embedding/kernel."""
  return names.npz(config, root='params/', new=True)


def of_transformers(config: Mapping[str, Any]) -> ViTConfig:
  return names.of_transformers(ViTConfig, config)


_SIZES = {  # dim, depth, heads, and the hidden channels of the MLPs unless they are 4 * dim
  'tiny': (192, 12, 3),
  'small': (384, 12, 6),
  'base': (768, 12, 12),
  'large': (1024, 24, 16),
  'huge': (1280, 32, 16),
  'giant': (1408, 40, 16, 6144),
  'gigantic': (1664, 48, 16, 8192),
}
_TAGS = {  # (size, patch, image): tag of timm's default weights
  ('tiny', 16, 224): 'augreg_in21k_ft_in1k',
  ('tiny', 16, 384): 'augreg_in21k_ft_in1k',
  ('small', 32, 224): 'augreg_in21k_ft_in1k',
  ('small', 32, 384): 'augreg_in21k_ft_in1k',
  ('small', 16, 224): 'augreg_in21k_ft_in1k',
  ('small', 16, 384): 'augreg_in21k_ft_in1k',
  ('small', 8, 224): 'dino',
  ('base', 32, 224): 'augreg_in21k_ft_in1k',
  ('base', 32, 384): 'augreg_in21k_ft_in1k',
  ('base', 16, 224): 'augreg2_in21k_ft_in1k',
  ('base', 16, 384): 'augreg_in21k_ft_in1k',
  ('base', 8, 224): 'augreg2_in21k_ft_in1k',
  ('large', 32, 224): 'orig_in21k',
  ('large', 32, 384): 'orig_in21k_ft_in1k',
  ('large', 16, 224): 'augreg_in21k_ft_in1k',
  ('large', 16, 384): 'augreg_in21k_ft_in1k',
  ('large', 14, 224): None,
  ('huge', 14, 224): 'orig_in21k',
  ('giant', 14, 224): None,
  ('gigantic', 14, 224): None,
}


def _config(size: str, patch: int, image: int) -> ViTConfig:
  dim, depth, heads, *mlp = _SIZES[size]
  return ViTConfig(dim, depth, heads, patch, image, *mlp)


VARIANTS = {f'vit_{size}_patch{patch}_{image}': _config(size, patch, image) for size, patch, image in _TAGS}
VARIANTS['vit_test'] = ViTConfig(8, 2, 2, patch=16, size=64)
LAYOUTS = {
  'timm': timm,
  'torchvision': torchvision,
  'torchvision_files': torchvision_files,
  'transformers': transformers,
  'transformers_base': partial(transformers, prefix=''),
  'npz': names.npz,
  'big_vision': big_vision,
}
TRANSFORMERS = {'vit': of_transformers, 'vit_mae': of_transformers}


def _checkpoint(name: str, tag: str, image: int) -> Checkpoint:
  colours = () if tag == 'dino' else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
  source = 'https://arxiv.org/abs/2104.14294' if tag == 'dino' else 'https://arxiv.org/abs/2106.10270'
  preprocess = Preprocess(image, 0.9 if image == 224 else 1.0, 'bicubic', *colours)
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, 'apache-2.0', source)


CHECKPOINTS = {
  name: _checkpoint(name, tag, image)
  for (size, patch, image), tag in _TAGS.items()
  if tag and (name := f'vit_{size}_patch{patch}_{image}')
}
FIGURES = {  # with a head of 1,000 classes; top-1: timm's results/results-imagenet.csv at this size
  'vit_tiny_patch16_224': Figures(5_717_416, 1.254, 224, 75.452),
  'vit_tiny_patch16_384': Figures(5_790_376, 4.682, 384, 78.438),
  'vit_small_patch32_224': Figures(22_878_952, 1.143, 224, 76.010),
  'vit_small_patch32_384': Figures(22_915_432, 3.443, 384, 80.476),
  'vit_small_patch16_224': Figures(22_050_664, 4.599, 224, 81.402),
  'vit_small_patch16_384': Figures(22_196_584, 15.490, 384, 83.814),
  'vit_small_patch8_224': Figures(22_055_272, 22.406, 224),
  'vit_base_patch32_224': Figures(88_224_232, 4.409, 224, 80.732),
  'vit_base_patch32_384': Figures(88_297_192, 13.044, 384, 83.358),
  'vit_base_patch16_224': Figures(86_567_656, 17.564, 224, 85.108),
  'vit_base_patch16_384': Figures(86_859_496, 55.484, 384, 86.010),
  'vit_base_patch8_224': Figures(86_576_872, 78.148, 224, 86.252),
  'vit_large_patch32_224': Figures(306_535_400, 15.378, 224),
  'vit_large_patch32_384': Figures(306_632_680, 45.276, 384, 81.508),
  'vit_large_patch16_224': Figures(304_326_632, 61.555, 224, 85.856),
  'vit_large_patch16_384': Figures(304_715_752, 191.066, 384, 87.096),
  'vit_large_patch14_224': Figures(304_203_752, 81.013, 224),
  'vit_huge_patch14_224': Figures(632_045_800, 167.295, 224),
  'vit_giant_patch14_224': Figures(1_012_611_432, 267.031, 224),
  'vit_gigantic_patch14_224': Figures(1_844_440_680, 483.748, 224),
}
