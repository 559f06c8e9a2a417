"""ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385), v1.5: the 3x3 convolution has the stride.

Also Wide ResNet (https://arxiv.org/abs/1605.07146), ResNeXt (https://arxiv.org/abs/1611.05431), the deep stems and
averaging shortcuts of ResNet-D (https://arxiv.org/abs/1812.01187), and channel gates. Names end as in timm: d = a stem
of three 3x3 convolutions and averaging shortcuts; t = d with fewer channels in the stem's first convolution.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from tlx.nn import dilation
from tlx.nn.conv import Conv
from tlx.nn.gate import EfficientChannelAttention, SqueezeExcite
from tlx.nn.model import Layer, Staged, Tapped
from tlx.nn.norm import BatchNorm
from tlx.nn.pool import max_pool
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules


@dataclasses.dataclass(frozen=True)
class ResNetConfig(Staged):
  """Shape of one variant."""

  depths: tuple[int, int, int, int]  # blocks of each stage
  bottleneck: bool = True
  base: int = 64  # channels of the stem
  groups: int = 1  # of the 3x3 convolutions
  group_width: int = 64  # channels per group in the first stage, for base 64
  stem: tuple[int, ...] = ()  # channels of the 3x3 convolutions before the stem's last; () = one 7x7
  averaging: bool = False  # shortcuts of blocks with a stride use an average pool
  gate: str = ''  # 'se' or 'eca', at the end of each block
  output_stride: int = 32  # with 8 or 16 the last stages dilate instead of striding
  dilate_early: bool = False  # they dilate from their first block on (segmentation-models-pytorch)

  def __post_init__(self):
    dilation.check_output_stride(self.output_stride)

  @property
  def expansion(self) -> int:
    return 4 if self.bottleneck else 1

  @property
  def width(self) -> int:
    return self.base * 8 * self.expansion

  def inner(self, s: int) -> int:
    """Channels between the convolutions of a block in stage s."""
    return self.base * 2**s * self.group_width // 64 * self.groups

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    spread = dilation.spread((1, 2, 2, 2), self.output_stride, stem=4, early=self.dilate_early)

    def block(s: int, b: int, rate: float) -> partial:
      stride, first = spread[s].block(b)
      return partial(Block, self, s, stride, rate, (first, spread[s].dilation))

    return (Layer('stem', partial(Stem, (*self.stem, self.base))), *self.block_layers(drop_path, block))


class Stem(nn.Module):
  """A 7x7 convolution of stride 2, or several 3x3 ones, a tap 'conv', and a max pool.

  [b, h, w, 3] -> [b, h/4, w/4, c]; 'conv' is [b, h/2, w/2, c].
  """

  features: tuple[int, ...]  # channels of each convolution

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Tapped:
    for i, features in enumerate(self.features, 1):
      unit = str(i) if self.features[1:] else ''
      x = Conv(features, 3 if unit else 7, 2 if i == 1 else 1, name=f'conv{unit}')(x)
      x = nn.relu(BatchNorm(name=f'norm{unit}')(x, train))
    return Tapped(max_pool(x, 3, 2, padding=1), {'conv': x})


class Block(nn.Module):
  """Two 3x3 convolutions, or 1x1, 3x3 and 1x1, with a residual connection."""

  config: ResNetConfig
  stage: int
  stride: int
  drop_path: float
  dilations: tuple[int, int]  # of the first and the second 3x3 convolution

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    config, residual = self.config, x
    kernels = (1, 3, 1) if config.bottleneck else (3, 3)
    inner, out = config.inner(self.stage), config.base * 2**self.stage * config.expansion
    for i, kernel in enumerate(kernels):
      last, strided = i == len(kernels) - 1, i == kernels.index(3)
      shape = (out if last else inner, kernel, self.stride if strided else 1)
      groups, dilated = (config.groups, self.dilations[not strided]) if kernel == 3 else (1, 1)
      x = Conv(*shape, groups=groups, dilation=dilated, name=f'conv{i + 1}')(x)
      x = BatchNorm(name=f'norm{i + 1}')(x, train)
      x = x if last else nn.relu(x)
    if config.gate == 'se':
      x = SqueezeExcite(max(8, (out // 16 + 4) // 8 * 8), name='gate')(x)
    elif config.gate == 'eca':
      x = EfficientChannelAttention(name='gate')(x)
    if residual.shape != x.shape:
      residual = self.shortcut(residual, out, train)
    return nn.relu(residual + DropPath(self.drop_path)(x, train))

  def shortcut(self, x: jax.Array, features: int, train: bool) -> jax.Array:
    """A 1x1 convolution with a stride, or after a 2x2 average pool that averages an odd last row or column alone.

    If the stage dilates instead, the average pool has stride 1 and counts zeros after the last row and column (timm).
    """
    stride = self.stride
    if self.config.averaging and stride > 1:
      odd = tuple((0, side % 2) for side in x.shape[1:3])
      x, stride = nn.avg_pool(x, (2, 2), (2, 2), odd, count_include_pad=False), 1
    elif self.config.averaging and self.dilations[1] > 1:
      x = nn.avg_pool(x, (2, 2), (1, 1), 'SAME')
    x = Conv(features, 1, stride, name='shortcut_conv')(x)
    return BatchNorm(name='shortcut_norm')(x, train)


def timm(config: ResNetConfig) -> Iterator[rules.Rule]:
  """timm's names: conv1, layer1.0.conv1, layer1.0.downsample.0, fc."""
  stem = 'backbone/stem'
  yield from rules.stem('conv1.0' if config.stem else 'conv1', f'{stem}/conv{"1" if config.stem else ""}')
  for i in range(len(config.stem)):
    yield from rules.norm(f'conv1.{3 * i + 1}', f'{stem}/norm{i + 1}')
    yield from rules.conv(f'conv1.{3 * i + 3}', f'{stem}/conv{i + 2}')
  yield from rules.norm('bn1', f'{stem}/norm{len(config.stem) + 1 if config.stem else ""}')
  for s, b in config.blocks():
    source, target = f'layer{s + 1}.{b}', f'backbone/stage{s}_block{b}'
    for i in (1, 2, 3)[: 3 if config.bottleneck else 2]:
      yield from rules.conv(f'{source}.conv{i}', f'{target}/conv{i}')
      yield from rules.norm(f'{source}.bn{i}', f'{target}/norm{i}')
    yield from _gate(config, f'{source}.se', f'{target}/gate')
    if b == 0 and (s or config.bottleneck):
      first = 1 if config.averaging else 0
      yield from rules.conv(f'{source}.downsample.{first}', f'{target}/shortcut_conv')
      yield from rules.norm(f'{source}.downsample.{first + 1}', f'{target}/shortcut_norm')
  yield from rules.dense('fc', 'head/logits')


def _gate(config: ResNetConfig, source: str, target: str) -> Iterator[rules.Rule]:
  if config.gate == 'se':
    yield from rules.conv(f'{source}.fc1', f'{target}/reduce', bias=True)
    yield from rules.conv(f'{source}.fc2', f'{target}/expand', bias=True)
  elif config.gate == 'eca':
    yield rules.Rule(f'{source}.conv.weight', f'params/{target}/kernel', rules.reshape((1, 1, -1), (-1, 1)))


def torchvision(config: ResNetConfig) -> Iterator[rules.Rule]:
  """torchvision's names, which timm also uses."""
  if config.stem or config.averaging or config.gate:
    raise rules.NoLayoutError('torchvision has no deep stems, averaging shortcuts or gates')
  yield from timm(config)


def transformers(config: ResNetConfig, prefix: str = 'resnet.') -> Iterator[rules.Rule]:
  """transformers' names: resnet.embedder.embedder.convolution, encoder.stages.0.layers.0.layer.0, classifier.1."""
  if config.stem or config.averaging or config.gate or (config.groups, config.group_width) != (1, 64):
    raise rules.NoLayoutError('transformers has no deep stems, averaging shortcuts, gates, groups or wide blocks')
  yield from rules.stem(f'{prefix}embedder.embedder.convolution', 'backbone/stem/conv')
  yield from rules.norm(f'{prefix}embedder.embedder.normalization', 'backbone/stem/norm')
  for s, b in config.blocks():
    source, target = f'{prefix}encoder.stages.{s}.layers.{b}', f'backbone/stage{s}_block{b}'
    units = {f'layer.{i}': (f'conv{i + 1}', f'norm{i + 1}') for i in range(3 if config.bottleneck else 2)}
    if b == 0 and (s or config.bottleneck):
      units['shortcut'] = ('shortcut_conv', 'shortcut_norm')
    for name, (conv, norm) in units.items():
      yield from rules.conv(f'{source}.{name}.convolution', f'{target}/{conv}')
      yield from rules.norm(f'{source}.{name}.normalization', f'{target}/{norm}')
  yield from rules.dense('classifier.1', 'head/logits')


def of_transformers(config: Mapping[str, Any]) -> ResNetConfig:
  """Makes our config from a complete config of transformers. Raises UsageError for a network that tlx lacks."""
  ours = ResNetConfig(tuple(config['depths']), config['layer_type'] == 'bottleneck', config['embedding_size'])
  needed = {
    'hidden_sizes': [ours.base * 2**s * ours.expansion for s in range(4)],
    'hidden_act': 'relu',
    'downsample_in_first_stage': False,
    'downsample_in_bottleneck': False,
  }
  records.require(config, needed)
  return ours


_D, _T = ({'stem': stem, 'averaging': True} for stem in ((32, 32), (24, 32)))
_SMALL, _50, _101, _152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_X = {f'{groups}x{width}d': {'groups': groups, 'group_width': width} for groups, width in
      ((32, 4), (32, 8), (32, 16), (32, 32), (64, 4))}  # fmt: skip
VARIANTS = {
  'resnet10t': ResNetConfig((1, 1, 1, 1), bottleneck=False, **_T),
  'resnet14t': ResNetConfig((1, 1, 1, 1), **_T),
  'resnet18': ResNetConfig(_SMALL, bottleneck=False),
  'resnet18d': ResNetConfig(_SMALL, bottleneck=False, **_D),
  'resnet26': ResNetConfig(_SMALL),
  'resnet26d': ResNetConfig(_SMALL, **_D),
  'resnet26t': ResNetConfig(_SMALL, **_T),
  'resnet34': ResNetConfig(_50, bottleneck=False),
  'resnet34d': ResNetConfig(_50, bottleneck=False, **_D),
  'resnet50': ResNetConfig(_50),
  'resnet50d': ResNetConfig(_50, **_D),
  'resnet101': ResNetConfig(_101),
  'resnet101d': ResNetConfig(_101, **_D),
  'resnet152': ResNetConfig(_152),
  'resnet152d': ResNetConfig(_152, **_D),
  'resnet200d': ResNetConfig((3, 24, 36, 3), **_D),
  'wide_resnet50_2': ResNetConfig(_50, group_width=128),
  'wide_resnet101_2': ResNetConfig(_101, group_width=128),
  'resnext50_32x4d': ResNetConfig(_50, **_X['32x4d']),
  'resnext50d_32x4d': ResNetConfig(_50, **_X['32x4d'], **_D),
  **{f'resnext101_{name}': ResNetConfig(_101, **shape) for name, shape in _X.items()},
  'seresnet50': ResNetConfig(_50, gate='se'),
  'seresnet152d': ResNetConfig(_152, **_D, gate='se'),
  'seresnext26d_32x4d': ResNetConfig(_SMALL, **_X['32x4d'], **_D, gate='se'),
  'seresnext26t_32x4d': ResNetConfig(_SMALL, **_X['32x4d'], **_T, gate='se'),
  'seresnext50_32x4d': ResNetConfig(_50, **_X['32x4d'], gate='se'),
  'seresnext101_32x8d': ResNetConfig(_101, **_X['32x8d'], gate='se'),
  'seresnext101d_32x8d': ResNetConfig(_101, **_X['32x8d'], **_D, gate='se'),
  'ecaresnet26t': ResNetConfig(_SMALL, **_T, gate='eca'),
  'ecaresnetlight': ResNetConfig((1, 1, 11, 3), averaging=True, gate='eca'),
  'ecaresnet50d': ResNetConfig(_50, **_D, gate='eca'),
  'ecaresnet50t': ResNetConfig(_50, **_T, gate='eca'),
  'ecaresnet101d': ResNetConfig(_101, **_D, gate='eca'),
  'ecaresnet269d': ResNetConfig((3, 30, 48, 8), **_D, gate='eca'),
  'resnet_test': ResNetConfig((1, 2, 1, 1), base=4),
  'resnetd_test': ResNetConfig((1, 1, 1, 1), base=4, groups=2, group_width=32, stem=(3, 4), averaging=True, gate='se'),
}
LAYOUTS = {
  'timm': timm,
  'torchvision': torchvision,
  'transformers': transformers,
  'transformers_base': partial(transformers, prefix=''),
}
TRANSFORMERS = {'resnet': of_transformers}
_TAGS = {  # timm's default weights: (tag, size, crop)
  'resnet10t': ('c3_in1k', 176, 0.875),
  'resnet14t': ('c3_in1k', 176, 0.875),
  'resnet18': ('a1_in1k', 224, 0.95),
  'resnet18d': ('ra2_in1k', 224, 0.875),
  'resnet26': ('bt_in1k', 224, 0.875),
  'resnet26d': ('bt_in1k', 224, 0.875),
  'resnet26t': ('ra2_in1k', 256, 0.94),
  'resnet34': ('a1_in1k', 224, 0.95),
  'resnet34d': ('ra2_in1k', 224, 0.875),
  'resnet50': ('a1_in1k', 224, 0.95),
  'resnet50d': ('ra2_in1k', 224, 0.875),
  'resnet101': ('a1h_in1k', 224, 0.95),
  'resnet101d': ('ra2_in1k', 256, 0.95),
  'resnet152': ('a1h_in1k', 224, 0.95),
  'resnet152d': ('ra2_in1k', 256, 0.95),
  'resnet200d': ('ra2_in1k', 256, 0.95),
  'wide_resnet50_2': ('racm_in1k', 224, 0.875),
  'wide_resnet101_2': ('tv_in1k', 224, 0.875),
  'resnext50_32x4d': ('a1h_in1k', 224, 0.95),
  'resnext50d_32x4d': ('bt_in1k', 224, 0.875),
  'resnext101_32x4d': ('fb_ssl_yfcc100m_ft_in1k', 224, 0.875),
  'resnext101_32x8d': ('tv_in1k', 224, 0.875),
  'resnext101_32x16d': ('fb_wsl_ig1b_ft_in1k', 224, 0.875),
  'resnext101_32x32d': ('fb_wsl_ig1b_ft_in1k', 224, 0.875),
  'resnext101_64x4d': ('c1_in1k', 224, 0.95),
  'seresnet50': ('a1_in1k', 224, 0.95),
  'seresnet152d': ('ra2_in1k', 256, 0.95),
  'seresnext26d_32x4d': ('bt_in1k', 224, 0.875),
  'seresnext26t_32x4d': ('bt_in1k', 224, 0.875),
  'seresnext50_32x4d': ('racm_in1k', 224, 0.875),
  'seresnext101_32x8d': ('ah_in1k', 224, 0.95),
  'seresnext101d_32x8d': ('ah_in1k', 224, 0.95),
  'ecaresnet26t': ('ra2_in1k', 256, 0.875),
  'ecaresnetlight': ('miil_in1k', 224, 0.875),
  'ecaresnet50d': ('miil_in1k', 224, 0.875),
  'ecaresnet50t': ('ra2_in1k', 256, 0.875),
  'ecaresnet101d': ('miil_in1k', 224, 0.875),
  'ecaresnet269d': ('ra2_in1k', 320, 0.95),
}
_PAPER = 'https://arxiv.org/abs/2110.00476'
_OLDER = {'tv': 'bsd-3-clause', 'fb': 'cc-by-nc-4.0'}  # licences of torchvision's first weights and of Facebook's


def _checkpoint(name: str, tag: str, size: int, crop: float) -> Checkpoint:
  older = _OLDER.get(tag[:2])
  preprocess = Preprocess(size, crop, 'bilinear' if older else 'bicubic')
  source = 'https://github.com/huggingface/pytorch-image-models' if older else _PAPER
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, older or 'apache-2.0', source)


CHECKPOINTS = {name: _checkpoint(name, *record) for name, record in _TAGS.items()}
FIGURES = {  # top-1: timm's results/results-imagenet.csv at that size
  'resnet10t': Figures(5_435_488, 0.699, 176, 66.724),
  'resnet14t': Figures(10_081_632, 1.068, 176, 71.318),
  'resnet18': Figures(11_689_512, 1.814, 224, 71.504),
  'resnet18d': Figures(11_708_744, 2.054, 224, 72.296),
  'resnet26': Figures(15_995_176, 2.342, 224, 75.298),
  'resnet26d': Figures(16_014_408, 2.582, 224, 76.698),
  'resnet26t': Figures(16_011_872, 3.330, 256, 77.878),
  'resnet34': Figures(21_797_672, 3.664, 224, 76.420),
  'resnet34d': Figures(21_816_904, 3.903, 224, 77.108),
  'resnet50': Figures(25_557_032, 4.089, 224, 80.382),
  'resnet50d': Figures(25_576_264, 4.329, 224, 80.546),
  'resnet101': Figures(44_549_160, 7.801, 224, 81.950),
  'resnet101d': Figures(44_568_392, 10.502, 256, 82.254),
  'resnet152': Figures(60_192_808, 11.514, 224, 82.818),
  'resnet152d': Figures(60_212_040, 15.351, 256, 83.160),
  'resnet200d': Figures(64_693_064, 19.914, 256, 83.250),
  'wide_resnet50_2': Figures(68_883_240, 11.398, 224, 81.466),
  'wide_resnet101_2': Figures(126_886_696, 22.753, 224, 78.862),
  'resnext50_32x4d': Figures(25_028_904, 4.230, 224, 81.140),
  'resnext50d_32x4d': Figures(25_048_136, 4.470, 224, 79.672),
  'resnext101_32x4d': Figures(44_177_704, 7.970, 224, 80.936),
  'resnext101_32x8d': Figures(88_791_336, 16.414, 224, 79.308),
  'resnext101_32x16d': Figures(194_026_792, 36.163, 224, 84.166),
  'resnext101_32x32d': Figures(468_530_472, 87.107, 224, 85.090),
  'resnext101_64x4d': Figures(83_455_272, 15.460, 224, 82.446),
  'seresnet50': Figures(28_088_024, 4.092, 224, 80.012),
  'seresnet152d': Figures(66_841_080, 15.357, 256, 83.702),
  'seresnext26d_32x4d': Figures(16_809_512, 2.712, 224, 77.592),
  'seresnext26t_32x4d': Figures(16_806_976, 2.680, 224, 77.980),
  'seresnext50_32x4d': Figures(27_559_896, 4.233, 224, 81.268),
  'seresnext101_32x8d': Figures(93_569_048, 16.419, 224, 83.618),
  'seresnext101d_32x8d': Figures(93_588_280, 16.658, 224, 83.702),
  'ecaresnet26t': Figures(16_011_916, 3.330, 256, 78.894),
  'ecaresnetlight': Figures(30_162_046, 4.089, 224, 80.454),
  'ecaresnet50d': Figures(25_576_350, 4.329, 224, 80.634),
  'ecaresnet50t': Figures(25_573_814, 5.612, 256, 81.450),
  'ecaresnet101d': Figures(44_568_563, 8.041, 224, 82.180),
  'ecaresnet269d': Figures(102_093_077, 41.364, 320, 84.724),
}
