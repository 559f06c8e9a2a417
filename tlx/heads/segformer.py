"""The all-MLP decoder of SegFormer (Xie et al. 2021, https://arxiv.org/abs/2105.15203, Sec. 3.2).

The published head projects every level to the same number of channels, enlarges the results to stride 4 and joins them.
A 1x1 convolution, batch norm, ReLU and the classifier follow. There is no activation between the projections and the
convolution. So this file multiplies their kernels first, applies the product to each level at its own size, and adds up
the enlarged results. This is the same function of the same parameters, at a lower cost: for SegFormer-B2 at 512 pixels
the head takes 6 instead of 42 billion multiply-adds, and on two busy cores 1.6 instead of 5.4 seconds.
segmentation-models-pytorch (smp) has the same head, and also enlarges the logits.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tlx.nn import segmentation
from tlx.nn.conv import linear
from tlx.nn.levels import Level, choose, read
from tlx.nn.norm import BatchNorm
from tlx.nn.resize import bilinear
from tlx.nn.stochastic import Dropout
from tlx.types import Checkpoint, Preprocess, WholeLayout, WholeModel
from tlx.weights import records, rules, segformer, smp

FINEST = 4  # stride of the logits, pixels
kernel_init = nn.initializers.lecun_normal()


class Head(nn.Module):
  """SegFormer's decoder: it fuses the levels of the backbone at stride 4, then classifies each position.

  Logits float32 [b, h, w, num_classes]. h and w are `upsampling` times those of the finest map of stride 4 or more, or
  those of the finest map if there is none.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  layers: tuple[str, ...] = ()  # to read, from fine to coarse; () = the last layer at each stride of 4 and more
  width: int = 256  # channels of every level after its projection
  dropout: float = 0.1  # rate, before the classifier
  upsampling: int = 1  # factor by which the head enlarges the logits

  @property
  def reads(self) -> tuple[Level, ...]:
    """The levels that the head reads, from fine to coarse. Raises UsageError if the backbone has too few."""
    return choose(self.levels, self.layers, head='segformer', finest=FINEST)

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    maps = [read(features, level) for level in self.reads]
    size = next((x.shape[1:3] for level, x in zip(self.reads, maps) if level.stride >= FINEST), maps[0].shape[1:3])
    x = Fuse(self.width, name='fuse')(maps, size)
    x = nn.relu(BatchNorm(name='norm')(x, train))
    x = Dropout(self.dropout, name='dropout')(x, train)
    logits = segmentation.logits(x, self.num_classes)
    return segmentation.enlarged(logits, self.upsampling) if self.upsampling > 1 else logits


class Fuse(nn.Module):
  """Projects maps [b, h_i, w_i, c_i], from fine to coarse, enlarges them and convolves their join: [b, *size, width].

  The parameter `kernel` float32 [levels * width, width] is the kernel of the 1x1 convolution, whose input starts with
  the coarsest level. The modules `project0`, `project1`, ... project the levels, from fine to coarse.
  """

  width: int

  @nn.compact
  def __call__(self, maps: list[jax.Array], size: tuple[int, int]) -> jax.Array:
    kernel = self.param('kernel', kernel_init, (len(maps) * self.width, self.width))
    total, shift = 0, 0
    for i, (x, part) in enumerate(zip(maps, jnp.split(kernel, len(maps))[::-1])):
      projection, bias = Projection(self.width, name=f'project{i}')(x.shape[-1])
      x = linear(x, (projection @ part).astype(x.dtype))
      total = total + (x if x.shape[1:3] == size else bilinear(x, size))
      shift = shift + bias @ part
    return total + shift.astype(total.dtype)


class Projection(nn.Module):
  """The parameters of a linear layer, for the caller to apply: `kernel` float32 [channels, width], `bias` [width]."""

  width: int

  @nn.compact
  def __call__(self, channels: int) -> tuple[jax.Array, jax.Array]:
    kernel = self.param('kernel', kernel_init, (channels, self.width))
    return kernel, self.param('bias', nn.initializers.zeros, (self.width,))


def _layout(head: Head, projection: str, fuse: str, norm: str, logits: str, coarse_first: bool) -> Iterator[rules.Rule]:
  """The rules of the head; `projection` has {} for a level's number, which is 0 for the coarsest if `coarse_first`."""
  count = len(head.reads)
  for i in range(count):
    yield from rules.dense(projection.format(count - 1 - i if coarse_first else i), f'head/fuse/project{i}')
  yield rules.Rule(f'{fuse}.weight', 'params/head/fuse/kernel', rules.POINTWISE)
  yield from rules.norm(norm, 'head/norm')
  yield from rules.conv(logits, 'head/logits', bias=True)


def transformers(head: Head) -> Iterator[rules.Rule]:
  """transformers' names: decode_head.linear_c.0.proj, decode_head.linear_fuse, decode_head.classifier."""
  names = ('linear_c.{}.proj', 'linear_fuse', 'batch_norm', 'classifier')
  return _layout(head, *(f'decode_head.{name}' for name in names), coarse_first=False)


def rules_of_smp(head: Head) -> Iterator[rules.Rule]:
  """smp's names: decoder.mlp_stage.0.linear, decoder.fuse_stage.0, segmentation_head.0."""
  names = ('decoder.mlp_stage.{}.linear', 'decoder.fuse_stage.0', 'decoder.fuse_stage.1', 'segmentation_head.0')
  return _layout(head, *names, coarse_first=True)


def of_config(config: Mapping[str, Any]) -> WholeModel | None:
  """Makes the model that a config.json of transformers describes.

  Args:
    config: content of the file.

  Returns:
    The row of the model, without a checkpoint; None if the file does not describe a SegFormer for segmentation.

  Raises:
    UsageError: it names every setting that tlx does not support.
    TlxError: without the package transformers, which knows the defaults that a config.json leaves out.
  """
  if 'SegformerForSemanticSegmentation' not in (config.get('architectures') or ()):
    return None
  config = records.full_config(config)
  shape = segformer.backbone(config)
  size = next((size for size, known in _SIZES.items() if known == (shape['depths'], shape['widths'][0])), 'b0')
  options = {'width': config['decoder_hidden_size'], 'dropout': config['classifier_dropout_prob']}
  return WholeModel(f'mit_{size}', len(records.class_names(config)), options=options, backbone_options=shape)


def of_smp(config: Mapping[str, Any]) -> WholeModel:
  """Makes the model that a config.json of smp's Segformer describes, without a checkpoint, as `smp.whole` does."""
  fields = {
    'decoder_segmentation_channels': smp.Field('width', 256, smp.number),
    'upsampling': smp.Field('upsampling', 4, smp.number),
  }
  found = smp.whole(config, fields, depths=(3, 4, 5), reads=lambda maps: tuple(filter(None, maps)))
  return found._replace(options={**found.options, 'dropout': 0.0})  # smp's decoder has no dropout


def _published(size: str, width: int, pixels: int = 512) -> WholeModel:
  """The row of a model that the paper's authors trained on ADE20K, 150 classes."""
  checkpoint = Checkpoint(
    f'mit_{size}',
    f'hf-hub:nvidia/segformer-{size}-finetuned-ade-{pixels}-{pixels}',
    'transformers',
    Preprocess(pixels, 1.0, 'bilinear', mode='squash'),
    license='other',  # the hub's word; NVIDIA's source code licence allows research and evaluation only
    source='https://arxiv.org/abs/2105.15203',
  )
  return WholeModel(f'mit_{size}', 150, options={'width': width}, checkpoint=checkpoint)


_SIZES = {  # blocks of each stage, channels of the first stage
  'b0': ((2, 2, 2, 2), 32),
  'b1': ((2, 2, 2, 2), 64),
  'b2': ((3, 4, 6, 3), 64),
  'b3': ((3, 4, 18, 3), 64),
  'b4': ((3, 8, 27, 3), 64),
  'b5': ((3, 6, 40, 3), 64),
}
LAYOUTS = {
  'transformers': WholeLayout('transformers_base', 'segformer.', transformers),
  **smp.layouts(rules_of_smp),
}
SMP = {'Segformer': of_smp}
MODELS = {
  **{f'segformer_{size}': _published(size, 256) for size in ('b0', 'b1')},
  **{f'segformer_{size}': _published(size, 768) for size in ('b2', 'b3', 'b4')},
  'segformer_b5': _published('b5', 768, 640),
}
