"""The semantic head of feature pyramid networks (Lin et al. 2016, https://arxiv.org/abs/1612.03144; Kirillov et al.
2019, https://arxiv.org/abs/1901.02446), as segmentation-models-pytorch (smp) builds it.

The head builds a pyramid of maps with the same number of channels, from the coarsest level to the finest. It convolves
each map and enlarges it step by step to the finest size. Then it merges the maps and classifies each position.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn import resize, segmentation
from tlx.nn.conv import Conv
from tlx.nn.levels import Level, choose, read
from tlx.nn.norm import GroupNorm
from tlx.nn.stochastic import ChannelDropout
from tlx.types import UsageError, WholeModel
from tlx.weights import rules, smp

GROUPS = 32  # channel groups of each group norm


class Head(nn.Module):
  """A feature pyramid over the levels of the backbone, then enlarged logits.

  Logits float32 [b, h, w, num_classes]; by default of the image's size, if the backbone's strides divide it.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  layers: tuple[str, ...] = ()  # to read, from fine to coarse; () = the last layer at each stride of 4 and more
  width: int = 256  # channels of the pyramid
  inner: int = 128  # channels of the convolutions on the pyramid, a multiple of 32
  merge: str = 'add'  # how the maps of the pyramid become one: 'add' or 'cat'
  interpolation: str = 'nearest'  # 'nearest' or 'bilinear', inside the pyramid
  dropout: float = 0.2  # rate, for whole channels
  upsampling: int = 0  # factor by which the head enlarges the logits; 0 = the stride of the finest level

  @property
  def reads(self) -> tuple[Level, ...]:
    """The levels that the head reads, from fine to coarse. Raises UsageError if the backbone has too few."""
    return choose(self.levels, self.layers, head='fpn', finest=4)

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    self._check()
    maps = [read(features, level) for level in self.reads]
    sizes = [x.shape[1:3] for x in maps]
    parts, x = [], None
    for i, skip in enumerate(reversed(maps)):
      lateral = Conv(self.width, 1, use_bias=True, name=f'lateral{i}')(skip)
      x = lateral if x is None else resize.method(self.interpolation)(x, skip.shape[1:3]) + lateral
      parts.append(self._enlarged(x, i, sizes[: len(maps) - 1 - i][::-1]))
    x = sum(parts) if self.merge == 'add' else jnp.concatenate(parts, axis=-1)
    x = ChannelDropout(self.dropout, name='dropout')(x, train)
    return segmentation.enlarged(segmentation.logits(x, self.num_classes), self.upsampling or self.reads[0].stride)

  def _enlarged(self, x: jax.Array, i: int, sizes: list[tuple[int, int]]) -> jax.Array:
    """Enlarges map i of the pyramid to each of `sizes` in turn, with a convolution before each.

    The finest map has no sizes; one convolution reads it.
    """
    for j, size in enumerate(sizes or [x.shape[1:3]]):
      x = Conv(self.inner, 3, name=f'segment{i}_conv{j}')(x)
      x = nn.relu(GroupNorm(GROUPS, name=f'segment{i}_norm{j}')(x))
      x = resize.bilinear_corners(x, size)
    return x

  def _check(self) -> None:
    problems = [f'merge {self.merge!r}, not add or cat'] * (self.merge not in ('add', 'cat'))
    problems += [f'inner {self.inner}, not a multiple of {GROUPS}'] * bool(self.inner % GROUPS)
    if problems:
      raise UsageError(f'fpn: {"; ".join(problems)}')


def rules_of_smp(head: Head) -> Iterator[rules.Rule]:
  """smp's names: decoder.p5, decoder.p4.skip_conv, decoder.seg_blocks.0.block.0.block.0, segmentation_head.0."""
  count = len(head.reads)
  if count != 4:
    raise rules.NoLayoutError(f"smp's FPN reads maps of four strides, this one of {count}")
  for i in range(count):
    yield from rules.conv(f'decoder.p{5 - i}{".skip_conv" * (i > 0)}', f'head/lateral{i}', bias=True)
    for j in range(max(1, count - 1 - i)):
      block = f'decoder.seg_blocks.{i}.block.{j}.block'
      yield from rules.conv(f'{block}.0', f'head/segment{i}_conv{j}')
      yield from rules.affine(f'{block}.1', f'head/segment{i}_norm{j}')
  yield from rules.conv('segmentation_head.0', 'head/logits', bias=True)


def of_smp(config: Mapping[str, Any]) -> WholeModel:
  """Makes the model that a config.json of smp's FPN describes, without a checkpoint, as `smp.whole` does."""
  fields = {
    'decoder_pyramid_channels': smp.Field('width', 256, smp.number),
    'decoder_segmentation_channels': smp.Field('inner', 128, smp.number),
    'decoder_merge_policy': smp.Field('merge', 'add', smp.one_of('add', 'cat')),
    'decoder_dropout': smp.Field('dropout', 0.2, smp.share),
    'decoder_interpolation': smp.Field('interpolation', 'nearest', smp.one_of('nearest', 'bilinear')),
    'upsampling': smp.Field('upsampling', 4, smp.number),
  }
  return smp.whole(config, fields, depths=(4, 5), reads=lambda maps: maps[-4:])


LAYOUTS = smp.layouts(rules_of_smp)
MODELS: dict[str, WholeModel] = {}
SMP = {'FPN': of_smp}
