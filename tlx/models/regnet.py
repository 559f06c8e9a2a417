"""RegNet X and Y (Radosavovic et al. 2020, https://arxiv.org/abs/2003.13678); Y has channel gates.

Names with _tv have torchvision's widths, where torchvision rounds the same design in another way.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from tlx.nn.conv_norm import ConvNorm
from tlx.nn.gate import SqueezeExcite
from tlx.nn.model import Layer, Staged
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules


@dataclasses.dataclass(frozen=True)
class RegNetConfig(Staged):
  """Shape of one variant."""

  depths: tuple[int, int, int, int]  # blocks of each stage
  widths: tuple[int, int, int, int]  # channels of each stage
  group_width: int  # maximum channels per group of the 3x3 convolutions
  gates: bool = False
  stem: int = 32

  @property
  def width(self) -> int:
    return self.widths[-1]

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    block = lambda s, b, rate: partial(Block, self, self.widths[s], 2 if b == 0 else 1, rate)
    return (Layer('stem', partial(ConvNorm, self.stem, 3, 2)), *self.block_layers(drop_path, block))


class Block(nn.Module):
  """1x1 convolution, grouped 3x3, gate and 1x1, all of one width, with a residual connection."""

  config: RegNetConfig
  features: int
  stride: int
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    config, shortcut, features = self.config, x, self.features
    groups = max(1, features // config.group_width)
    x = ConvNorm(features, 1, name='reduce')(x, train)
    x = ConvNorm(features, 3, self.stride, groups, name='grouped')(x, train)
    if config.gates:  # squeezed to a quarter of the block's input channels
      x = SqueezeExcite(round(shortcut.shape[-1] / 4), name='gate')(x)
    x = ConvNorm(features, 1, activation=None, name='project')(x, train)
    if shortcut.shape != x.shape:
      shortcut = ConvNorm(features, 1, self.stride, activation=None, name='shortcut')(shortcut, train)
    return nn.relu(shortcut + DropPath(self.drop_path)(x, train))


# A layout's names for the units of a block: our name -> (convolution, norm).
Units = Mapping[str, tuple[str, str]]


def _layout(
  config: RegNetConfig,
  stem: tuple[str, str],
  block: Callable[[int, int], str],
  units: Units,
  gate: tuple[str, str],
  head: str,
) -> Iterator[rules.Rule]:
  """The table that all layouts share."""
  yield from rules.stem(stem[0], 'backbone/stem/conv')
  yield from rules.norm(stem[1], 'backbone/stem/norm')
  for s, b in config.blocks():
    source, target = block(s, b), f'backbone/stage{s}_block{b}'
    for unit, (conv, norm) in units.items():
      if unit != 'shortcut' or b == 0:
        yield from rules.conv(f'{source}.{conv}', f'{target}/{unit}/conv')
        yield from rules.norm(f'{source}.{norm}', f'{target}/{unit}/norm')
    for part, name in zip(('reduce', 'expand'), gate if config.gates else ()):
      yield from rules.conv(f'{source}.{name}', f'{target}/gate/{part}', bias=True)
  yield from rules.dense(head, 'head/logits')


def timm(config: RegNetConfig) -> Iterator[rules.Rule]:
  """timm's names: stem.conv, s1.b1.conv1.conv, s1.b1.se.fc1, s1.b1.downsample.conv, head.fc."""
  names = {'reduce': 'conv1', 'grouped': 'conv2', 'project': 'conv3', 'shortcut': 'downsample'}
  units = {unit: (f'{name}.conv', f'{name}.bn') for unit, name in names.items()}
  block = lambda s, b: f's{s + 1}.b{b + 1}'
  return _layout(config, ('stem.conv', 'stem.bn'), block, units, ('se.fc1', 'se.fc2'), 'head.fc')


def torchvision(config: RegNetConfig) -> Iterator[rules.Rule]:
  """torchvision's names: stem.0, trunk_output.block1.block1-0.f.a.0, f.se.fc1, proj.0, fc."""
  names = {'reduce': 'f.a', 'grouped': 'f.b', 'project': 'f.c', 'shortcut': 'proj'}
  units = {unit: (f'{name}.0', f'{name}.1') for unit, name in names.items()}
  block = lambda s, b: f'trunk_output.block{s + 1}.block{s + 1}-{b}'
  return _layout(config, ('stem.0', 'stem.1'), block, units, ('f.se.fc1', 'f.se.fc2'), 'fc')


def transformers(config: RegNetConfig, prefix: str = 'regnet.') -> Iterator[rules.Rule]:
  """transformers' names: regnet.embedder.embedder.convolution, encoder.stages.0.layers.0.layer.0, classifier.1."""
  last = 'layer.3' if config.gates else 'layer.2'
  names = {'reduce': 'layer.0', 'grouped': 'layer.1', 'project': last, 'shortcut': 'shortcut'}
  units = {unit: (f'{name}.convolution', f'{name}.normalization') for unit, name in names.items()}
  stem = (f'{prefix}embedder.embedder.convolution', f'{prefix}embedder.embedder.normalization')
  block = lambda s, b: f'{prefix}encoder.stages.{s}.layers.{b}'
  return _layout(config, stem, block, units, ('layer.2.attention.0', 'layer.2.attention.2'), 'classifier.1')


def of_transformers(config: Mapping[str, Any]) -> RegNetConfig:
  """Makes our config from a complete config of transformers. Raises UsageError for a network that tlx lacks."""
  records.require(config, {'hidden_act': 'relu', 'downsample_in_first_stage': True})
  shape = tuple(config['depths']), tuple(config['hidden_sizes']), config['groups_width']
  return RegNetConfig(*shape, config['layer_type'] == 'y', config['embedding_size'])


_X = {
  '002': ((1, 1, 4, 7), (24, 56, 152, 368), 8),
  '004': ((1, 2, 7, 12), (32, 64, 160, 384), 16),
  '004_tv': ((1, 2, 7, 12), (32, 64, 160, 400), 16),
  '006': ((1, 3, 5, 7), (48, 96, 240, 528), 24),
  '008': ((1, 3, 7, 5), (64, 128, 288, 672), 16),
  '016': ((2, 4, 10, 2), (72, 168, 408, 912), 24),
  '032': ((2, 6, 15, 2), (96, 192, 432, 1008), 48),
  '040': ((2, 5, 14, 2), (80, 240, 560, 1360), 40),
  '064': ((2, 4, 10, 1), (168, 392, 784, 1624), 56),
  '080': ((2, 5, 15, 1), (80, 240, 720, 1920), 120),
  '120': ((2, 5, 11, 1), (224, 448, 896, 2240), 112),
  '160': ((2, 6, 13, 1), (256, 512, 896, 2048), 128),
  '320': ((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
}
_Y = {
  '002': ((1, 1, 4, 7), (24, 56, 152, 368), 8),
  '004': ((1, 3, 6, 6), (48, 104, 208, 440), 8),
  '006': ((1, 3, 7, 4), (48, 112, 256, 608), 16),
  '008': ((1, 3, 8, 2), (64, 128, 320, 768), 16),
  '008_tv': ((1, 3, 8, 2), (64, 144, 320, 784), 16),
  '016': ((2, 6, 17, 2), (48, 120, 336, 888), 24),
  '032': ((2, 5, 13, 1), (72, 216, 576, 1512), 24),
  '040': ((2, 6, 12, 2), (128, 192, 512, 1088), 64),
  '064': ((2, 7, 14, 2), (144, 288, 576, 1296), 72),
  '080': ((2, 4, 10, 1), (168, 448, 896, 2016), 56),
  '080_tv': ((2, 4, 10, 1), (224, 448, 896, 2016), 56),
  '120': ((2, 5, 11, 1), (224, 448, 896, 2240), 112),
  '160': ((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
  '320': ((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
  '640': ((2, 5, 12, 1), (328, 984, 1968, 4920), 328),
  '1280': ((2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
}
VARIANTS = {
  **{f'regnetx_{name}': RegNetConfig(*shape) for name, shape in _X.items()},
  **{f'regnety_{name}': RegNetConfig(*shape, gates=True) for name, shape in _Y.items()},
  'regnetx_test': RegNetConfig((1, 1, 1, 1), (8, 8, 16, 16), 12, stem=4),
  'regnety_test': RegNetConfig((1, 1, 2, 1), (8, 16, 16, 24), 4, gates=True, stem=8),
}
LAYOUTS = {
  'timm': timm,
  'torchvision': torchvision,
  'transformers': transformers,
  'transformers_base': partial(transformers, prefix=''),
}
TRANSFORMERS = {'regnet': of_transformers}
_TIMM = {  # tags of the weights that were trained in timm
  'regnety_032': 'ra_in1k',
  'regnety_040': 'ra3_in1k',
  'regnety_064': 'ra3_in1k',
  'regnety_080': 'ra3_in1k',
  'regnety_120': 'sw_in12k_ft_in1k',
  'regnety_160': 'sw_in12k_ft_in1k',
}
_FACEBOOK = {  # tag, licence
  'regnety_640': ('seer_ft_in1k', 'seer-license'),
  'regnety_1280': ('swag_ft_in1k', 'cc-by-nc-4.0'),
}
_TORCHVISION = ('x_004_tv', 'x_008', 'x_016', 'x_032', 'x_080', 'x_160', 'x_320',
                'y_004', 'y_008_tv', 'y_016', 'y_080_tv', 'y_320')  # fmt: skip
_PAPER = 'https://arxiv.org/abs/2003.13678'


def _checkpoint(name: str) -> Checkpoint:
  if name in _TIMM:
    tag, license, size, crop = _TIMM[name], 'apache-2.0', 224, 0.95
  elif name in _FACEBOOK:
    (tag, license), size, crop = _FACEBOOK[name], 384, 1.0
  elif name.removeprefix('regnet') in _TORCHVISION:
    tag, license, size, crop = 'tv2_in1k', 'bsd-3-clause', 224, 0.965
  else:
    tag, license, size, crop = 'pycls_in1k', 'mit', 224, 0.875
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', Preprocess(size, crop), license, _PAPER)


CHECKPOINTS = {name: _checkpoint(name) for name in VARIANTS if not name.endswith('_test')}
FIGURES = {  # top-1: timm's results/results-imagenet.csv at that size
  'regnetx_002': Figures(2_684_792, 0.199, 224, 68.758),
  'regnetx_004': Figures(5_157_512, 0.398, 224, 72.482),
  'regnetx_004_tv': Figures(5_495_976, 0.414, 224, 74.596),
  'regnetx_006': Figures(6_196_040, 0.601, 224, 73.904),
  'regnetx_008': Figures(7_259_656, 0.800, 224, 77.294),
  'regnetx_016': Figures(9_190_136, 1.603, 224, 79.440),
  'regnetx_032': Figures(15_296_552, 3.177, 224, 80.916),
  'regnetx_040': Figures(22_118_248, 3.964, 224, 78.486),
  'regnetx_064': Figures(26_209_256, 6.460, 224, 79.062),
  'regnetx_080': Figures(39_572_648, 7.995, 224, 81.552),
  'regnetx_120': Figures(46_106_056, 12.087, 224, 79.608),
  'regnetx_160': Figures(54_278_536, 15.941, 224, 82.574),
  'regnetx_320': Figures(107_811_560, 31.736, 224, 82.824),
  'regnety_002': Figures(3_162_996, 0.200, 224, 70.288),
  'regnety_004': Figures(4_344_144, 0.402, 224, 75.594),
  'regnety_006': Figures(6_055_160, 0.601, 224, 75.274),
  'regnety_008': Figures(6_263_168, 0.797, 224, 76.334),
  'regnety_008_tv': Figures(6_432_512, 0.834, 224, 78.672),
  'regnety_016': Figures(11_202_430, 1.612, 224, 80.668),
  'regnety_032': Figures(19_436_338, 3.176, 224, 81.948),
  'regnety_040': Figures(20_646_656, 3.973, 224, 82.308),
  'regnety_064': Figures(30_583_252, 6.355, 224, 83.006),
  'regnety_080': Figures(39_180_068, 7.963, 224, 83.166),
  'regnety_080_tv': Figures(39_381_472, 8.473, 224, 82.580),
  'regnety_120': Figures(51_822_544, 12.092, 224, 84.994),
  'regnety_160': Figures(83_590_140, 15.912, 224, 85.596),
  'regnety_320': Figures(145_046_770, 32.280, 224, 83.170),
  'regnety_640': Figures(281_378_786, 188.221, 384, 83.924),
  'regnety_1280': Figures(644_812_894, 374.570, 384, 88.228),
}
