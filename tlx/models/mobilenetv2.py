"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381): inverted residuals with ReLU6.

Names with tf_ are for weights that were trained in TensorFlow, with its padding and its batch norm epsilon.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from tlx.nn import inverted_residual as ir
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules, tflite

# Table 2 of the paper. Each stage: expansion, channels, repeats, stride.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config(ir.Network):
  """Shape of one variant: Table 2 scaled by `widen`, and by `deepen` in all stages but the first and the last."""

  widen: float = 1.0
  deepen: float = 1.0
  fixed: bool = False  # stem and final convolution are not scaled
  stages: tuple[tuple[int, int, int, int], ...] = STAGES
  final: int = 1280  # channels of the last convolution; 0 = none, for heads that read maps (DeepLab)

  def plan(self) -> ir.Plan:
    scaled = lambda channels: ir.round_channels(channels * self.widen)
    inner = range(1, len(self.stages) - 1)
    stages = tuple(
      tuple(
        ir.Block('inverted' if expansion > 1 else 'separable', 3, 1 if b else stride, expansion, scaled(n), nn.relu6)
        for b in range(math.ceil(repeats * self.deepen) if s in inner else repeats)
      )
      for s, (expansion, n, repeats, stride) in enumerate(self.stages)
    )
    if self.fixed:
      return ir.Plan(32, stages, self.final, nn.relu6)
    final = max(self.final, scaled(self.final)) if self.final else 0
    return ir.Plan(scaled(32), stages, final, nn.relu6)


def torchvision(config: MobileNetV2Config) -> Iterator[rules.Rule]:
  """torchvision's names: features.0.0, features.1.conv.0.0, features.1.conv.1 (linear), features.18.0, classifier.1."""

  def names(i: int, s: int, b: int, block: ir.Block) -> tuple[list[ir.Unit], tuple]:
    at, last = f'features.{i + 1}.conv', len(block.units) - 1
    return [*((f'{at}.{j}.0', f'{at}.{j}.1') for j in range(last)), (f'{at}.{last}', f'{at}.{last + 1}')], ()

  final = f'features.{sum(1 for _ in config.plan().blocks()) + 1}'
  return ir.layout(config, ('features.0.0', 'features.0.1'), (f'{final}.0', f'{final}.1'), 'classifier.1', names)


def transformers(config: MobileNetV2Config, prefix: str = 'mobilenet_v2.') -> Iterator[rules.Rule]:
  """transformers' names: mobilenet_v2.conv_stem.first_conv.convolution, mobilenet_v2.layer.0.expand_1x1, classifier.

  Its stem contains our first block, so its layer 0 is our second block.
  """
  if config.fixed or config.deepen != 1:
    raise rules.NoLayoutError('transformers has no deeper MobileNetV2 (110d, 120d)')
  unit = lambda name: ir.transformers_unit(prefix + name)
  parts = {'expand': 'expand_1x1', 'depthwise': 'conv_3x3', 'project': 'reduce_1x1'}

  def names(i: int, s: int, b: int, block: ir.Block) -> tuple[list[ir.Unit], tuple]:
    at = f'layer.{i - 1}' if i else 'conv_stem'
    return [unit(f'{at}.{parts[part]}') for part in block.units], ()

  return ir.layout(config, unit('conv_stem.first_conv'), unit('conv_1x1'), 'classifier', names)


def of_tflite(config: MobileNetV2Config) -> Iterator[rules.Rule]:
  """Names in TensorFlow Lite files: MobilenetV2/Conv, MobilenetV2/expanded_conv_1/expand, MobilenetV2/Conv_1, Logits.

  The converter joins the names of merged constants: of several projections with one sum, it adds the last one's name.
  """
  top, unit = 'MobilenetV2', partial(tflite.unit, epsilon=config.epsilon)
  yield from unit(f'{top}/Conv', 'backbone/stem')
  plan = config.plan()
  blocks = [(s, f'{top}/expanded_conv{f"_{i}" if i else ""}') for i, (s, _, _) in enumerate(plan.blocks())]
  ends = dict(blocks)  # the last block of each stage
  for (s, b, block), (_, at) in zip(plan.blocks(), blocks):
    for part in block.units:
      target, transform = f'backbone/stage{s}_block{b}/{part}', tflite.DEPTHWISE if part == 'depthwise' else tflite.CONV
      sums = [f'{at}/project/add_fold', f'{ends[s]}/project/Conv2D_Fold', f'{at}/project/Conv2D_Fold']
      bias = ';'.join([*dict.fromkeys(sums), f'{at}/project/BatchNorm_Fold/bias']) if part == 'project' else None
      yield from unit(f'{at}/{part}', target, transform=transform, bias=bias)
  if plan.final:
    yield from unit(f'{top}/Conv_1', 'backbone/final_conv')
  yield from tflite.logits(f'{top}/Logits/Conv2d_1c_1x1', 'head/logits', tflite.DENSE)
  yield rules.Rule(f'{top}/Logits/Squeeze', None)  # a shape, not a weight


def from_transformers(config: Mapping[str, Any]) -> MobileNetV2Config:
  """Makes our config from transformers'. Raises UsageError for a network that tlx lacks."""
  ours = MobileNetV2Config(config['depth_multiplier'], padding='same', epsilon=config['layer_norm_eps'])
  # transformers' first block never has a residual connection.
  lacks = [f'depth_multiplier {ours.widen}, for which tlx has one more shortcut'] * (0 in ours.plan().joined())
  records.require(
    config,
    {
      'tf_padding': True,
      'min_depth': 8,
      'depth_divisible_by': 8,
      'expand_ratio': 6,
      'output_stride': 32,
      'first_layer_is_expansion': True,
      'finegrained_output': True,
      'hidden_act': 'relu6',
    },
    *lacks,
  )
  return ours


_SCALES = {  # widen, deepen, fixed
  '035': (0.35,), '050': (0.5,), '075': (0.75,), '100': (1.0,), '140': (1.4,),
  '110d': (1.1, 1.2, True), '120d': (1.2, 1.4, True),
}  # fmt: skip
VARIANTS = {f'mobilenetv2_{name}': MobileNetV2Config(*scale) for name, scale in _SCALES.items()}
VARIANTS |= {
  f'tf_mobilenetv2_{name}': MobileNetV2Config(*_SCALES[name], **ir.PREFIXES['tf_'])
  for name in ('035', '050', '075', '100', '140')  # the widths of the paper
}
VARIANTS['mobilenetv2_test'] = MobileNetV2Config(stages=((1, 8, 1, 1), (4, 16, 2, 2), (4, 24, 1, 2)), final=32)
LAYOUTS = {
  'timm': ir.timm,
  'torchvision': torchvision,
  'transformers': transformers,
  'transformers_base': lambda config: transformers(config, ''),
  'tflite': of_tflite,
}
# transformers' and TensorFlow Lite's weights come from TensorFlow, torchvision's from PyTorch, whatever the name.
LAYOUT_VARIANTS = {
  **dict.fromkeys(('transformers', 'transformers_base', 'tflite'), ir.weights_of('tf_', VARIANTS)),
  'torchvision': ir.weights_of('', VARIANTS),
}
TRANSFORMERS = {'mobilenet_v2': from_transformers}

_PAPER = 'https://arxiv.org/abs/1801.04381'
_HALF = (0.5, 0.5, 0.5)
_GOOGLE = {'035': ('0.35', 96), '075': ('0.75', 160), '100': ('1.0', 224), '140': ('1.4', 224)}  # width, pixels
CHECKPOINTS = {
  name: Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', license='apache-2.0', source=_PAPER)
  for name, tag in {
    'mobilenetv2_050': 'lamb_in1k',
    'mobilenetv2_100': 'ra_in1k',
    'mobilenetv2_140': 'ra_in1k',
    'mobilenetv2_110d': 'ra_in1k',
    'mobilenetv2_120d': 'ra_in1k',
  }.items()
} | {
  f'tf_mobilenetv2_{name}': Checkpoint(
    f'tf_mobilenetv2_{name}',
    f'hf-hub:google/mobilenet_v2_{width}_{size}',
    'transformers',
    Preprocess(size, size / (size + 32.5), 'bilinear', _HALF, _HALF),  # resizes to 32 pixels more than the crop
    license='other',
    source=_PAPER,
  )
  for name, (width, size) in _GOOGLE.items()
}
FIGURES = {  # top-1: timm's results/results-imagenet.csv
  'mobilenetv2_035': Figures(1_677_128, 0.059, 224, None),
  'mobilenetv2_050': Figures(1_968_680, 0.097, 224, 65.928),
  'mobilenetv2_075': Figures(2_636_424, 0.209, 224, None),
  'mobilenetv2_100': Figures(3_504_872, 0.301, 224, 72.91),
  'mobilenetv2_140': Figures(6_108_776, 0.582, 224, 76.528),
  'mobilenetv2_110d': Figures(4_516_520, 0.431, 224, 75.056),
  'mobilenetv2_120d': Figures(5_831_144, 0.669, 224, 77.3),
  'tf_mobilenetv2_035': Figures(1_677_128, 0.012, 96, None),
  'tf_mobilenetv2_050': Figures(1_968_680, 0.097, 224, None),
  'tf_mobilenetv2_075': Figures(2_636_424, 0.107, 160, None),
  'tf_mobilenetv2_100': Figures(3_504_872, 0.301, 224, None),
  'tf_mobilenetv2_140': Figures(6_108_776, 0.582, 224, None),
}
