"""DeepLabV3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611), as segmentation-models-pytorch (smp) builds it.

Parallel convolutions of several dilations read the coarsest map. The head enlarges their result to the size of a map of
stride 4, joins the two and classifies each position. The authors' backbones dilate so that the coarsest map has stride
16.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn import resize, segmentation
from tlx.nn.conv import Conv
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.levels import Level, choose, read
from tlx.nn.norm import BatchNorm
from tlx.nn.stochastic import Dropout
from tlx.types import WholeModel
from tlx.weights import rules, smp

REDUCED = 48  # channels of the finer map after its 1x1 convolution (Sec. 4.1)


class Head(nn.Module):
  """DeepLabV3+: dilated convolutions on a coarse map, joined to a fine map, then enlarged logits.

  Logits float32 [b, h, w, num_classes]; by default of the image's size, if the backbone's strides divide it.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  layers: tuple[str, str] | tuple[()] = ()  # the fine and the coarse one to read; () = of stride 4, and the coarsest
  width: int = 256  # channels of the convolutions
  rates: tuple[int, ...] = (12, 24, 36)  # dilations of the parallel 3x3 convolutions
  separable: bool = True  # whether the dilated convolutions are depthwise, each with a pointwise one after it
  dropout: float = 0.5  # rate, after the dilated convolutions
  upsampling: int = 0  # factor by which the head enlarges the logits; 0 = the stride of the finer map

  @property
  def reads(self) -> tuple[Level, Level]:
    """The fine and the coarse level that the head reads. Raises UsageError if the backbone has too few."""
    *finer, coarsest = choose(self.levels, self.layers, head='deeplabv3plus')
    return next((level for level in reversed(finer) if level.stride <= 4), finer[0]), coarsest

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    fine, coarse = (read(features, level) for level in self.reads)
    x = Dilations(self.width, self.rates, self.separable, self.dropout, name='aspp')(coarse, train)
    x = Separable(self.width, name='context')(x, train)
    x = resize.bilinear_corners(x, fine.shape[1:3])
    fine = ConvNorm(REDUCED, 1, name='reduce')(fine, train)
    x = Separable(self.width, name='fuse')(jnp.concatenate([x, fine], axis=-1), train)
    return segmentation.enlarged(segmentation.logits(x, self.num_classes), self.upsampling or self.reads[0].stride)


class Dilations(nn.Module):
  """Atrous spatial pyramid pooling (Chen et al. 2017, https://arxiv.org/abs/1706.05587).

  [b, h, w, c] -> [b, h, w, width].
  """

  width: int
  rates: tuple[int, ...]
  separable: bool
  dropout: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    parts = [ConvNorm(self.width, 1, name='point')(x, train)]
    for i, rate in enumerate(self.rates):
      if self.separable:
        parts.append(Separable(self.width, rate, name=f'rate{i}')(x, train))
      else:
        parts.append(ConvNorm(self.width, 3, dilation=rate, name=f'rate{i}')(x, train))
    mean = ConvNorm(self.width, 1, name='mean')(x.mean((1, 2), keepdims=True), train)
    parts.append(jnp.broadcast_to(mean, parts[0].shape))
    x = ConvNorm(self.width, 1, name='project')(jnp.concatenate(parts, axis=-1), train)
    return Dropout(self.dropout, name='dropout')(x, train)


class Separable(nn.Module):
  """A depthwise 3x3 convolution, a pointwise one, batch norm and ReLU: [b, h, w, c] -> [b, h, w, width]."""

  width: int
  rate: int = 1  # dilation

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    # Conv's default initializer counts the outputs of all groups as fan-out, so depthwise kernels would nearly vanish.
    start = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
    c = x.shape[-1]
    x = Conv(c, 3, groups=c, dilation=self.rate, kernel_init=start, name='depthwise')(x)
    x = Conv(self.width, 1, name='pointwise')(x)
    return nn.relu(BatchNorm(name='norm')(x, train))


def rules_of_smp(head: Head) -> Iterator[rules.Rule]:
  """smp's names: decoder.aspp.0.convs.1.0.0, decoder.aspp.1, decoder.block1.0, segmentation_head.0."""
  aspp, last = 'decoder.aspp.0', len(head.rates) + 1
  yield from smp.unit(f'{aspp}.convs.0', 'head/aspp/point')
  for i in range(len(head.rates)):
    source, target = f'{aspp}.convs.{i + 1}', f'head/aspp/rate{i}'
    yield from _separable(f'{source}.0', f'{source}.1', target) if head.separable else smp.unit(source, target)
  yield from rules.conv(f'{aspp}.convs.{last}.1', 'head/aspp/mean/conv')  # .0 is the pool, which has no parameters
  yield from rules.norm(f'{aspp}.convs.{last}.2', 'head/aspp/mean/norm')
  yield from smp.unit(f'{aspp}.project', 'head/aspp/project')
  yield from _separable('decoder.aspp.1', 'decoder.aspp.2', 'head/context')
  yield from smp.unit('decoder.block1', 'head/reduce')
  yield from _separable('decoder.block2.0', 'decoder.block2.1', 'head/fuse')
  yield from rules.conv('segmentation_head.0', 'head/logits', bias=True)


def _separable(source: str, norm: str, target: str) -> Iterator[rules.Rule]:
  yield from rules.conv(f'{source}.0', f'{target}/depthwise')
  yield from rules.conv(f'{source}.1', f'{target}/pointwise')
  yield from rules.norm(norm, f'{target}/norm')


def of_smp(config: Mapping[str, Any]) -> WholeModel:
  """Makes the model that a config.json of smp's DeepLabV3Plus describes, without a checkpoint, as `smp.whole` does."""
  fields = {
    'encoder_output_stride': smp.Field(smp.OUTPUT_STRIDE, 16, smp.one_of(8, 16)),
    'decoder_channels': smp.Field('width', 256, smp.number),
    'decoder_atrous_rates': smp.Field('rates', (12, 24, 36), smp.numbers),
    'decoder_aspp_separable': smp.Field('separable', True, smp.one_of(True, False)),
    'decoder_aspp_dropout': smp.Field('dropout', 0.5, smp.share),
    'upsampling': smp.Field('upsampling', 4, smp.number),
  }
  return smp.whole(config, fields, depths=(3, 4, 5), reads=lambda maps: (maps[1], maps[-1]))


LAYOUTS = smp.layouts(rules_of_smp)
MODELS: dict[str, WholeModel] = {}
SMP = {'DeepLabV3Plus': of_smp}
