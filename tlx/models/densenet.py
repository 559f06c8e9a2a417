"""DenseNet 121 to 201 (Huang et al. 2016, https://arxiv.org/abs/1608.06993): a block appends channels to its input.

Batch norm and activation come before the convolution. `stage{i}_transition` halves channels, height and width before
the blocks of stage i. Stochastic depth has no effect, because there are no residual branches.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlx.nn.conv import Conv
from tlx.nn.model import Config, Layer, Tapped
from tlx.nn.norm import BatchNorm
from tlx.nn.pool import avg_pool, max_pool
from tlx.types import Checkpoint, Figures
from tlx.weights import rules

BOTTLENECK = 4  # channels between the two convolutions of a block, as a multiple of `growth`


@dataclasses.dataclass(frozen=True)
class DenseNetConfig(Config):
  """Shape of one variant."""

  depths: tuple[int, ...]  # blocks of each stage
  growth: int = 32  # channels that a block appends

  @property
  def width(self) -> int:
    channels = 4 * self.growth  # twice the stem's, because the loop halves before the first stage too
    for depth in self.depths:
      channels = channels // 2 + depth * self.growth
    return channels

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    layers = [Layer('stem', partial(Stem, 2 * self.growth))]
    for s, depth in enumerate(self.depths):
      if s:
        layers.append(Layer(f'stage{s}_transition', Transition))
      layers += [Layer(f'stage{s}_block{b}', partial(Block, self.growth)) for b in range(depth)]
    return (*layers, Layer('norm', Norm))


class Stem(nn.Module):
  """7x7 convolution of stride 2, a tap, and a max pool: [b, h, w, 3] -> [b, h/4, w/4, features]."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Tapped:
    x = Conv(self.features, 7, 2, name='conv')(x)
    x = nn.relu(BatchNorm(name='norm')(x, train))
    return Tapped(max_pool(x, 3, 2, padding=1), {'conv': x})


class Block(nn.Module):
  """1x1 convolution to 4 * growth channels, 3x3 convolution to `growth` channels, appended to the input."""

  growth: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nn.relu(BatchNorm(name='norm1')(x, train))
    y = Conv(BOTTLENECK * self.growth, 1, name='conv1')(y)
    y = nn.relu(BatchNorm(name='norm2')(y, train))
    return jnp.concatenate([x, Conv(self.growth, 3, name='conv2')(y)], axis=-1)


class Transition(nn.Module):
  """Halves channels, height and width."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = nn.relu(BatchNorm(name='norm')(x, train))
    return avg_pool(Conv(x.shape[-1] // 2, 1, name='conv')(x), 2, 2)


class Norm(nn.Module):
  """The batch norm after the last block, and its activation."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.relu(BatchNorm(name='norm')(x, train))


def timm(config: DenseNetConfig, part: str = '{}{}') -> Iterator[rules.Rule]:
  """timm's names: features.denseblock1.denselayer1.norm1. `part` formats the last word from 'norm' and 1."""
  yield from rules.stem('features.conv0', 'backbone/stem/conv')
  yield from rules.norm('features.norm0', 'backbone/stem/norm')
  for s, depth in enumerate(config.depths):
    if s:
      yield from rules.norm(f'features.transition{s}.norm', f'backbone/stage{s}_transition/norm')
      yield from rules.conv(f'features.transition{s}.conv', f'backbone/stage{s}_transition/conv')
    for b in range(depth):
      source, target = f'features.denseblock{s + 1}.denselayer{b + 1}', f'backbone/stage{s}_block{b}'
      for i in (1, 2):
        yield from rules.norm(f'{source}.{part.format("norm", i)}', f'{target}/norm{i}')
        yield from rules.conv(f'{source}.{part.format("conv", i)}', f'{target}/conv{i}')
  yield from rules.norm(f'features.norm{len(config.depths) + 1}', 'backbone/norm/norm')
  yield from rules.dense('classifier', 'head/logits')


def torchvision_files(config: DenseNetConfig) -> Iterator[rules.Rule]:
  """Names in torchvision's files: features.denseblock1.denselayer1.norm.1. Its code has newer names, timm's."""
  return timm(config, '{}.{}')


VARIANTS = {
  'densenet121': DenseNetConfig((6, 12, 24, 16)),
  'densenet161': DenseNetConfig((6, 12, 36, 24), growth=48),
  'densenet169': DenseNetConfig((6, 12, 32, 32)),
  'densenet201': DenseNetConfig((6, 12, 48, 32)),
  'densenet_test': DenseNetConfig((1, 2, 1), growth=4),
}
LAYOUTS = {'timm': timm, 'torchvision': timm, 'torchvision_files': torchvision_files}
_TAGS = {'densenet121': 'ra_in1k', 'densenet161': 'tv_in1k', 'densenet169': 'tv_in1k', 'densenet201': 'tv_in1k'}
CHECKPOINTS = {
  name: Checkpoint(
    name, f'hf-hub:timm/{name}.{tag}', 'timm', license='apache-2.0', source='https://arxiv.org/abs/1608.06993'
  )
  for name, tag in _TAGS.items()
}
FIGURES = {  # top-1: timm's results/results-imagenet.csv at 224 pixels
  'densenet121': Figures(7_978_856, 2.834, 224, 75.574),
  'densenet161': Figures(28_681_000, 7.728, 224, 77.384),
  'densenet169': Figures(14_149_480, 3.360, 224, 75.922),
  'densenet201': Figures(20_013_928, 4.291, 224, 77.284),
}
