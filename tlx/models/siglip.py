"""Image towers of SigLIP (Zhai et al. 2023, https://arxiv.org/abs/2303.15343) and SigLIP 2 (2502.14786).

There is no class token: a learnable query pools the patches by attention. The text tower is dropped, and written back
on export.
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
class SigLipConfig(TransformerConfig):
  """Shape of one variant."""

  class_token: bool = False
  pool: str = 'map'


def npz(config: SigLipConfig, root: str = 'params/img/') -> Iterator[rules.Rule]:
  """The files of google-research/big_vision: params/img/embedding/kernel, MAPHead_0. The text tower is dropped."""
  yield from names.npz(config, root, new=True)
  for other in ('params/txt/*', 'params/t', 'params/b'):
    yield rules.Rule(other, None)


def of_transformers(config: Mapping[str, Any]) -> SigLipConfig:
  """Makes our config from transformers'. Its classifiers use the patches' mean; some towers lack the attention pool."""
  vision = config.get('vision_config', config)
  pool = 'map' if vision.get('vision_use_head', True) and not names.classifies(config) else 'mean'
  return names.of_transformers(SigLipConfig, vision, class_token=False, pool=pool)


_SIZES = {  # dim, depth, heads, and the hidden channels of the MLPs unless they are 4 * dim
  'base': (768, 12, 12),
  'large': (1024, 24, 16),
  'so400m': (1152, 27, 16, 4304),
  'giantopt': (1536, 40, 16),
}
_SHAPES = (
  ('base', 32, 256), ('base', 16, 224), ('base', 16, 256), ('base', 16, 384), ('base', 16, 512),
  ('large', 16, 256), ('large', 16, 384), ('large', 16, 512),
  ('so400m', 14, 224), ('so400m', 14, 378), ('so400m', 14, 384),
  ('so400m', 16, 256), ('so400m', 16, 384), ('so400m', 16, 512),
  ('giantopt', 16, 256), ('giantopt', 16, 384),
)  # fmt: skip
# Only SigLIP 2 has these shapes, and its GELU is the approximate one; timm runs the others with the exact GELU.
_APPROXIMATE = {('base', 32), ('so400m', 16), ('giantopt', 16)}


def _config(size: str, patch: int, image: int) -> SigLipConfig:
  dim, depth, heads, *mlp = _SIZES[size]
  approximate = (size, patch) in _APPROXIMATE or (size, image) == ('large', 512)
  return SigLipConfig(dim, depth, heads, patch, image, *mlp, activation='gelu_tanh' if approximate else 'gelu')


def _checkpoint(name: str, size: str, patch: int, image: int) -> Checkpoint:
  tag = 'webli' if (size, patch, image) == ('so400m', 14, 384) else 'v2_webli'
  preprocess = Preprocess(image, 0.9, 'bicubic', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
  source = f'https://arxiv.org/abs/{"2502.14786" if tag == "v2_webli" else "2303.15343"}'
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, 'apache-2.0', source)


_NAMED = {f'vit_{size}_patch{patch}_siglip_{image}': (size, patch, image) for size, patch, image in _SHAPES}
VARIANTS = {name: _config(*shape) for name, shape in _NAMED.items()}
VARIANTS['siglip_test'] = SigLipConfig(8, 2, 2, size=64, activation='gelu_tanh')
LAYOUTS = {
  'timm': names.timm,
  'npz': npz,
  'npz_tower': partial(npz, root='params/'),
  'transformers': names.clip,
  'transformers_base': partial(names.clip, prefix=''),
}
TRANSFORMERS = {'siglip': of_transformers, 'siglip_vision_model': of_transformers}
CHECKPOINTS = {name: _checkpoint(name, *shape) for name, shape in _NAMED.items()}
FIGURES = {  # with a head of 1,000 classes
  'vit_base_patch32_siglip_256': Figures(95_321_320, 5.745, 256),
  'vit_base_patch16_siglip_224': Figures(93_653_224, 17.709, 224),
  'vit_base_patch16_siglip_256': Figures(93_699_304, 23.411, 256),
  'vit_base_patch16_siglip_384': Figures(93_945_064, 56.064, 384),
  'vit_base_patch16_siglip_512': Figures(94_289_128, 108.121, 512),
  'vit_large_patch16_siglip_256': Figures(316_981_224, 81.281, 256),
  'vit_large_patch16_siglip_384': Figures(317_308_904, 191.927, 384),
  'vit_large_patch16_siglip_512': Figures(317_767_656, 363.744, 512),
  'vit_so400m_patch14_siglip_224': Figures(428_833_704, 110.178, 224),
  'vit_so400m_patch14_siglip_378': Figures(429_378_600, 335.174, 378),
  'vit_so400m_patch14_siglip_384': Figures(429_378_600, 335.174, 384),
  'vit_so400m_patch16_siglip_256': Figures(429_041_064, 110.231, 256),
  'vit_so400m_patch16_siglip_384': Figures(429_409_704, 259.469, 384),
  'vit_so400m_patch16_siglip_512': Figures(429_925_800, 489.806, 512),
  'vit_giantopt_patch16_siglip_256': Figures(1_164_705_256, 299.499, 256),
  'vit_giantopt_patch16_siglip_384': Figures(1_165_196_776, 696.491, 384),
}
