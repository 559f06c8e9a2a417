"""DeiT (Touvron et al. 2020, https://arxiv.org/abs/2012.12877) and DeiT III (https://arxiv.org/abs/2204.07118).

The distilled models have two heads, which their authors average; tlx has one. A checkpoint in transformers' layout
gives the class token's head if it has one (DeiTForImageClassification), else none.
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
class DeiTConfig(TransformerConfig):
  """Shape of one variant. DeiT III has layer scales, and its class token has no position."""


def transformers(config: DeiTConfig, prefix: str = 'deit.') -> Iterator[rules.Rule]:
  """transformers' names: deit.embeddings.distillation_token, deit.encoder.layer.0, classifier."""
  if config.layer_scale is not None:
    raise rules.NoLayoutError('transformers has no DeiT III')
  if prefix and not config.distilled:
    raise rules.NoLayoutError("transformers' DeiT is the distilled one; the others are its ViT (transformers_base)")
  yield from names.layout(config, names.TRANSFORMERS.under(prefix))
  for unused in (f'{prefix}pooler.*', f'{prefix}embeddings.mask_token'):
    yield rules.Rule(unused, None)
  for head in ('cls_classifier.*', 'distillation_classifier.*', 'decoder.*'):
    yield rules.Rule(head, None)


def of_transformers(config: Mapping[str, Any]) -> DeiTConfig:
  """Makes our config from transformers'. Its DeiT is the distilled one; it treats the others as ViT."""
  return names.of_transformers(DeiTConfig, config, distilled=True)


_SIZES = {'tiny': (192, 12, 3), 'small': (384, 12, 6), 'medium': (512, 12, 8), 'base': (768, 12, 12),
          'large': (1024, 24, 16), 'huge': (1280, 32, 16)}  # fmt: skip
_FIRST = (('tiny', 16, 224), ('small', 16, 224), ('base', 16, 224), ('base', 16, 384))
_THIRD = (
  ('small', 16, 224),
  ('small', 16, 384),
  ('medium', 16, 224),
  ('base', 16, 224),
  ('base', 16, 384),
  ('large', 16, 224),
  ('large', 16, 384),
  ('huge', 14, 224),
)
VARIANTS = {
  **{f'deit_{size}_patch{patch}_{image}': DeiTConfig(*_SIZES[size], patch, image) for size, patch, image in _FIRST},
  **{
    f'deit3_{size}_patch{patch}_{image}': DeiTConfig(
      *_SIZES[size], patch, image, layer_scale=1e-6, prefix_positions=False
    )
    for size, patch, image in _THIRD
  },
  'deit_test': DeiTConfig(8, 2, 2, size=64, distilled=True),
  'deit3_test': DeiTConfig(8, 2, 2, size=64, layer_scale=0.1, prefix_positions=False),
}
LAYOUTS = {'timm': names.timm, 'transformers': transformers, 'transformers_base': partial(transformers, prefix='')}
TRANSFORMERS = {'deit': of_transformers}


def _checkpoint(name: str, image: int) -> Checkpoint:
  source = f'https://arxiv.org/abs/{"2204.07118" if name.startswith("deit3") else "2012.12877"}'
  preprocess = Preprocess(image, 0.9 if image == 224 else 1.0)
  return Checkpoint(name, f'hf-hub:timm/{name}.fb_in1k', 'timm', preprocess, 'apache-2.0', source)


CHECKPOINTS = {name: _checkpoint(name, config.size) for name, config in VARIANTS.items() if not name.endswith('_test')}
FIGURES = {  # with a head of 1,000 classes; top-1: timm's results/results-imagenet.csv at this size
  'deit_tiny_patch16_224': Figures(5_717_416, 1.254, 224, 72.190),
  'deit_small_patch16_224': Figures(22_050_664, 4.599, 224, 79.856),
  'deit_base_patch16_224': Figures(86_567_656, 17.564, 224, 81.980),
  'deit_base_patch16_384': Figures(86_859_496, 55.484, 384, 83.108),
  'deit3_small_patch16_224': Figures(22_059_496, 4.599, 224, 81.382),
  'deit3_small_patch16_384': Figures(22_205_416, 15.490, 384, 83.432),
  'deit3_medium_patch16_224': Figures(38_849_512, 7.991, 224, 83.090),
  'deit3_base_patch16_224': Figures(86_585_320, 17.564, 224, 83.800),
  'deit3_base_patch16_384': Figures(86_877_160, 55.484, 384, 85.088),
  'deit3_large_patch16_224': Figures(304_374_760, 61.555, 224, 84.772),
  'deit3_large_patch16_384': Figures(304_763_880, 191.066, 384, 85.820),
  'deit3_huge_patch14_224': Figures(632_126_440, 167.295, 224, 85.204),
}
