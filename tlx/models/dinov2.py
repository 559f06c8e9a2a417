"""DINOv2 ViTs (Oquab et al. 2023, https://arxiv.org/abs/2304.07193), also with registers (2309.16588).

They are pretrained without labels, so their checkpoints have no head. Native images are 518 x 518 pixels; any multiple
of 14 works, for example tlx.load('vit_small_patch14_dinov2', image_size=224).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tlx.nn import transformer_rules as names
from tlx.nn.transformer import TransformerConfig
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

LAYER_SCALE = 1e-5
_TRANSFORMERS = names.TRANSFORMERS._replace(norms=('norm1', 'norm2'), mlp=('mlp.fc1', 'mlp.fc2'))


@dataclasses.dataclass(frozen=True)
class DinoConfig(TransformerConfig):
  """Shape of one variant.

  With registers, timm's checkpoints add the class token's position to the token; transformers' keep them separate.
  """


def timm(config: DinoConfig) -> Iterator[rules.Rule]:
  """timm's names; without registers and gates they are also those of facebookresearch/dinov2."""
  yield from names.timm(config)
  yield rules.Rule('mask_token', None)


def transformers(config: DinoConfig, prefix: str = 'dinov2.') -> Iterator[rules.Rule]:
  """transformers' names: dinov2.embeddings.cls_token, dinov2.encoder.layer.0.mlp.weights_in, classifier."""
  if config.registers and not config.prefix_positions:
    raise rules.NoLayoutError("transformers stores the class token's position apart; timm has added it to the token")
  if prefix and bool(config.registers) != ('registers' in prefix):
    raise rules.NoLayoutError(f'{prefix[:-1]} is for models {"without" if config.registers else "with"} registers')
  found = _TRANSFORMERS._replace(mlp=('mlp.weights_in', 'mlp.weights_out')) if config.gated else _TRANSFORMERS
  yield from names.layout(config, found.under(prefix))
  yield rules.Rule(f'{prefix}embeddings.mask_token', None)


def of_transformers(config: Mapping[str, Any]) -> DinoConfig:
  """Makes our config from transformers'. Its classifiers use the class token and the mean of the patches together."""
  gated, dim = config['use_swiglu_ffn'], config['hidden_size']
  mlp = int(dim * config['mlp_ratio'])
  mlp = (int(mlp * 2 / 3) + 7) // 8 * 8 if gated else mlp
  return names.of_transformers(
    DinoConfig,
    config,
    mlp=None if mlp == 4 * dim else mlp,
    gated=gated,
    layer_scale=LAYER_SCALE,
    registers=config.get('num_register_tokens', 0),
    pool='token_mean' if names.classifies(config) else 'token',
  )


_SIZES = {  # dim, depth, heads, hidden channels of the gated MLPs
  'small': (384, 12, 6),
  'base': (768, 12, 12),
  'large': (1024, 24, 16),
  'giant': (1536, 40, 24, 4096),
}


def _config(size: str, registers: int) -> DinoConfig:
  dim, depth, heads, *mlp = _SIZES[size]
  return DinoConfig(
    dim, depth, heads, 14, 518, *mlp,
    gated=bool(mlp), layer_scale=LAYER_SCALE, registers=registers, prefix_positions=not registers,
  )  # fmt: skip


VARIANTS = {
  f'vit_{size}_patch14_{"reg4_" if registers else ""}dinov2': _config(size, registers)
  for size in _SIZES
  for registers in (0, 4)
}
CHECKPOINTS = {
  name: Checkpoint(
    name,
    f'hf-hub:timm/{name}.lvd142m',
    'timm',
    Preprocess(518, 1.0),
    'apache-2.0',
    f'https://arxiv.org/abs/{"2309.16588" if config.registers else "2304.07193"}',
  )
  for name, config in VARIANTS.items()
}
_TEST = DinoConfig(8, 2, 2, 14, 64, mlp=24, gated=True, layer_scale=0.1, registers=2)  # 64 pixels: 8 are left over
VARIANTS['dinov2_test'] = dataclasses.replace(_TEST, pool='token_mean')
VARIANTS['dinov2_reg_test'] = dataclasses.replace(_TEST, prefix_positions=False)
LAYOUTS = {
  'timm': timm,
  'transformers': transformers,
  'transformers_registers': partial(transformers, prefix='dinov2_with_registers.'),
  'transformers_base': partial(transformers, prefix=''),
}
TRANSFORMERS = {'dinov2': of_transformers, 'dinov2_with_registers': of_transformers}
FIGURES = {  # with a head of 1,000 classes
  'vit_small_patch14_dinov2': Figures(22_441_192, 46.697, 518),
  'vit_small_patch14_reg4_dinov2': Figures(22_442_344, 46.883, 518),
  'vit_base_patch14_dinov2': Figures(87_348_712, 151.574, 518),
  'vit_base_patch14_reg4_dinov2': Figures(87_351_016, 152.117, 518),
  'vit_large_patch14_dinov2': Figures(305_392_616, 506.805, 518),
  'vit_large_patch14_reg4_dinov2': Figures(305_395_688, 508.552, 518),
  'vit_giant_patch14_dinov2': Figures(1_138_016_232, 1783.344, 518),
  'vit_giant_patch14_reg4_dinov2': Figures(1_138_020_840, 1789.223, 518),
}
