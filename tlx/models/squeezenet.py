"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016, https://arxiv.org/abs/1602.07360), 50 times smaller than AlexNet.

timm has no SqueezeNet, so names and figures are torchvision's. The key 'timm', which every family has, means
torchvision's layout here, and `tlx.save` writes it; only tlx reads the config.json next to it. The head classifies
every position of the last map and averages the rectified logits (`spatial_head`). A stage begins with a max pool.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlx.nn.conv import Conv
from tlx.nn.model import Config, Layer
from tlx.nn.pool import max_pool
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import rules


@dataclasses.dataclass(frozen=True)
class SqueezeNetConfig(Config):
  """Shape of one variant."""

  stem: tuple[int, int]  # channels and kernel of the first convolution
  stages: tuple[tuple[tuple[int, int], ...], ...]  # for each stage and Fire module: (squeezed, expanded) channels

  spatial_head = True

  @property
  def width(self) -> int:
    return self.stages[-1][-1][1]

  def fires(self) -> Iterator[tuple[str, int, int, bool, int]]:
    """(layer, squeezed, expanded, whether a pool comes first, position in the published list of modules), in order."""
    place = 2  # 0 and 1 are the stem's convolution and its activation
    for s, stage in enumerate(self.stages):
      place += 1
      for b, (squeezed, expanded) in enumerate(stage):
        yield f'stage{s}_block{b}', squeezed, expanded, b == 0, place
        place += 1

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    fires = (Layer(name, partial(Fire, *shape)) for name, *shape, _ in self.fires())
    return (Layer('stem', partial(Stem, *self.stem)), *fires)


class Stem(nn.Module):
  """A convolution of stride 2 without padding."""

  features: int
  kernel: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.relu(Conv(self.features, self.kernel, 2, padding='valid', use_bias=True, name='conv')(x))


class Fire(nn.Module):
  """A max pool where a stage begins, a 1x1 convolution down, then 1x1 and 3x3 in parallel: half of `expanded` each."""

  squeezed: int
  expanded: int
  pooled: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = max_pool(x, 3, 2, ceil=True) if self.pooled else x
    x = nn.relu(Conv(self.squeezed, 1, use_bias=True, name='squeeze')(x))
    half = self.expanded // 2
    small = Conv(half, 1, use_bias=True, name='expand1x1')(x)
    large = Conv(half, 3, use_bias=True, name='expand3x3')(x)
    return nn.relu(jnp.concatenate([small, large], axis=-1))


def torchvision(config: SqueezeNetConfig) -> Iterator[rules.Rule]:
  """torchvision's names: features.0, features.3.squeeze, classifier.1, a 1x1 convolution."""
  yield from rules.stem('features.0', 'backbone/stem/conv', bias=True)
  for layer, *_, place in config.fires():
    for part in ('squeeze', 'expand1x1', 'expand3x3'):
      yield from rules.conv(f'features.{place}.{part}', f'backbone/{layer}/{part}', bias=True)
  yield rules.Rule('classifier.1.weight', 'params/head/logits/kernel', rules.POINTWISE)
  yield rules.Rule('classifier.1.bias', 'params/head/logits/bias')


_A, _B, _C, _D, _E, _F = (16, 128), (32, 256), (48, 384), (64, 512), (4, 16), (6, 24)
VARIANTS = {
  'squeezenet1_0': SqueezeNetConfig((96, 7), ((_A, _A, _B), (_B, _C, _C, _D), (_D,))),
  'squeezenet1_1': SqueezeNetConfig((64, 3), ((_A, _A), (_B, _B), (_C, _C, _D, _D))),
  'squeezenet_test': SqueezeNetConfig((8, 3), ((_E,), (_E, _F), (_F,))),
}
LAYOUTS = {'timm': torchvision, 'torchvision': torchvision}
_FILES = {'squeezenet1_0': 'squeezenet1_0-b66bff10.pth', 'squeezenet1_1': 'squeezenet1_1-b8a52dc0.pth'}
CHECKPOINTS = {
  name: Checkpoint(
    name,
    f'https://download.pytorch.org/models/{file}',
    'torchvision',
    Preprocess(interpolation='bilinear'),
    license='bsd-3-clause',
    source='https://arxiv.org/abs/1602.07360',
  )
  for name, file in _FILES.items()
}
FIGURES = {  # top-1: torchvision's documentation of SqueezeNet1_0_Weights and SqueezeNet1_1_Weights
  'squeezenet1_0': Figures(1_248_424, 0.819, 224, 58.092),
  'squeezenet1_1': Figures(1_235_496, 0.349, 224, 58.178),
}
