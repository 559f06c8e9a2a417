"""Image towers of CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020): OpenCLIP, OpenAI, MetaCLIP and DFN.

Names with quickgelu have OpenAI's activation, with which OpenAI, MetaCLIP and DFN trained their weights. The text tower
and the projection into the common space are dropped, and written back on export.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tlx.nn import transformer_rules as names
from tlx.nn.transformer import TransformerConfig
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_OPEN_CLIP = names.Names(
  patches='conv1',
  tokens=('class_embedding', '', ''),
  positions='positional_embedding',
  pre_norm='ln_pre',
  block='transformer.resblocks.{}',
  norms=('ln_1', 'ln_2'),
  qkv=('attn.in_proj_',),
  proj='attn.out_proj',
  scales=('', ''),
  mlp=('mlp.c_fc', 'mlp.c_proj'),
  norm='ln_post',
  head='head',
  flat=True,
)


@dataclasses.dataclass(frozen=True)
class ClipConfig(TransformerConfig):
  """Shape of one variant."""

  epsilon: float = 1e-5
  pre_norm: bool = True


def open_clip(config: ClipConfig) -> Iterator[rules.Rule]:
  """OpenAI's and OpenCLIP's names: visual.transformer.resblocks.0.attn.in_proj_weight."""
  yield from names.layout(config, _OPEN_CLIP.under('visual.'))
  for other in ('transformer.*', 'token_embedding.*', 'ln_final.*'):
    yield rules.Rule(other, None)
  for other in ('visual.proj', 'positional_embedding', 'text_projection', 'logit_scale', 'logit_bias', 'attn_mask'):
    yield rules.Rule(other, None)


def of_transformers(config: Mapping[str, Any]) -> ClipConfig:
  """Makes our config from transformers'. Its classifiers use the mean of the patches before the last norm."""
  pool = 'raw_mean' if names.classifies(config) else 'token'
  return names.of_transformers(ClipConfig, config.get('vision_config', config), pool=pool)


_SIZES = {  # dim, depth, heads, and the hidden channels of the MLPs unless they are 4 * dim
  'xsmall': (256, 10, 4),
  'medium': (512, 12, 8),
  'betwixt': (640, 12, 10),
  'base': (768, 12, 12),
  'base_plus': (896, 12, 14),
  'large': (1024, 24, 16),
  'huge': (1280, 32, 16),
  'giant': (1408, 40, 16, 6144),
  'gigantic': (1664, 48, 16, 8192),
}
_FINE = 'laion2b_ft_in12k_in1k'
_RECORDS = {  # timm's default weights: size, tag, crop, crop mode, licence
  'vit_xsmall_patch16_clip_224': ('xsmall', 'tinyclip_yfcc15m', 0.9, 'center', 'mit'),
  'vit_medium_patch32_clip_224': ('medium', 'tinyclip_laion400m', 0.9, 'center', 'mit'),
  'vit_medium_patch16_clip_224': ('medium', 'tinyclip_yfcc15m', 0.9, 'center', 'mit'),
  'vit_betwixt_patch32_clip_224': ('betwixt', 'tinyclip_laion400m', 0.9, 'center', 'mit'),
  'vit_base_patch32_clip_224': ('base', _FINE, 0.9, 'center', 'apache-2.0'),
  'vit_base_patch32_clip_256': ('base', 'datacompxl', 1.0, 'center', 'apache-2.0'),
  'vit_base_patch32_clip_384': ('base', _FINE, 1.0, 'center', 'apache-2.0'),
  'vit_base_patch32_clip_448': ('base', _FINE, 1.0, 'center', 'apache-2.0'),
  'vit_base_patch16_clip_224': ('base', _FINE, 0.95, 'center', 'apache-2.0'),
  'vit_base_patch16_clip_384': ('base', _FINE, 1.0, 'squash', 'apache-2.0'),
  'vit_base_patch16_plus_clip_240': ('base_plus', 'laion400m_e32', 1.0, 'center', 'mit'),
  'vit_large_patch14_clip_224': ('large', _FINE, 1.0, 'center', 'apache-2.0'),
  'vit_large_patch14_clip_336': ('large', _FINE, 1.0, 'squash', 'apache-2.0'),
  'vit_huge_patch14_clip_224': ('huge', _FINE, 1.0, 'center', 'apache-2.0'),
  'vit_huge_patch14_clip_336': ('huge', _FINE, 1.0, 'squash', 'apache-2.0'),
  'vit_huge_patch14_clip_378': ('huge', 'dfn5b', 1.0, 'center', 'apple-ascl'),
  'vit_giant_patch14_clip_224': ('giant', 'laion2b', 1.0, 'center', 'apache-2.0'),
  'vit_gigantic_patch14_clip_224': ('gigantic', 'laion2b', 1.0, 'center', 'apache-2.0'),
  'vit_gigantic_patch14_clip_378': ('gigantic', 'metaclip2_worldwide', 1.0, 'squash', 'cc-by-nc-4.0'),
  'vit_base_patch32_clip_quickgelu_224': ('base', 'laion400m_e32', 0.9, 'center', 'mit'),
  'vit_base_patch16_clip_quickgelu_224': ('base', 'metaclip_2pt5b', 1.0, 'center', 'cc-by-nc-4.0'),
  'vit_large_patch14_clip_quickgelu_224': ('large', 'dfn2b', 1.0, 'center', 'apple-ascl'),
  'vit_large_patch14_clip_quickgelu_336': ('large', 'openai', 1.0, 'center', 'apache-2.0'),
  'vit_huge_patch14_clip_quickgelu_224': ('huge', 'dfn5b', 1.0, 'center', 'apple-ascl'),
  'vit_huge_patch14_clip_quickgelu_378': ('huge', 'dfn5b', 1.0, 'center', 'apple-ascl'),
  'vit_gigantic_patch14_clip_quickgelu_224': ('gigantic', 'metaclip_2pt5b', 1.0, 'center', 'cc-by-nc-4.0'),
}


def _config(name: str, size: str) -> ClipConfig:
  _, _, patch, *_, image = name.split('_')
  dim, depth, heads, *mlp = _SIZES[size]
  activation = 'quick_gelu' if 'quickgelu' in name else 'gelu'
  return ClipConfig(dim, depth, heads, int(patch.removeprefix('patch')), int(image), *mlp, activation=activation)


def _checkpoint(name: str, size: str, tag: str, crop: float, mode: str, license: str) -> Checkpoint:
  half = size == 'large' and tag == _FINE  # trained with mean and standard deviation 0.5
  image = int(name.rpartition('_')[2])
  preprocess = Preprocess(image, crop, 'bicubic', *(((0.5,) * 3,) * 2 if half else (MEAN, STD)), mode)
  location = f'hf-hub:timm/{name.replace("_quickgelu", "")}.{tag}'
  return Checkpoint(name, location, 'timm', preprocess, license, 'https://arxiv.org/abs/2212.07143')


VARIANTS = {name: _config(name, size) for name, (size, *_) in _RECORDS.items()}
VARIANTS['clip_test'] = ClipConfig(8, 2, 2, size=64, activation='quick_gelu')
LAYOUTS = {
  'timm': names.timm,
  'transformers': names.clip,
  'transformers_base': partial(names.clip, prefix=''),
  'open_clip': open_clip,
}
TRANSFORMERS = {'clip': of_transformers, 'clip_vision_model': of_transformers}
CHECKPOINTS = {name: _checkpoint(name, *record) for name, record in _RECORDS.items()}
FIGURES = {  # with a head of 1,000 classes; top-1: timm's results/results-imagenet.csv at this size
  'vit_xsmall_patch16_clip_224': Figures(8_402_920, 1.787, 224),
  'vit_medium_patch32_clip_224': Figures(39_942_632, 1.996, 224),
  'vit_medium_patch16_clip_224': Figures(38_838_248, 7.991, 224),
  'vit_betwixt_patch32_clip_224': Figures(61_724_520, 3.084, 224),
  'vit_base_patch32_clip_224': Figures(88_225_000, 4.409, 224, 83.304),
  'vit_base_patch32_clip_256': Figures(88_236_520, 5.750, 256),
  'vit_base_patch32_clip_384': Figures(88_297_960, 13.044, 384, 85.398),
  'vit_base_patch32_clip_448': Figures(88_337_896, 17.911, 448, 85.792),
  'vit_base_patch16_clip_224': Figures(86_568_424, 17.564, 224, 86.204),
  'vit_base_patch16_clip_384': Figures(86_860_264, 55.484, 384, 87.210),
  'vit_base_patch16_plus_clip_240': Figures(117_537_384, 27.381, 240),
  'vit_large_patch14_clip_224': Figures(304_204_776, 81.013, 224, 87.900),
  'vit_large_patch14_clip_336': Figures(304_532_456, 190.960, 336, 88.190),
  'vit_huge_patch14_clip_224': Figures(632_047_080, 167.295, 224, 88.288),
  'vit_huge_patch14_clip_336': Figures(632_456_680, 390.725, 336, 88.634),
  'vit_huge_patch14_clip_378': Figures(632_652_520, 503.481, 378),
  'vit_giant_patch14_clip_224': Figures(1_012_612_840, 267.031, 224),
  'vit_gigantic_patch14_clip_224': Figures(1_844_442_344, 483.748, 224),
  'vit_gigantic_patch14_clip_378': Figures(1_845_229_416, 1429.226, 378),
  'vit_base_patch32_clip_quickgelu_224': Figures(88_225_000, 4.409, 224),
  'vit_base_patch16_clip_quickgelu_224': Figures(86_568_424, 17.564, 224),
  'vit_large_patch14_clip_quickgelu_224': Figures(304_204_776, 81.013, 224),
  'vit_large_patch14_clip_quickgelu_336': Figures(304_532_456, 190.960, 336),
  'vit_huge_patch14_clip_quickgelu_224': Figures(632_047_080, 167.295, 224),
  'vit_huge_patch14_clip_quickgelu_378': Figures(632_652_520, 503.481, 378),
  'vit_gigantic_patch14_clip_quickgelu_224': Figures(1_844_442_344, 483.748, 224),
}
