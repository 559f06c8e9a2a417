"""PSPNet (Zhao et al. 2016, https://arxiv.org/abs/1612.01105) as segmentation-models-pytorch has it.

The head joins averages over 1, 4, 9 and 36 cells to one map of the backbone, so that each place sees the whole image.
The authors' backbones keep stride 8 by dilation.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn import resize, segmentation
from tlx.nn.conv import Conv
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level, choose, read
from tlx.nn.pool import adaptive_avg_pool
from tlx.nn.stochastic import ChannelDropout
from tlx.types import WholeModel
from tlx.weights import rules, smp

CELLS = (1, 2, 3, 6)  # along each side of the pooled maps


class Head(nn.Module):
  """A map of the backbone -> logits float32 [b, h, w, num_classes] at the image's size if the stride divides it."""

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  layers: tuple[str] | tuple[()] = ()  # the layer to read; () = the last one
  width: int = 512  # channels behind the pools
  norm: bool = True  # batch norm after each convolution, except after the average over the whole map
  dropout: float = 0.2  # share of the channels that training sets to zero
  upsampling: int = 0  # factor by which the logits are enlarged; 0 = the stride of the map

  @property
  def reads(self) -> Level:
    """The level that it reads. Raises UsageError if the backbone has none."""
    return choose(self.levels, self.layers, head='pspnet', least=1)[-1]

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    x = read(features, self.reads)
    parts, narrow = [], x.shape[-1] // len(CELLS)
    for i, cells in enumerate(CELLS):
      unit = ConvNorm(narrow, 1, norm=self.norm and cells > 1, name=f'pool{i}')
      parts.append(resize.bilinear_corners(unit(adaptive_avg_pool(x, cells, cells), train), x.shape[1:3]))
    x = ConvNorm(self.width, 1, norm=self.norm, name='join')(jnp.concatenate([*parts, x], axis=-1), train)
    x = ChannelDropout(self.dropout, name='dropout')(x, train)
    start = nn.initializers.lecun_normal()
    x = Conv(self.num_classes, 3, use_bias=True, kernel_init=start, name='logits')(widened(x))
    return segmentation.enlarged(x, self.upsampling or self.reads.stride)


def rules_of_smp(head: Head) -> Iterator[rules.Rule]:
  """smp's names: decoder.psp.blocks.0.pool.1, decoder.conv, segmentation_head.0."""
  for i, cells in enumerate(CELLS):
    yield from smp.unit(f'decoder.psp.blocks.{i}.pool.1', f'head/pool{i}', head.norm and cells > 1)
  yield from smp.unit('decoder.conv', 'head/join', head.norm)
  yield from rules.conv('segmentation_head.0', 'head/logits', bias=True)


def of_smp(config: Mapping[str, Any]) -> WholeModel:
  """Makes the model that a config.json of smp's PSPNet describes, without a checkpoint, as `smp.whole` does."""
  fields = {
    'encoder_depth': smp.Field('depth', 3, smp.one_of(3, 4, 5)),
    'psp_out_channels': smp.Field('width', 512, smp.number),
    'decoder_use_norm': smp.Field('norm', 'batchnorm', smp.norm),
    'psp_dropout': smp.Field('dropout', 0.2, smp.share),
    'upsampling': smp.Field('upsampling', 8, smp.number),
  }
  return smp.whole(config, fields, depths=(3, 4, 5), reads=lambda maps: maps[-1:])


LAYOUTS = smp.layouts(rules_of_smp)
MODELS: dict[str, WholeModel] = {}
SMP = {'PSPNet': of_smp}
