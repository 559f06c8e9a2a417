"""The semantic head of feature pyramid networks (Lin et al. 2016, https://arxiv.org/abs/1612.03144; Kirillov et al.
2019, https://arxiv.org/abs/1901.02446) as segmentation-models-pytorch has it.

A pyramid of equal width runs from the coarsest level to the finest; each of its maps is convolved and enlarged step by
step to the finest size, and their sum is classified.
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

GROUPS = 32  # of the group norms


class Head(nn.Module):
  """A backbone's maps -> logits float32 [b, h, w, num_classes], which fit the image where its strides divide it."""

  num_classes: int
  levels: tuple[Level, ...] = ()  # all that the backbone has
  layers: tuple[str, ...] = ()  # to read, from fine to coarse; () = the last at each stride from 4 on
  width: int = 256  # channels of the pyramid
  inner: int = 128  # channels of the convolutions on it, a multiple of 32
  merge: str = 'add'  # or 'cat': how the pyramid's maps become one
  interpolation: str = 'nearest'  # or 'bilinear': of the pyramid
  dropout: float = 0.2  # of whole channels
  upsampling: int = 0  # factor by which the logits are enlarged; 0 = the stride of the finest level

  @property
  def reads(self) -> tuple[Level, ...]:
    """The levels that it reads, from fine to coarse. Raises UsageError where the backbone has too few."""
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
    x, factor = segmentation.logits(x, self.num_classes), self.upsampling or self.reads[0].stride
    return resize.bilinear_corners(x, tuple(factor * side for side in x.shape[1:3]))

  def _enlarged(self, x: jax.Array, i: int, sizes: list[tuple[int, int]]) -> jax.Array:
    """Map i of the pyramid, enlarged to each of `sizes` in turn; a convolution comes ahead of each, or of none."""
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
  """The model that smp's config.json of an FPN describes. Raises UsageError listing all that tlx lacks."""
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
