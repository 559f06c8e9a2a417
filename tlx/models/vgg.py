"""VGG 11 to 19, with and without batch norm (Simonyan & Zisserman 2014, https://arxiv.org/abs/1409.1556).

The layer 'pre_logits' contains the classifier's two hidden layers, as a 7x7 and a 1x1 convolution. Maps smaller than
7x7 are pooled up to it; on larger maps it slides, and the mean of all positions is classified. A layer begins with the
max pool before it, so the features are timm's, with strides 1, 2, 4, 8 and 16. Stochastic depth has no effect, because
there are no residual branches.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax

from tlx.nn.conv import Conv, Dense
from tlx.nn.model import Config, Layer
from tlx.nn.norm import BatchNorm
from tlx.nn.pool import adaptive_avg_pool, max_pool
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

WINDOW = 7  # height and width of the map that a hidden unit reads


@dataclasses.dataclass(frozen=True)
class VGGConfig(Config):
  """Shape of one variant."""

  depths: tuple[int, ...]  # 3x3 convolutions of each stage
  norm: bool
  widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each stage
  hidden: int = 4096  # channels of the classifier's hidden layers; 0 = the last max pool is the last layer

  @property
  def width(self) -> int:
    return self.hidden or self.widths[-1]

  def convolutions(self) -> Iterator[tuple[str, int, bool, int]]:
    """(layer, channels, whether a pool comes first, position in the published list of modules), in order."""
    place = 0
    for s, (depth, channels) in enumerate(zip(self.depths, self.widths)):
      for i in range(depth):
        pooled = s > 0 and i == 0
        block = i - (s == 0)  # the first convolution is the stem
        place += pooled
        yield f'stage{s}_block{block}' if block >= 0 else 'stem', channels, pooled, place
        place += 3 if self.norm else 2

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    blocks = (Layer(name, partial(Block, c, self.norm, pooled)) for name, c, pooled, _ in self.convolutions())
    return (*blocks, Layer('pre_logits', partial(PreLogits, self.hidden)) if self.hidden else Layer('pool', Pool))


class Block(nn.Module):
  """A max pool where a stage begins, a 3x3 convolution, and batch norm if the variant has it."""

  features: int
  norm: bool
  pooled: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = max_pool(x, 2, 2) if self.pooled else x
    x = Conv(self.features, 3, use_bias=True, name='conv')(x)
    return nn.relu(BatchNorm(name='norm')(x, train) if self.norm else x)


class Pool(nn.Module):
  """The last max pool: [b, h, w, c] -> [b, h / 2, w / 2, c]."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return max_pool(x, 2, 2)


class PreLogits(nn.Module):
  """The last max pool and the classifier's hidden layers: [b, h, w, c] -> [b, h / 2 - 6, w / 2 - 6, hidden]."""

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = max_pool(x, 2, 2)
    x = adaptive_avg_pool(x, *(max(WINDOW, side) for side in x.shape[1:3]))
    x = nn.relu(Conv(self.hidden, WINDOW, padding='valid', use_bias=True, name='fc1')(x))
    return nn.relu(Dense(self.hidden, name='fc2')(x))


def _layout(config: VGGConfig, names: tuple[str, str, str], fc1: rules.Transform, fc2: rules.Transform):
  """The table that all layouts share. `names` are those of the classifier's three layers."""
  for layer, _, _, place in config.convolutions():
    make = rules.stem if layer == 'stem' else rules.conv
    yield from make(f'features.{place}', f'backbone/{layer}/conv', bias=True)
    if config.norm:
      yield from rules.norm(f'features.{place + 1}', f'backbone/{layer}/norm')
  for name, source, transform in zip(('fc1', 'fc2') if config.hidden else (), names, (fc1, fc2)):
    yield rules.Rule(f'{source}.weight', f'params/backbone/pre_logits/{name}/kernel', transform)
    yield rules.Rule(f'{source}.bias', f'params/backbone/pre_logits/{name}/bias')
  yield from rules.dense(names[2], 'head/logits')


def timm(config: VGGConfig) -> Iterator[rules.Rule]:
  """timm's names: features.0, pre_logits.fc1, head.fc. The hidden layers are convolutions."""
  return _layout(config, ('pre_logits.fc1', 'pre_logits.fc2', 'head.fc'), rules.CONV, rules.POINTWISE)


def torchvision(config: VGGConfig) -> Iterator[rules.Rule]:
  """torchvision's names: features.0, classifier.0, .3 and .6. The hidden layers are linear, on the flattened map."""
  unflatten = rules.reshape((-1, config.widths[-1] * WINDOW**2), (-1, config.widths[-1], WINDOW, WINDOW))
  fc1 = rules.Transform(lambda x: rules.CONV.read(unflatten.read(x)), lambda x: unflatten.write(rules.CONV.write(x)))
  return _layout(config, ('classifier.0', 'classifier.3', 'classifier.6'), fc1, rules.DENSE)


_DEPTHS = {'11': (1, 1, 2, 2, 2), '13': (2, 2, 2, 2, 2), '16': (2, 2, 3, 3, 3), '19': (2, 2, 4, 4, 4)}
VARIANTS = {
  f'vgg{name}{"_bn" * norm}': VGGConfig(depths, norm) for name, depths in _DEPTHS.items() for norm in (False, True)
}
VARIANTS['vgg_test'] = VGGConfig((2, 1, 1), norm=False, widths=(4, 8, 8), hidden=12)
VARIANTS['vgg_bn_test'] = VGGConfig((1, 2, 1), norm=True, widths=(4, 8, 8), hidden=12)
LAYOUTS = {'timm': timm, 'torchvision': torchvision}
CHECKPOINTS = {
  name: Checkpoint(
    name,
    f'hf-hub:timm/{name}.tv_in1k',
    'timm',
    Preprocess(interpolation='bilinear'),
    license='bsd-3-clause',
    source='https://arxiv.org/abs/1409.1556',
  )
  for name in VARIANTS
  if not name.endswith('_test')
}
FIGURES = {  # top-1: timm's results/results-imagenet.csv
  'vgg11': Figures(132_863_336, 7.609, 224, 69.050),
  'vgg11_bn': Figures(132_868_840, 7.609, 224, 70.374),
  'vgg13': Figures(133_047_848, 11.308, 224, 69.950),
  'vgg13_bn': Figures(133_053_736, 11.308, 224, 71.560),
  'vgg16': Figures(138_357_544, 15.470, 224, 71.594),
  'vgg16_bn': Figures(138_365_992, 15.470, 224, 73.354),
  'vgg19': Figures(143_667_240, 19.632, 224, 72.400),
  'vgg19_bn': Figures(143_678_248, 19.632, 224, 74.230),
}
