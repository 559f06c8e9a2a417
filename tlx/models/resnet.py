"""ResNet 18 to 152 (He et al. 2015, https://arxiv.org/abs/1512.03385), v1.5: the 3x3 convolution carries the stride."""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax

from tlx.nn.conv import Conv
from tlx.nn.model import Layer
from tlx.nn.norm import BatchNorm
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint
from tlx.weights import rules


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Shape of one variant."""

  depths: tuple[int, int, int, int]  # blocks a stage
  bottleneck: bool
  base: int = 64  # channels of the stem

  @property
  def width(self) -> int:
    return self.base * 8 * (4 if self.bottleneck else 1)

  def blocks(self) -> Iterator[tuple[int, int]]:
    """(stage, block) from input to output."""
    return ((s, b) for s, depth in enumerate(self.depths) for b in range(depth))

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    block = Bottleneck if self.bottleneck else BasicBlock
    blocks, last = list(self.blocks()), max(1, sum(self.depths) - 1)
    return (
      Layer('stem', partial(Stem, self.base)),
      *(
        Layer(f'stage{s}_block{b}', partial(block, self.base * 2**s, 2 if b == 0 and s else 1, drop_path * i / last))
        for i, (s, b) in enumerate(blocks)
      ),
    )


class Stem(nn.Module):
  """7x7 convolution of stride 2 and a max pool: [b, h, w, 3] -> [b, h/4, w/4, base]."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.features, 7, 2, name='conv')(x)
    x = nn.relu(BatchNorm(name='norm')(x, train))
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around a shortcut."""

  features: int
  stride: int
  drop_path: float

  expansion = 1
  kernels = ((3, 1), (3, 0))  # (size, index of the stride: 1 = this convolution carries it)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    out, residual = self.features * self.expansion, x
    for i, (size, strided) in enumerate(self.kernels, 1):
      last = i == len(self.kernels)
      x = Conv(out if last else self.features, size, self.stride if strided else 1, name=f'conv{i}')(x)
      x = BatchNorm(name=f'norm{i}')(x, train)
      x = x if last else nn.relu(x)
    if residual.shape != x.shape:
      residual = Conv(out, 1, self.stride, name='shortcut_conv')(residual)
      residual = BatchNorm(name='shortcut_norm')(residual, train)
    return nn.relu(residual + DropPath(self.drop_path)(x, train))


class Bottleneck(BasicBlock):
  """1x1 down, 3x3, 1x1 up by four, around a shortcut."""

  expansion = 4
  kernels = ((1, 0), (3, 1), (1, 0))


def timm(config: ResNetConfig) -> Iterator[rules.Rule]:
  """timm's and torchvision's names: conv1, layer1.0.conv1, layer1.0.downsample.0, fc."""
  yield from rules.stem('conv1', 'backbone/stem/conv')
  yield from rules.norm('bn1', 'backbone/stem/norm')
  for s, b in config.blocks():
    source, target = f'layer{s + 1}.{b}', f'backbone/stage{s}_block{b}'
    for i in (1, 2, 3)[: 3 if config.bottleneck else 2]:
      yield from rules.conv(f'{source}.conv{i}', f'{target}/conv{i}')
      yield from rules.norm(f'{source}.bn{i}', f'{target}/norm{i}')
    if b == 0 and (s or config.bottleneck):
      yield from rules.conv(f'{source}.downsample.0', f'{target}/shortcut_conv')
      yield from rules.norm(f'{source}.downsample.1', f'{target}/shortcut_norm')
  yield from rules.dense('fc', 'head/logits')


VARIANTS = {
  'resnet18': ResNetConfig((2, 2, 2, 2), bottleneck=False),
  'resnet34': ResNetConfig((3, 4, 6, 3), bottleneck=False),
  'resnet50': ResNetConfig((3, 4, 6, 3), bottleneck=True),
  'resnet101': ResNetConfig((3, 4, 23, 3), bottleneck=True),
  'resnet152': ResNetConfig((3, 8, 36, 3), bottleneck=True),
  'resnet_test': ResNetConfig((1, 2, 1, 1), bottleneck=True, base=4),
}
LAYOUTS = {'timm': timm}
_TAGS = {
  'resnet18': 'a1_in1k',
  'resnet34': 'a1_in1k',
  'resnet50': 'a1_in1k',
  'resnet101': 'a1h_in1k',
  'resnet152': 'a1h_in1k',
}
_PAPER = 'https://arxiv.org/abs/2110.00476'
CHECKPOINTS = {
  name: Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', license='apache-2.0', source=_PAPER)
  for name, tag in _TAGS.items()
}
