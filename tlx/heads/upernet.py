"""UPerNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221), as segmentation-models-pytorch (smp) builds it.

The head averages the coarsest map over grids of four sizes and joins the averages to that map. A feature pyramid
carries the result to the finest level. The head then enlarges all maps of the pyramid to the finest size and fuses
them.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn import resize, segmentation
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.levels import Level, choose, read
from tlx.nn.norm import LayerNorm
from tlx.nn.pool import adaptive_avg_pool
from tlx.types import Checkpoint, Preprocess, WholeModel
from tlx.weights import rules, smp

CELLS = (1, 2, 3, 6)  # height and width of each pooled map


class Head(nn.Module):
  """Pyramid pooling and a feature pyramid over the levels of the backbone, then enlarged logits.

  Logits float32 [b, h, w, num_classes]; by default of the image's size, if the backbone's strides divide it.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  layers: tuple[str, ...] = ()  # to read, from fine to coarse; () = the last layer at each stride of 4 and more
  width: int = 256  # channels of the convolutions
  norm: bool = True  # whether a batch norm follows each convolution; the one that joins the pools always has one
  upsampling: int = 0  # factor by which the head enlarges the logits; 0 = the stride of the finest level

  @property
  def reads(self) -> tuple[Level, ...]:
    """The levels that the head reads, from fine to coarse. Raises UsageError if the backbone has too few."""
    return choose(self.levels, self.layers, head='upernet', finest=4)

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    unit = partial(ConvNorm, self.width, norm=self.norm)
    maps = [LayerNorm(name=f'norm{i}')(read(features, level)) for i, level in enumerate(self.reads)]
    x = Pools(self.width, self.norm, name='pools')(maps[-1], train)
    parts, size = [resize.bilinear(x, maps[0].shape[1:3])], maps[0].shape[1:3]
    for i, skip in enumerate(reversed(maps[:-1])):
      x = resize.bilinear(x, skip.shape[1:3]) + unit(1, name=f'lateral{i}')(skip, train)
      parts.append(resize.bilinear(unit(3, name=f'smooth{i}')(x, train), size))
    x = unit(3, name='fuse')(jnp.concatenate(parts[::-1], axis=-1), train)
    return segmentation.enlarged(segmentation.logits(x, self.num_classes), self.upsampling or self.reads[0].stride)


class Pools(nn.Module):
  """Pyramid pooling (Zhao et al. 2016, https://arxiv.org/abs/1612.01105): [b, h, w, c] -> [b, h, w, width]."""

  width: int
  norm: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    parts = [x]
    for i, cells in enumerate(CELLS):
      pooled = adaptive_avg_pool(x, cells, cells)
      pooled = ConvNorm(self.width, 1, norm=self.norm, name=f'pool{i}')(pooled, train)
      parts.append(resize.bilinear(pooled, x.shape[1:3]))
    return ConvNorm(self.width, 3, name='join')(jnp.concatenate(parts, axis=-1), train)


def rules_of_smp(head: Head) -> Iterator[rules.Rule]:
  """smp's names: decoder.psp.blocks.0.1.0, decoder.fpn_lateral_blocks.0.conv_norm_relu.0, segmentation_head.0."""
  for i in range(len(head.reads)):
    yield from rules.affine(f'decoder.feature_norms.{i}', f'head/norm{i}')
  for i in range(len(CELLS)):
    yield from smp.unit(f'decoder.psp.blocks.{i}.1', f'head/pools/pool{i}', head.norm)
  yield from smp.unit('decoder.psp.out_conv', 'head/pools/join')
  for i in range(len(head.reads) - 1):
    yield from smp.unit(f'decoder.fpn_lateral_blocks.{i}.conv_norm_relu', f'head/lateral{i}', head.norm)
    yield from smp.unit(f'decoder.fpn_conv_blocks.{i}', f'head/smooth{i}', head.norm)
  yield from smp.unit('decoder.fusion_block', 'head/fuse', head.norm)
  yield from rules.conv('segmentation_head.0', 'head/logits', bias=True)


def of_smp(config: Mapping[str, Any]) -> WholeModel:
  """Makes the model that a config.json of smp's UPerNet describes, without a checkpoint, as `smp.whole` does."""
  fields = {
    'decoder_channels': smp.Field('width', 256, smp.number),
    'decoder_use_norm': smp.Field('norm', 'batchnorm', smp.norm),
    'upsampling': smp.Field('upsampling', 4, smp.number),
  }
  return smp.whole(config, fields, depths=(3, 4, 5), reads=lambda maps: maps[1:])


def _published(name: str, encoder: str, **more: int) -> WholeModel:
  """The row of a model that OpenMMLab trained on ADE20K (150 classes, 512 pixels) and smp's authors converted."""
  found = of_smp({'encoder_name': f'tu-{encoder}', 'decoder_channels': 512, 'classes': 150, **more})
  record = Preprocess(512, 1.0, 'bilinear', mode='squash')
  location = f'hf-hub:smp-hub/upernet-{name}'
  return found._replace(checkpoint=Checkpoint(found.backbone, location, 'smp_tu', record, 'mit', location[7:]))


LAYOUTS = smp.layouts(rules_of_smp)
MODELS = {
  **{
    f'upernet_convnext_{size}': _published(f'convnext-{size}', f'convnext_{size}')
    for size in ('tiny', 'small', 'base', 'large', 'xlarge')
  },
  **{
    f'upernet_swin_{size}': _published(f'swin-{size}', f'swin_{size}_patch4_window{window}', img_size=512)
    for size, window in (('tiny', '7_224'), ('small', '7_224'), ('large', '12_384'))
  },
}
SMP = {'UPerNet': of_smp}
