"""MobileNetV3 (Howard et al. 2019, https://arxiv.org/abs/1905.02244), large and small, with gates and hard swish.

'minimal' variants have no gates, hard swish and 5x5 kernels, which some accelerators lack. Names with tf_ are for
weights that were trained in TensorFlow, with its padding and its batch norm epsilon. Names with tv_ are torchvision's
models, which use TensorFlow's epsilon and momentum.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax

from tlx.nn import inverted_residual as ir
from tlx.nn.conv import Dense
from tlx.nn.dtypes import widened
from tlx.nn.model import Layer
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

# Tables 1 and 2 of the paper: kernel, stride, expansion, channels, repeats, gate, hard swish (else ReLU). A row for
# each change; brackets enclose a stage.
LARGE = (
  ((3, 1, 1, 16, 1, False, False),),
  ((3, 2, 4, 24, 1, False, False), (3, 1, 3, 24, 1, False, False)),
  ((5, 2, 3, 40, 3, True, False),),
  ((3, 2, 6, 80, 1, False, True), (3, 1, 2.5, 80, 1, False, True), (3, 1, 2.3, 80, 2, False, True)),
  ((3, 1, 6, 112, 2, True, True),),
  ((5, 2, 6, 160, 3, True, True),),
)
SMALL = (
  ((3, 2, 1, 16, 1, True, False),),
  ((3, 2, 4.5, 24, 1, False, False), (3, 1, 3.67, 24, 1, False, False)),
  ((5, 2, 4, 40, 1, True, True), (5, 1, 6, 40, 2, True, True)),
  ((5, 1, 3, 48, 2, True, True),),
  ((5, 2, 6, 96, 3, True, True),),
)
# The squeezed channels are a quarter of the expanded ones.
GATE = ir.Gate(lambda inputs, expanded: ir.round_channels(expanded / 4), nn.relu, nn.hard_sigmoid)


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config(ir.Network):
  """Shape of one variant: a table with `widen` times the channels."""

  rows: tuple[tuple[tuple, ...], ...]
  last: int  # channels of the last convolution before scaling
  hidden: int  # features of the layer after pooling, not scaled; 0 = none, for heads that read maps
  widen: float = 1.0
  minimal: bool = False

  @property
  def width(self) -> int:
    return self.hidden or self._scaled(self.last)

  @property
  def activation(self) -> ir.Activation:
    return nn.relu if self.minimal else nn.hard_swish

  def plan(self) -> ir.Plan:
    stages = [tuple(block for row in stage for block in self._blocks(*row)) for stage in self.rows]
    last = ir.Block('conv', 1, 1, 1, self._scaled(self.last), self.activation, skip=False)
    stem = 16 if self.widen < 0.75 else self._scaled(16)
    return ir.Plan(stem, (*stages, (last,)), 0, self.activation)

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    hidden = Layer('pre_logits', partial(PreLogits, self.hidden, self.activation))
    return (*super().layers(drop_path), *([hidden] if self.hidden else []))

  def _scaled(self, channels: int) -> int:
    return ir.round_channels(channels * self.widen)

  def _blocks(
    self, kernel: int, stride: int, expansion: float, channels: int, repeats: int, gate: bool, hard: bool
  ) -> Iterator[ir.Block]:
    kind = 'separable' if expansion == 1 else 'inverted'
    activation = self.activation if hard else nn.relu
    kernel, gated = (3, None) if self.minimal else (kernel, GATE if gate else None)
    for b in range(repeats):
      yield ir.Block(kind, kernel, 1 if b else stride, expansion, self._scaled(channels), activation, gated)


class PreLogits(nn.Module):
  """Global average pooling and a hidden layer: [b, h, w, c] -> [b, features]."""

  features: int
  activation: ir.Activation

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    pooled = widened(x).mean(axis=(1, 2)).astype(x.dtype)
    return self.activation(Dense(self.features, name='dense')(pooled))


def timm(config: MobileNetV3Config) -> Iterator[rules.Rule]:
  """timm's names: conv_stem, blocks.0.0.conv_dw, conv_head (a 1x1 convolution after pooling), classifier."""
  yield from ir.timm(config)
  if config.hidden:
    yield rules.Rule('conv_head.weight', 'params/backbone/pre_logits/dense/kernel', rules.POINTWISE)
    yield rules.Rule('conv_head.bias', 'params/backbone/pre_logits/dense/bias')


def torchvision(config: MobileNetV3Config) -> Iterator[rules.Rule]:
  """torchvision's names: features.0.0, features.1.block.0.0, features.16.0, classifier.0 (hidden), classifier.3."""

  if config.minimal:
    raise rules.NoLayoutError('torchvision has no minimal MobileNetV3')

  def names(i: int, s: int, b: int, block: ir.Block) -> tuple[list[ir.Unit], ir.Unit]:
    at = f'features.{i + 1}'
    return ([(f'{at}.0', f'{at}.1')], ()) if block.kind == 'conv' else ir.sequential(f'{at}.block', block)

  none = ('', '')
  yield from ir.layout(config, ('features.0.0', 'features.0.1'), none, 'classifier.3', names)
  if config.hidden:
    yield from rules.dense('classifier.0', 'backbone/pre_logits/dense')


_TABLES = {'large': (LARGE, 960, 1280), 'small': (SMALL, 576, 1024)}
_NAMES = {  # prefix: {rest of the name: widen}
  '': {'large_075': 0.75, 'large_100': 1.0, 'small_050': 0.5, 'small_075': 0.75, 'small_100': 1.0},
  'tf_': {'large_075': 0.75, 'large_100': 1.0, 'small_075': 0.75, 'small_100': 1.0},
  'tv_': {'large_100': 1.0, 'small_100': 1.0},
}
VARIANTS = {
  f'{prefix}mobilenetv3_{name}': MobileNetV3Config(
    *_TABLES[name[:5]], widen, **ir.PREFIXES[prefix], dilate_early=prefix == 'tv_'
  )
  for prefix, names in _NAMES.items()
  for name, widen in names.items()
} | {
  f'tf_mobilenetv3_{size}_minimal_100': MobileNetV3Config(*table, minimal=True, **ir.PREFIXES['tf_'])
  for size, table in _TABLES.items()
}
VARIANTS['mobilenetv3_test'] = MobileNetV3Config(
  (((3, 1, 1, 16, 1, True, False),), ((5, 2, 2.3, 16, 2, True, True), (3, 1, 3, 16, 1, False, True))), 32, 24, 0.5
)
LAYOUTS = {'timm': timm, 'torchvision': torchvision}
# torchvision's weights need TensorFlow's epsilon, whatever name the user asks for.
LAYOUT_VARIANTS = {'torchvision': ir.weights_of('tv_', VARIANTS)}

_PAPER = 'https://arxiv.org/abs/1905.02244'
_TAGS = {'large_100': 'ra_in1k', 'small_050': 'lamb_in1k', 'small_075': 'lamb_in1k', 'small_100': 'lamb_in1k'}
_BILINEAR = Preprocess(224, 0.875, 'bilinear', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CHECKPOINTS = {
  f'mobilenetv3_{name}': Checkpoint(
    f'mobilenetv3_{name}', f'hf-hub:timm/mobilenetv3_{name}.{tag}', 'timm', license='apache-2.0', source=_PAPER
  )
  for name, tag in _TAGS.items()
}
CHECKPOINTS |= {
  name: Checkpoint(name, f'hf-hub:timm/{name}.in1k', 'timm', _BILINEAR, license='apache-2.0', source=_PAPER)
  for name in VARIANTS
  if name.startswith('tf_')
}
CHECKPOINTS |= {
  name: ir.of_torchvision(name, file, Preprocess(224, 224 / (resized + 0.5), 'bilinear'))
  for name, file, resized in (
    ('tv_mobilenetv3_large_100', 'mobilenet_v3_large-5c1a4163', 232),
    ('tv_mobilenetv3_small_100', 'mobilenet_v3_small-047dcff4', 256),
  )
}
FIGURES = {  # top-1: timm's results/results-imagenet.csv; for tv_ torchvision's documentation
  'mobilenetv3_large_075': Figures(3_993_528, 0.155, 224, None),
  'mobilenetv3_large_100': Figures(5_483_032, 0.217, 224, 75.784),
  'mobilenetv3_small_050': Figures(1_593_224, 0.024, 224, 57.918),
  'mobilenetv3_small_075': Figures(2_041_872, 0.043, 224, 65.284),
  'mobilenetv3_small_100': Figures(2_542_856, 0.057, 224, 67.636),
  'tf_mobilenetv3_large_075': Figures(3_993_528, 0.155, 224, 73.442),
  'tf_mobilenetv3_large_100': Figures(5_483_032, 0.217, 224, 75.51),
  'tf_mobilenetv3_small_075': Figures(2_041_872, 0.043, 224, 65.706),
  'tf_mobilenetv3_small_100': Figures(2_542_856, 0.057, 224, 67.922),
  'tv_mobilenetv3_large_100': Figures(5_483_032, 0.217, 224, 75.274),
  'tv_mobilenetv3_small_100': Figures(2_542_856, 0.057, 224, 67.668),
  'tf_mobilenetv3_large_minimal_100': Figures(3_924_288, 0.209, 224, 72.27),
  'tf_mobilenetv3_small_minimal_100': Figures(2_044_736, 0.052, 224, 62.892),
}
