"""EfficientNetV2 (Tan & Le 2021, https://arxiv.org/abs/2104.00298): early blocks expand by a dense convolution.

Names with tf_ are for weights that were trained in TensorFlow, with its padding and its batch norm epsilon. Names with
tv_ are torchvision's models, which use TensorFlow's epsilon only. The rw variants are Wightman's, from before the
authors' code.
"""

import dataclasses
import math
from collections.abc import Iterator

from tlx.nn import inverted_residual as ir
from tlx.nn.activation import silu
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

# Table 4 of the paper. Each stage: kind, stride, expansion, channels, repeats. Inverted blocks have gates.
BASE = (
  ('conv', 1, 1, 16, 1),
  ('fused', 2, 4, 32, 2),
  ('fused', 2, 4, 48, 2),
  ('inverted', 2, 4, 96, 3),
  ('inverted', 1, 6, 112, 5),
  ('inverted', 2, 6, 192, 8),
)
S = (
  ('conv', 1, 1, 24, 2),
  ('fused', 2, 4, 48, 4),
  ('fused', 2, 4, 64, 4),
  ('inverted', 2, 4, 128, 6),
  ('inverted', 1, 6, 160, 9),
  ('inverted', 2, 6, 256, 15),
)
RW = (('fused', 1, 1, 24, 2), *S[1:5], ('inverted', 2, 6, 272, 15))
M = (
  ('conv', 1, 1, 24, 3),
  ('fused', 2, 4, 48, 5),
  ('fused', 2, 4, 80, 5),
  ('inverted', 2, 4, 160, 7),
  ('inverted', 1, 6, 176, 14),
  ('inverted', 2, 6, 304, 18),
  ('inverted', 1, 6, 512, 5),
)
L = (
  ('conv', 1, 1, 32, 4),
  ('fused', 2, 4, 64, 7),
  ('fused', 2, 4, 96, 7),
  ('inverted', 2, 4, 192, 10),
  ('inverted', 1, 6, 224, 19),
  ('inverted', 2, 6, 384, 25),
  ('inverted', 1, 6, 640, 7),
)
XL = (
  ('conv', 1, 1, 32, 4),
  ('fused', 2, 4, 64, 8),
  ('fused', 2, 4, 96, 8),
  ('inverted', 2, 4, 192, 16),
  ('inverted', 1, 6, 256, 24),
  ('inverted', 2, 6, 512, 32),
  ('inverted', 1, 6, 640, 8),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetV2Config(ir.Network):
  """Shape of one variant: a table scaled by `widen` and, stage by stage, by `deepen`."""

  stages: tuple[tuple[str, int, int, int, int], ...]
  stem: int
  widen: float = 1.0
  deepen: float | tuple[float, ...] = 1.0
  final: int = 1280  # channels of the last convolution before scaling
  limit: float = 0.9  # rounding never goes below this share of the channels

  def plan(self) -> ir.Plan:
    scaled = lambda channels: ir.round_channels(channels * self.widen, self.limit)
    deepen = self.deepen if isinstance(self.deepen, tuple) else (self.deepen,) * len(self.stages)
    gate = lambda kind: ir.Gate() if kind == 'inverted' else None
    stages = tuple(
      tuple(
        ir.Block(kind, 3, 1 if b else stride, expansion, scaled(channels), silu, gate(kind))
        for b in range(math.ceil(repeats * times))
      )
      for times, (kind, stride, expansion, channels, repeats) in zip(deepen, self.stages)
    )
    return ir.Plan(scaled(self.stem), stages, scaled(self.final), silu)


def torchvision(config: EfficientNetV2Config) -> Iterator[rules.Rule]:
  """torchvision's names: features.0.0, features.1.0.block.0.0, features.8.0, classifier.1."""
  if config.stages == BASE:
    raise rules.NoLayoutError('torchvision has no EfficientNetV2-B0 to B3')
  return ir.torchvision(config)


_SIZES = {'s': (S, 24), 'm': (M, 24), 'l': (L, 32), 'xl': (XL, 32)}
_BASE = {'b0': (1.0, 1.0), 'b1': (1.0, 1.1), 'b2': (1.1, 1.2), 'b3': (1.2, 1.4)}  # widen, deepen
VARIANTS = {  # torchvision uses PyTorch's momentum here
  f'{prefix}efficientnetv2_{size}': EfficientNetV2Config(*_SIZES[size], **{**ir.PREFIXES[prefix], 'momentum': 0.9})
  for prefix, sizes in {'': _SIZES, 'tf_': _SIZES, 'tv_': ('s', 'm', 'l')}.items()
  for size in sizes
}
VARIANTS |= {
  f'tf_efficientnetv2_{name}': EfficientNetV2Config(BASE, 32, *scale, limit=0.0, **ir.PREFIXES['tf_'])
  for name, scale in _BASE.items()
}
VARIANTS |= {
  'efficientnetv2_rw_t': EfficientNetV2Config(S, 24, 0.8, 0.9),
  'efficientnetv2_rw_s': EfficientNetV2Config(RW, 24, final=1792),
  'efficientnetv2_rw_m': EfficientNetV2Config(RW, 24, 1.2, (1.2,) * 4 + (1.6,) * 2, 1792),
  'efficientnetv2_test': EfficientNetV2Config(
    (('conv', 1, 1, 8, 1), ('fused', 2, 2, 16, 2), ('inverted', 2, 2, 16, 2)), 8, final=24
  ),
}
LAYOUTS = {'timm': ir.timm, 'torchvision': torchvision}
# torchvision's weights need TensorFlow's epsilon, whatever name the user asks for.
LAYOUT_VARIANTS = {'torchvision': ir.weights_of('tv_', VARIANTS)}

_HALF = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
_TIMM = {  # tag, preprocessing
  'tf_efficientnetv2_b0': ('in1k', Preprocess(192)),
  'tf_efficientnetv2_b1': ('in1k', Preprocess(192, 0.882)),
  'tf_efficientnetv2_b2': ('in1k', Preprocess(208, 0.89)),
  'tf_efficientnetv2_b3': ('in21k_ft_in1k', Preprocess(240, 0.9, mode='squash', **_HALF)),
  'tf_efficientnetv2_s': ('in21k_ft_in1k', Preprocess(300, 1.0, **_HALF)),
  'tf_efficientnetv2_m': ('in21k_ft_in1k', Preprocess(384, 1.0, mode='squash', **_HALF)),
  'tf_efficientnetv2_l': ('in21k_ft_in1k', Preprocess(384, 1.0, mode='squash', **_HALF)),
  'tf_efficientnetv2_xl': ('in21k_ft_in1k', Preprocess(384, 1.0, mode='squash', **_HALF)),
  'efficientnetv2_rw_t': ('ra2_in1k', Preprocess(224, 1.0)),
  'efficientnetv2_rw_s': ('ra2_in1k', Preprocess(288, 1.0)),
  'efficientnetv2_rw_m': ('agc_in1k', Preprocess(320, 1.0)),
}
_TORCHVISION = {  # file, preprocessing
  'tv_efficientnetv2_s': ('efficientnet_v2_s-dd5fe13b', Preprocess(384, 1.0, 'bilinear')),
  'tv_efficientnetv2_m': ('efficientnet_v2_m-dc08266a', Preprocess(480, 1.0, 'bilinear')),
  'tv_efficientnetv2_l': ('efficientnet_v2_l-59c71312', Preprocess(480, 1.0, **_HALF)),
}
CHECKPOINTS = {
  name: Checkpoint(
    name, f'hf-hub:timm/{name}.{tag}', 'timm', record, license='apache-2.0', source='https://arxiv.org/abs/2104.00298'
  )
  for name, (tag, record) in _TIMM.items()
}
CHECKPOINTS |= {name: ir.of_torchvision(name, file, record) for name, (file, record) in _TORCHVISION.items()}
FIGURES = {  # top-1: timm's results/results-imagenet.csv; for tv_ torchvision's documentation
  'efficientnetv2_s': Figures(21_458_488, 4.708, 288, None),
  'efficientnetv2_m': Figures(54_139_356, 10.932, 320, None),
  'efficientnetv2_l': Figures(118_515_272, 35.899, 384, None),
  'efficientnetv2_xl': Figures(208_119_808, 52.529, 384, None),
  'tf_efficientnetv2_s': Figures(21_458_488, 5.308, 300, 83.348),
  'tf_efficientnetv2_m': Figures(54_139_356, 15.737, 384, 84.768),
  'tf_efficientnetv2_l': Figures(118_515_272, 35.899, 384, 85.846),
  'tf_efficientnetv2_xl': Figures(208_119_808, 52.529, 384, 85.562),
  'tv_efficientnetv2_s': Figures(21_458_488, 8.366, 384, 84.228),
  'tv_efficientnetv2_m': Figures(54_139_356, 24.582, 480, 85.112),
  'tv_efficientnetv2_l': Figures(118_515_272, 56.080, 480, 85.808),
  'tf_efficientnetv2_b0': Figures(7_139_704, 0.528, 192, 76.876),
  'tf_efficientnetv2_b1': Figures(8_141_052, 0.747, 192, 77.934),
  'tf_efficientnetv2_b2': Figures(10_096_086, 1.043, 208, 79.208),
  'tf_efficientnetv2_b3': Figures(14_358_406, 1.908, 240, 81.078),
  'efficientnetv2_rw_t': Figures(13_649_388, 1.913, 224, 81.37),
  'efficientnetv2_rw_s': Figures(23_941_296, 4.863, 288, 82.888),
  'efficientnetv2_rw_m': Figures(53_236_442, 12.627, 320, 84.296),
}
