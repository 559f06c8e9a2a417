"""Inception v3 (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567): blocks of parallel convolutions.

The layers' outputs are timm's features: 'stem' has stride 2, and the stages have strides 4, 8, 16 and 32; a stage
begins with its reduction. The layer 'aux' passes its input on. In training mode it also sows the logits of a second
head into the collection 'aux', and the training step adds their loss. For images below 299 pixels, the map that 'aux'
reads is smaller than its window and is enlarged to it by adaptive pooling.

Some published files have the second head (torchvision's, and timm's tv_in1k, 27.2 million parameters), others lack it
(timm's tf_in1k, tf_adv_in1k and gluon_in1k, 23.8 million). `aux_classes` is its number of outputs; None removes it.
torchvision's `transform_input` undoes torchvision's normalisation: together they amount to the recorded mean and
standard deviation of 0.5.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlx.nn.conv import Dense
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.model import Config, Layer
from tlx.nn.pool import adaptive_avg_pool, avg_pool, max_pool
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

conv_norm = partial(ConvNorm, epsilon=1e-3)


class Unit(NamedTuple):
  """A convolution with batch norm and activation. Units with a stride have no padding."""

  name: str  # in the published files
  channels: int
  kernel: int | tuple[int, int] = 1
  stride: int = 1
  padded: bool = True


class Fork(NamedTuple):
  """Two units on one input; their outputs are concatenated."""

  left: Unit
  right: Unit


AVERAGE, LARGEST = 'average', 'largest'  # average pool of stride 1, max pool of stride 2
Branch = tuple[Unit | Fork | str, ...]


def _a(pooled: int) -> tuple[Branch, ...]:
  """The block of Figure 5 in the paper, with one 5x5 convolution left. `pooled`: channels of the pooled branch."""
  return (
    (Unit('branch1x1', 64),),
    (Unit('branch5x5_1', 48), Unit('branch5x5_2', 64, 5)),
    (Unit('branch3x3dbl_1', 64), Unit('branch3x3dbl_2', 96, 3), Unit('branch3x3dbl_3', 96, 3)),
    (AVERAGE, Unit('branch_pool', pooled)),
  )


def _c(narrow: int) -> tuple[Branch, ...]:
  """The block of Figure 6: 7x7 convolutions as 1x7 and 7x1. `narrow`: channels between them."""
  short = Unit('branch7x7_1', narrow), Unit('branch7x7_2', narrow, (1, 7)), Unit('branch7x7_3', 192, (7, 1))
  long = (
    Unit('branch7x7dbl_1', narrow),
    Unit('branch7x7dbl_2', narrow, (7, 1)),
    Unit('branch7x7dbl_3', narrow, (1, 7)),
    Unit('branch7x7dbl_4', narrow, (7, 1)),
    Unit('branch7x7dbl_5', 192, (1, 7)),
  )
  return (Unit('branch1x1', 192),), short, long, (AVERAGE, Unit('branch_pool', 192))


_B = (  # Figure 10: halves height and width
  (Unit('branch3x3', 384, 3, 2),),
  (Unit('branch3x3dbl_1', 64), Unit('branch3x3dbl_2', 96, 3), Unit('branch3x3dbl_3', 96, 3, 2)),
  (LARGEST,),
)
_D = (
  (Unit('branch3x3_1', 192), Unit('branch3x3_2', 320, 3, 2)),
  (
    Unit('branch7x7x3_1', 192),
    Unit('branch7x7x3_2', 192, (1, 7)),
    Unit('branch7x7x3_3', 192, (7, 1)),
    Unit('branch7x7x3_4', 192, 3, 2),
  ),
  (LARGEST,),
)
_E = (  # Figure 7
  (Unit('branch1x1', 320),),
  (Unit('branch3x3_1', 384), Fork(Unit('branch3x3_2a', 384, (1, 3)), Unit('branch3x3_2b', 384, (3, 1)))),
  (
    Unit('branch3x3dbl_1', 448),
    Unit('branch3x3dbl_2', 384, 3),
    Fork(Unit('branch3x3dbl_3a', 384, (1, 3)), Unit('branch3x3dbl_3b', 384, (3, 1))),
  ),
  (AVERAGE, Unit('branch_pool', 192)),
)
BLOCKS: dict[str, tuple[Branch, ...]] = {  # keys: the last two characters of the published names
  '2b': ((Unit('Conv2d_1a_3x3', 32, 3, 2), Unit('Conv2d_2a_3x3', 32, 3, padded=False), Unit('Conv2d_2b_3x3', 64, 3)),),
  '4a': ((LARGEST, Unit('Conv2d_3b_1x1', 80), Unit('Conv2d_4a_3x3', 192, 3, padded=False)),),
  '5b': _a(32), '5c': _a(64), '5d': _a(64),
  '6a': _B, '6b': _c(128), '6c': _c(160), '6d': _c(160), '6e': _c(192),
  '7a': _D, '7b': _E, '7c': _E,
}  # fmt: skip
POOLED = '5b'  # a max pool of stride 2 precedes this block


@dataclasses.dataclass(frozen=True)
class InceptionConfig(Config):
  """Shape of one variant."""

  stages: tuple[tuple[str, ...], ...] = (
    ('4a',),
    ('5b', '5c', '5d'),
    ('6a', '6b', '6c', '6d', '6e'),
    ('7a', '7b', '7c'),
  )
  divide: int = 1  # divides all channels
  padded: bool = False  # pads all convolutions, so that small images work
  aux_classes: int | None = 1000  # outputs of the second head; 0 removes its last layer, None the whole head

  @property
  def width(self) -> int:
    return 2048 // self.divide

  @property
  def smallest(self) -> int:
    return 32 if self.padded else 75

  def blocks(self) -> Iterator[tuple[str, str]]:
    """(layer, key of BLOCKS) from input to output."""
    yield 'stem', '2b'
    for s, stage in enumerate(self.stages):
      for b, block in enumerate(stage):
        yield f'stage{s}_block{b}', block

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    layers = [Layer(name, partial(Mixed, self, block)) for name, block in self.blocks()]
    if self.aux_classes is not None:
      before = next(i for i, layer in enumerate(layers) if layer.name.startswith('stage3'))
      layers.insert(before, Layer('aux', partial(Aux, self.aux_classes, self.divide)))
    return tuple(layers)


class Mixed(nn.Module):
  """Parallel branches on one input; their outputs are concatenated along the channels."""

  config: InceptionConfig
  block: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = self._step(LARGEST, x, train) if self.block == POOLED else x
    outputs = []
    for branch in BLOCKS[self.block]:
      y = x
      for step in branch:
        y = self._step(step, y, train)
      outputs.append(y)
    return jnp.concatenate(outputs, axis=-1)

  def _step(self, step: Unit | Fork | str, x: jax.Array, train: bool) -> jax.Array:
    if isinstance(step, Fork):
      return jnp.concatenate([self._step(unit, x, train) for unit in step], axis=-1)
    if step == AVERAGE:
      return avg_pool(x, 3, 1, padding=1)
    if step == LARGEST:
      return max_pool(x, 3, 2, padding=int(self.config.padded))
    padding = 'torch' if self.config.padded or (step.padded and step.stride == 1) else 'valid'
    unit = conv_norm(step.channels // self.config.divide, step.kernel, step.stride, padding=padding, name=step.name)
    return unit(x, train)


class Aux(nn.Module):
  """The second head, used in training only. It returns its input unchanged."""

  classes: int
  divide: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if not (train or self.is_initializing()):
      return x
    y = x if train else x[:0]  # an empty batch creates the parameters at no cost
    y = avg_pool(y, 5, 3) if min(y.shape[1:3]) >= 5 else y
    y = adaptive_avg_pool(y, *(max(5, side) for side in y.shape[1:3]))
    y = conv_norm(128 // self.divide, 1, name='conv0')(y, train)
    y = conv_norm(768 // self.divide, 5, padding='valid', name='conv1')(y, train)
    if self.classes:
      logits = Dense(self.classes, name='logits')(widened(y).mean(axis=(1, 2)))
      if not self.is_initializing():
        self.sow('aux', 'output', logits)
    return x


def _units(block: str) -> Iterator[Unit]:
  """All convolutions of a block, in order."""
  for step in (step for branch in BLOCKS[block] for step in branch):
    if isinstance(step, Fork):
      yield from step
    elif isinstance(step, Unit):
      yield step


def timm(config: InceptionConfig) -> Iterator[rules.Rule]:
  """timm's and torchvision's names: Conv2d_1a_3x3.conv, Mixed_5b.branch1x1.bn, AuxLogits.conv0, fc."""
  for layer, block in config.blocks():
    for unit in _units(block):
      source = unit.name if unit.name.startswith('Conv2d') else f'Mixed_{block}.{unit.name}'
      make = rules.stem if unit.name == 'Conv2d_1a_3x3' else rules.conv
      yield from make(f'{source}.conv', f'backbone/{layer}/{unit.name}/conv')
      yield from rules.norm(f'{source}.bn', f'backbone/{layer}/{unit.name}/norm')
  if config.aux_classes is not None:
    for part in ('conv0', 'conv1'):
      yield from rules.conv(f'AuxLogits.{part}.conv', f'backbone/aux/{part}/conv')
      yield from rules.norm(f'AuxLogits.{part}.bn', f'backbone/aux/{part}/norm')
    yield from rules.dense('AuxLogits.fc', 'backbone/aux/logits')
  yield from rules.dense('fc', 'head/logits')


VARIANTS = {
  'inception_v3': InceptionConfig(),
  'inception_test': InceptionConfig((('4a',), ('5b',), ('6a', '6b'), ('7a', '7b')), divide=16, padded=True),
}
LAYOUTS = {'timm': timm, 'torchvision': timm}
CHECKPOINTS = {
  'inception_v3': Checkpoint(
    'inception_v3',
    'hf-hub:timm/inception_v3.tv_in1k',
    'timm',
    Preprocess(299, 0.875, 'bicubic', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    license='apache-2.0',
    source='https://arxiv.org/abs/1512.00567',
  )
}
FIGURES = {  # with the second head's parameters, without its operations; top-1: timm's results/results-imagenet.csv
  'inception_v3': Figures(27_161_264, 5.713, 299, 77.472),
}
