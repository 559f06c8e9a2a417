"""Big Transfer, BiT (Kolesnikov et al. 2019, https://arxiv.org/abs/1912.11370): a ResNet v2 for transfer learning.

Norm and ReLU come before each convolution (He et al. 2016, https://arxiv.org/abs/1603.05027). It has group norm instead
of batch norm, and standardised kernels, so nothing depends on the batch.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlx.nn.model import Layer, Staged
from tlx.nn.norm import GroupNorm
from tlx.nn.std_conv import StdConv
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules

conv = partial(StdConv, epsilon=1e-8)


@dataclasses.dataclass(frozen=True)
class BitConfig(Staged):
  """Shape of one variant."""

  depths: tuple[int, int, int, int]  # blocks of each stage
  widen: int = 1
  base: int = 64  # channels of the stem before widening
  groups: int = 32  # channel groups of every norm

  @property
  def width(self) -> int:
    return self.channels(3)

  def channels(self, s: int) -> int:
    """Output channels of stage s."""
    return self.base * self.widen * 4 * 2**s

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    return (
      Layer('stem', partial(Stem, self.base * self.widen)),
      *self.block_layers(drop_path, lambda s, b, rate: partial(Block, self, s, b == 0, rate)),
      Layer('norm', partial(NormAct, self.groups)),
    )


class Stem(nn.Module):
  """7x7 convolution of stride 2 and a max pool with zero padding: [b, h, w, 3] -> [b, h/4, w/4, c]."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv(self.features, 7, 2, name='conv')(x)
    return nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))


class NormAct(nn.Module):
  """Group norm and ReLU."""

  groups: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    return nn.relu(GroupNorm(self.groups, name='norm')(x))


class Block(nn.Module):
  """Norm, ReLU and convolution three times, with a residual connection that the first block of a stage projects."""

  config: BitConfig
  stage: int
  first: bool
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    out = self.config.channels(self.stage)
    stride = 2 if self.first and self.stage else 1
    norm = partial(NormAct, self.config.groups)
    shortcut, x = x, norm(name='norm1')(x)
    if self.first:
      shortcut = conv(out, 1, stride, name='shortcut_conv')(x)
    x = conv(out // 4, 1, name='conv1')(x)
    x = conv(out // 4, 3, stride, name='conv2')(norm(name='norm2')(x))
    x = conv(out, 1, name='conv3')(norm(name='norm3')(x))
    return shortcut + DropPath(self.drop_path)(x, train)


def timm(config: BitConfig) -> Iterator[rules.Rule]:
  """timm's names: stem.conv, stages.0.blocks.0.norm1, norm, head.fc (a 1x1 convolution)."""
  yield from rules.stem('stem.conv', 'backbone/stem/conv')
  for s, b in config.blocks():
    source, target = f'stages.{s}.blocks.{b}', f'backbone/stage{s}_block{b}'
    for i in (1, 2, 3):
      yield from rules.affine(f'{source}.norm{i}', f'{target}/norm{i}/norm')
      yield from rules.conv(f'{source}.conv{i}', f'{target}/conv{i}')
    if b == 0:
      yield from rules.conv(f'{source}.downsample.conv', f'{target}/shortcut_conv')
  yield from rules.affine('norm', 'backbone/norm/norm')
  yield rules.Rule('head.fc.weight', 'params/head/logits/kernel', rules.POINTWISE)
  yield rules.Rule('head.fc.bias', 'params/head/logits/bias')


def npz(config: BitConfig) -> Iterator[rules.Rule]:
  """Names in the npz files of BiT-S and BiT-M: resnet/root_block, resnet/block1/unit01/a, resnet/head/conv2d."""
  kernel = 'standardized_conv2d/kernel'  # HWIO, as in tlx

  def norm(source: str, target: str) -> Iterator[rules.Rule]:
    yield rules.Rule(f'{source}/group_norm/gamma', f'params/{target}/norm/scale')
    yield rules.Rule(f'{source}/group_norm/beta', f'params/{target}/norm/bias')

  (stem,) = rules.stem('', 'backbone/stem/conv')
  yield stem._replace(source=f'resnet/root_block/{kernel}', transform=rules.SAME)
  for s, b in config.blocks():
    source, target = f'resnet/block{s + 1}/unit{b + 1:02d}', f'backbone/stage{s}_block{b}'
    for i, part in enumerate('abc', 1):
      yield from norm(f'{source}/{part}', f'{target}/norm{i}')
      yield rules.Rule(f'{source}/{part}/{kernel}', f'params/{target}/conv{i}/kernel')
    if b == 0:
      yield rules.Rule(f'{source}/a/proj/{kernel}', f'params/{target}/shortcut_conv/kernel')
  yield from norm('resnet', 'backbone/norm')
  flat = rules.Transform(lambda x: x[0, 0], lambda x: x[None, None])
  yield rules.Rule('resnet/head/conv2d/kernel', 'params/head/logits/kernel', flat)
  yield rules.Rule('resnet/head/conv2d/bias', 'params/head/logits/bias')


_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
VARIANTS = {
  'resnetv2_50x1_bit': BitConfig(_50),
  'resnetv2_50x3_bit': BitConfig(_50, 3),
  'resnetv2_101x1_bit': BitConfig(_101),
  'resnetv2_101x3_bit': BitConfig(_101, 3),
  'resnetv2_152x2_bit': BitConfig(_152, 2),
  'resnetv2_152x4_bit': BitConfig(_152, 4),
  'resnetv2_test': BitConfig((1, 2, 1, 1), base=4, groups=4),
}
LAYOUTS = {'timm': timm, 'npz': npz}
_PAPER = 'https://arxiv.org/abs/1912.11370'
_HALF = (0.5, 0.5, 0.5)
_TAGS = {  # timm's default weights: (tag, size, crop, interpolation)
  'resnetv2_50x1_bit': ('goog_distilled_in1k', 224, 0.875, 'bicubic'),
  'resnetv2_50x3_bit': ('goog_in21k_ft_in1k', 448, 1.0, 'bilinear'),
  'resnetv2_101x1_bit': ('goog_in21k_ft_in1k', 448, 1.0, 'bilinear'),
  'resnetv2_101x3_bit': ('goog_in21k_ft_in1k', 448, 1.0, 'bilinear'),
  'resnetv2_152x2_bit': ('goog_teacher_in21k_ft_in1k', 224, 0.875, 'bicubic'),
  'resnetv2_152x4_bit': ('goog_in21k_ft_in1k', 480, 1.0, 'bilinear'),
}
CHECKPOINTS = {
  name: Checkpoint(
    name, f'hf-hub:timm/{name}.{tag}', 'timm', Preprocess(*record, mean=_HALF, std=_HALF), 'apache-2.0', _PAPER
  )
  for name, (tag, *record) in _TAGS.items()
}
FIGURES = {  # top-1: timm's results/results-imagenet.csv at that size
  'resnetv2_50x1_bit': Figures(25_549_352, 4.089, 224, 82.820),
  'resnetv2_50x3_bit': Figures(217_319_080, 144.311, 448, 83.982),
  'resnetv2_101x1_bit': Figures(44_541_480, 31.199, 448, 82.332),
  'resnetv2_101x3_bit': Figures(387_934_888, 277.951, 448, 84.430),
  'resnetv2_152x2_bit': Figures(236_335_208, 45.814, 224, 82.918),
  'resnetv2_152x4_bit': Figures(936_533_224, 839.254, 480, 84.936),
}
