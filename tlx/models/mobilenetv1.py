"""MobileNet (Howard et al. 2017, https://arxiv.org/abs/1704.04861): depthwise and pointwise convolutions, ReLU6.

Names with tf_ are for weights that were trained in TensorFlow, with its padding and its batch norm epsilon.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn

from tlx.nn import inverted_residual as ir
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules

# Table 1 of the paper. Each stage: stride, channels, repeats. A stage begins where the resolution halves.
STAGES = ((1, 64, 1), (2, 128, 2), (2, 256, 2), (2, 512, 6), (2, 1024, 2))


@dataclasses.dataclass(frozen=True)
class MobileNetV1Config(ir.Network):
  """Shape of one variant: Table 1 with `widen` times the channels."""

  widen: float = 1.0
  final_conv: bool = False  # a final 1x1 convolution to at least 1024 channels
  stages: tuple[tuple[int, int, int], ...] = STAGES

  def plan(self) -> ir.Plan:
    scaled = lambda channels: ir.round_channels(channels * self.widen)
    stages = tuple(
      tuple(
        ir.Block('separable', 3, 1 if b else stride, 1, scaled(channels), nn.relu6, linear=False, skip=False)
        for b in range(repeats)
      )
      for stride, channels, repeats in self.stages
    )
    return ir.Plan(scaled(32), stages, max(1024, scaled(1024)) if self.final_conv else 0, nn.relu6)


def transformers(config: MobileNetV1Config, prefix: str = 'mobilenet_v1.') -> Iterator[rules.Rule]:
  """transformers' names: mobilenet_v1.conv_stem.convolution, mobilenet_v1.layer.0.normalization, classifier."""
  _published(config)
  unit = lambda name: ir.transformers_unit(prefix + name)
  names = lambda i, s, b, block: ([unit(f'layer.{2 * i}'), unit(f'layer.{2 * i + 1}')], ())
  return ir.layout(config, unit('conv_stem'), ('', ''), 'classifier', names)


def keras(config: MobileNetV1Config) -> Iterator[rules.Rule]:
  """Names of Keras and TensorFlow.js: conv1/kernel, conv_dw_1/depthwise_kernel, conv_pw_1_bn/gamma, conv_preds."""
  _published(config)
  depthwise = rules.Transform(lambda x: x.transpose(0, 1, 3, 2), lambda x: x.transpose(0, 1, 3, 2))
  pointwise = rules.Transform(lambda x: x[0, 0], lambda x: x[None, None])
  yield rules.Rule('conv1/kernel', 'params/backbone/stem/conv/kernel', fit=rules.fit_channels)
  yield from _keras_norm('conv1_bn', 'backbone/stem')
  for i, (s, b, _) in enumerate(config.plan().blocks(), 1):
    block = f'backbone/stage{s}_block{b}'
    yield rules.Rule(f'conv_dw_{i}/depthwise_kernel', f'params/{block}/depthwise/conv/kernel', depthwise)
    yield from _keras_norm(f'conv_dw_{i}_bn', f'{block}/depthwise')
    yield rules.Rule(f'conv_pw_{i}/kernel', f'params/{block}/project/conv/kernel')
    yield from _keras_norm(f'conv_pw_{i}_bn', f'{block}/project')
  yield rules.Rule('conv_preds/kernel', 'params/head/logits/kernel', pointwise)
  yield rules.Rule('conv_preds/bias', 'params/head/logits/bias')


def _published(config: MobileNetV1Config) -> None:
  """Raises NoLayoutError for a shape that only timm has."""
  if config.final_conv:
    raise rules.NoLayoutError('only timm has a MobileNet with a final convolution (h)')


def _keras_norm(name: str, target: str) -> Iterator[rules.Rule]:
  yield rules.Rule(f'{name}/gamma', f'params/{target}/norm/scale')
  yield rules.Rule(f'{name}/beta', f'params/{target}/norm/bias')
  yield rules.Rule(f'{name}/moving_mean', f'batch_stats/{target}/norm/mean')
  yield rules.Rule(f'{name}/moving_variance', f'batch_stats/{target}/norm/var')


def from_transformers(config: Mapping[str, Any]) -> MobileNetV1Config:
  """Makes our config from transformers'. Raises UsageError for a network that tlx lacks."""
  records.require(config, {'tf_padding': True, 'min_depth': 8, 'hidden_act': 'relu6'})
  return MobileNetV1Config(widen=config['depth_multiplier'], padding='same', epsilon=config['layer_norm_eps'])


_WIDTHS = {'025': 0.25, '050': 0.5, '075': 0.75, '100': 1.0, '125': 1.25}
_TF = ('025', '050', '075', '100')  # the widths of the paper
VARIANTS = {f'mobilenetv1_{name}': MobileNetV1Config(widen) for name, widen in _WIDTHS.items()}
VARIANTS['mobilenetv1_100h'] = MobileNetV1Config(final_conv=True)
VARIANTS |= {f'tf_mobilenetv1_{name}': MobileNetV1Config(_WIDTHS[name], **ir.PREFIXES['tf_']) for name in _TF}
VARIANTS['mobilenetv1_test'] = MobileNetV1Config(0.25, stages=((1, 16, 1), (2, 32, 2)))
LAYOUTS = {
  'timm': ir.timm,
  'transformers': transformers,
  'transformers_base': lambda config: transformers(config, ''),
  'keras': keras,
}
# Weights in these layouts come from TensorFlow, whatever name the user asks for.
LAYOUT_VARIANTS = dict.fromkeys(('transformers', 'transformers_base', 'keras'), ir.weights_of('tf_', VARIANTS))
TRANSFORMERS = {'mobilenet_v1': from_transformers}

_HALF = (0.5, 0.5, 0.5)
_TIMM = Checkpoint('', '', 'timm', Preprocess(224, 0.875, 'bicubic', _HALF, _HALF), 'apache-2.0')
_GOOGLE = Checkpoint('', '', 'transformers', license='other', source='https://arxiv.org/abs/1704.04861')


def _google(width: str, location: str, size: int) -> Checkpoint:
  """Google's weights. Their preprocessing resizes to 32 pixels more than the crop."""
  record = Preprocess(size, size / (size + 32.5), 'bilinear', _HALF, _HALF)
  return _GOOGLE._replace(variant=f'tf_mobilenetv1_{width}', location=f'hf-hub:google/{location}', preprocess=record)


CHECKPOINTS = {
  name: _TIMM._replace(variant=name, location=f'hf-hub:timm/{name}.ra4_e3600_r224_in1k')
  for name in ('mobilenetv1_100', 'mobilenetv1_100h', 'mobilenetv1_125')
}
CHECKPOINTS['mobilenetv1_125'] = CHECKPOINTS['mobilenetv1_125']._replace(preprocess=_TIMM.preprocess._replace(crop=0.9))
CHECKPOINTS['tf_mobilenetv1_100'] = _google('100', 'mobilenet_v1_1.0_224', 224)
CHECKPOINTS['tf_mobilenetv1_075'] = CHECKPOINTS['mobilenetv1_075'] = _google('075', 'mobilenet_v1_0.75_192', 192)
FIGURES = {  # top-1: timm's results/results-imagenet.csv
  'mobilenetv1_025': Figures(470_072, 0.041, 224, None),
  'mobilenetv1_050': Figures(1_331_592, 0.149, 224, None),
  'mobilenetv1_075': Figures(2_585_560, 0.239, 192, None),
  'mobilenetv1_100': Figures(4_231_976, 0.569, 224, 75.388),
  'mobilenetv1_125': Figures(6_270_840, 0.880, 224, 76.92),
  'mobilenetv1_100h': Figures(5_282_600, 0.620, 224, 75.664),
  'tf_mobilenetv1_025': Figures(470_072, 0.041, 224, None),
  'tf_mobilenetv1_050': Figures(1_331_592, 0.149, 224, None),
  'tf_mobilenetv1_075': Figures(2_585_560, 0.239, 192, None),
  'tf_mobilenetv1_100': Figures(4_231_976, 0.569, 224, None),
}
