"""U-Net's decoder (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597), as smp builds it.

smp is segmentation-models-pytorch. Each block enlarges the map to the size of the next finer level, joins the two along
the channels and applies two 3x3 convolutions. After the finest level, each further block doubles the map, until it has
the size of the image.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn import resize
from tlx.nn.conv import Conv
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level, choose, read
from tlx.types import WholeModel
from tlx.weights import rules, smp


class Head(nn.Module):
  """U-Net's decoder over the levels of the backbone, then logits.

  Logits float32 [b, h, w, num_classes]. h and w are the image's if the backbone's strides divide them and the finest
  stride is a power of two.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  layers: tuple[str, ...] = ()  # to read, from fine to coarse; () = the last layer at each stride
  widths: tuple[int, ...] = (256, 128, 64, 32, 16)  # channels of the last blocks; earlier blocks have widths[0]
  interpolation: str = 'nearest'  # 'nearest' or 'bilinear'
  norm: bool = True  # whether a batch norm follows each convolution
  center: bool = False  # whether two more convolutions read the coarsest map

  @property
  def reads(self) -> tuple[Level, ...]:
    """The levels that the head reads, from fine to coarse. Raises UsageError if the backbone has too few."""
    return choose(self.levels, self.layers, head='unet')

  @property
  def blocks(self) -> tuple[int, ...]:
    """Channels of each block, from coarse to fine."""
    finest, *coarser = self.reads
    count = len(coarser) + round(math.log2(finest.stride))
    return (self.widths[:1] * count + self.widths)[-count:]

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    x, *skips = (read(features, level) for level in reversed(self.reads))
    for i in (1, 2) if self.center else ():
      x = ConvNorm(x.shape[-1], 3, norm=self.norm, name=f'center{i}')(x, train)
    for i, width in enumerate(self.blocks):
      skip = skips[i] if i < len(skips) else None
      x = Block(width, self.interpolation, self.norm, name=f'block{i}')(x, skip, train)
    return Conv(self.num_classes, 3, use_bias=True, kernel_init=nn.initializers.lecun_normal(), name='logits')(
      widened(x)
    )


class Block(nn.Module):
  """Joins a map [b, h, w, c] to a finer one [b, h', w', d]: -> [b, h', w', width].

  If `skip`, the finer map, is None, the block doubles the height and width of the map.
  """

  width: int
  interpolation: str
  norm: bool

  @nn.compact
  def __call__(self, x: jax.Array, skip: jax.Array | None, train: bool) -> jax.Array:
    size = tuple(2 * side for side in x.shape[1:3]) if skip is None else skip.shape[1:3]
    x = resize.method(self.interpolation)(x, size)
    x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
    for i in (1, 2):
      x = ConvNorm(self.width, 3, norm=self.norm, name=f'conv{i}')(x, train)
    return x


def rules_of_smp(head: Head) -> Iterator[rules.Rule]:
  """smp's names: decoder.blocks.0.conv1.0, decoder.center.0.0, segmentation_head.0."""
  for i in (1, 2) if head.center else ():
    yield from smp.unit(f'decoder.center.{i - 1}', f'head/center{i}', head.norm)
  for i in range(len(head.blocks)):
    for j in (1, 2):
      yield from smp.unit(f'decoder.blocks.{i}.conv{j}', f'head/block{i}/conv{j}', head.norm)
  yield from rules.conv('segmentation_head.0', 'head/logits', bias=True)


def of_smp(config: Mapping[str, Any]) -> WholeModel:
  """Makes the model that a config.json of smp's Unet describes, without a checkpoint, as `smp.whole` does."""
  fields = {
    'decoder_channels': smp.Field('widths', (256, 128, 64, 32, 16), smp.numbers),
    'decoder_use_norm': smp.Field('norm', 'batchnorm', smp.norm),
    'decoder_interpolation': smp.Field('interpolation', 'nearest', smp.one_of('nearest', 'bilinear')),
    'decoder_attention_type': smp.Field('', None, smp.one_of(None)),
  }
  found = smp.whole(config, fields, depths=(1, 2, 3, 4, 5), reads=lambda maps: tuple(filter(None, maps)))
  center = config.get('encoder_name', '').startswith('vgg')  # smp has this rule too
  return found._replace(options={**found.options, 'center': center})


LAYOUTS = smp.layouts(rules_of_smp)
MODELS: dict[str, WholeModel] = {}
SMP = {'Unet': of_smp}
