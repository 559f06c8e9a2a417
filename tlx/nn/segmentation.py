"""Parts that torchvision's segmentation heads share: the FCN classifier, the choice of maps, and rows of models."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn

from tlx.nn.conv import Conv
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level, read
from tlx.nn.resize import bilinear_corners
from tlx.nn.stochastic import Dropout
from tlx.types import Checkpoint, Preprocess, UsageError, WholeLayout, WholeModel
from tlx.weights import rules


class FCN(nn.Module):
  """A 3x3 convolution to a quarter of the channels, dropout, and logits.

  (Long et al. 2014, https://arxiv.org/abs/1411.4038.) [b, h, w, c] -> float32 [b, h, w, num_classes].
  """

  num_classes: int
  dropout: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = ConvNorm(x.shape[-1] // 4, 3, name='unit')(x, train)
    return logits(Dropout(self.dropout)(x, train), self.num_classes)


def logits(x: jax.Array, num_classes: int) -> jax.Array:
  """Applies a 1x1 convolution named `logits` in float32, inside a compact module. The name marks a fresh head."""
  return Conv(num_classes, 1, use_bias=True, kernel_init=nn.initializers.lecun_normal(), name='logits')(widened(x))


def enlarged(logits: jax.Array, factor: int) -> jax.Array:
  """Enlarges a map [b, h, w, k] by a factor, bilinear with aligned corners, as smp does."""
  return bilinear_corners(logits, tuple(factor * side for side in logits.shape[1:3]))


def sow_auxiliary(head: nn.Module, features: Mapping[str, jax.Array], train: bool) -> None:
  """In training mode, sows the logits of a second FCN on an earlier map into the collection 'aux' as 'output'.

  It does nothing unless `head.aux`. The training step adds the loss. The FCN reads the layer `head.aux_layer`, or if
  that is '' the stage before the last. Its parameters are in the head's 'aux'.
  """
  if not (head.aux and (train or head.is_initializing())):
    return
  x = read(features, named(head.levels, head.aux_layer) if head.aux_layer else earlier(head.levels))
  output = FCN(head.num_classes, name='aux')(x if train else x[:0], train)  # an empty batch costs nothing
  if not head.is_initializing():
    head.sow('aux', 'output', output)


def fcn(source: str, target: str) -> Iterator[rules.Rule]:
  """torchvision's names of an FCN."""
  yield from unit(f'{source}.0', f'{source}.1', f'{target}/unit')
  yield from rules.conv(f'{source}.4', f'{target}/logits', bias=True)


def auxiliary(head: nn.Module) -> Iterator[rules.Rule]:
  """torchvision's names of the FCN of `sow_auxiliary`."""
  if head.aux:
    yield from fcn('aux_classifier', 'head/aux')


def unit(conv: str, norm: str, target: str) -> Iterator[rules.Rule]:
  """The rules of one ConvNorm."""
  yield from rules.conv(conv, f'{target}/conv')
  yield from rules.norm(norm, f'{target}/norm')


def last(levels: tuple[Level, ...]) -> Level:
  """The last level. Raises UsageError if there is none."""
  if not levels:
    raise UsageError('the backbone returns no maps, which a dense head needs; choose another backbone')
  return levels[-1]


def named(levels: tuple[Level, ...], layer: str) -> Level:
  """The level of a layer. Raises UsageError, with the known layers, if there is none."""
  found = {level.layer: level for level in levels}
  if layer not in found:
    raise UsageError(f'the backbone returns no map {layer!r}; it has {", ".join(found) or "none"}')
  return found[layer]


def earlier(levels: tuple[Level, ...]) -> Level:
  """The last level with another width than the last one's: the stage before. With one width only, the last but one."""
  end = last(levels)
  other = [level for level in levels if level.channels != end.channels]
  return (other or levels[:-1] or levels)[-1]


def at_stride(levels: tuple[Level, ...], stride: int) -> Level:
  """The last level at that stride before the last stage; else at the nearest finer stride; else the finest."""
  end = last(levels)
  before = [level for level in levels if level.channels != end.channels] or list(levels[:-1]) or list(levels)
  strides = {level.stride for level in before}
  wanted = max((s for s in strides if s <= stride), default=min(strides))
  return [level for level in before if level.stride == wanted][-1]


VOC = (  # the classes of PASCAL VOC
  'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
  'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
MOBILE = ('tv_mobilenetv3_large_100', {'output_stride': 16, 'hidden': 0})  # torchvision's backbone (name, options)
MOBILE_FINE = 'stage2_block0'  # its first layer of stride 8, which torchvision reads; others read the last


def layout(head: Callable[[Any], Iterator[rules.Rule]]) -> WholeLayout:
  """torchvision's: the backbone's own names below 'backbone.', where those of MobileNet lose their 'features.'."""
  return WholeLayout('torchvision', 'backbone.', head, rename=lambda name: name.removeprefix('features.'))


def of_torchvision(
  file: str, backbone: str, backbone_options: Mapping[str, Any], options: Mapping[str, Any]
) -> WholeModel:
  """A row of torchvision's weights for the 21 classes of PASCAL VOC, trained on the COCO images that show them.

  torchvision resizes the shorter side to 520 pixels and keeps the aspect ratio; tlx squashes the image to 520 x 520.
  """
  checkpoint = Checkpoint(
    file.partition('-')[0].removesuffix('_coco'),
    f'https://download.pytorch.org/models/{file}.pth',
    'torchvision',
    Preprocess(520, 1.0, 'bilinear', mode='squash'),
    'bsd-3-clause',
    'https://github.com/pytorch/vision',
  )
  return WholeModel(
    backbone, len(VOC), options=options, backbone_options=backbone_options, checkpoint=checkpoint, class_names=VOC
  )
