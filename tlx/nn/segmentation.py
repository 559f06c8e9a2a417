"""What the heads of torchvision's segmentation models share: the FCN classifier, the choice of maps, and rows."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn

from tlx.nn.conv import Conv
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level, read
from tlx.nn.stochastic import Dropout
from tlx.types import Checkpoint, Preprocess, UsageError, WholeLayout, WholeModel
from tlx.weights import rules


class FCN(nn.Module):
  """A 3x3 convolution to a quarter of the channels, dropout, and logits at each place (https://arxiv.org/abs/1411.4038).

  [b, h, w, c] -> float32 [b, h, w, num_classes].
  """

  num_classes: int
  dropout: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = ConvNorm(x.shape[-1] // 4, 3, name='unit')(x, train)
    return logits(Dropout(self.dropout)(x, train), self.num_classes)


def logits(x: jax.Array, num_classes: int) -> jax.Array:
  """Inside a compact module, its 1x1 convolution `logits` in float32: the name by which a fresh head is known."""
  return Conv(num_classes, 1, use_bias=True, kernel_init=nn.initializers.lecun_normal(), name='logits')(widened(x))


def sow_auxiliary(head: nn.Module, features: Mapping[str, jax.Array], train: bool) -> None:
  """Where the head has `aux`: in training mode, the logits of a second FCN on an earlier map go into 'aux' as 'output'.

  The training step adds their loss. The map is that of the layer `head.aux_layer`, or where that is '' of the stage
  before the last one. The parameters lie below the head's 'aux'.
  """
  if not (head.aux and (train or head.is_initializing())):
    return
  x = read(features, named(head.levels, head.aux_layer) if head.aux_layer else earlier(head.levels))
  output = FCN(head.num_classes, name='aux')(x if train else x[:0], train)  # no image shows the shapes, and is free
  if not head.is_initializing():
    head.sow('aux', 'output', output)


def fcn(source: str, target: str) -> Iterator[rules.Rule]:
  """torchvision's names of an FCN."""
  yield from unit(f'{source}.0', f'{source}.1', f'{target}/unit')
  yield from rules.conv(f'{source}.4', f'{target}/logits', bias=True)


def auxiliary(head: nn.Module) -> Iterator[rules.Rule]:
  """torchvision's names of what `sow_auxiliary` makes."""
  if head.aux:
    yield from fcn('aux_classifier', 'head/aux')


def unit(conv: str, norm: str, target: str) -> Iterator[rules.Rule]:
  """One ConvNorm."""
  yield from rules.conv(conv, f'{target}/conv')
  yield from rules.norm(norm, f'{target}/norm')


def last(levels: tuple[Level, ...]) -> Level:
  """The last level; raises UsageError where there is none."""
  if not levels:
    raise UsageError('the backbone returns no maps for a dense head to read; choose one whose layers keep places apart')
  return levels[-1]


def named(levels: tuple[Level, ...], layer: str) -> Level:
  """The level of that layer; raises UsageError with those that there are."""
  found = {level.layer: level for level in levels}
  if layer not in found:
    raise UsageError(f'the backbone returns no map {layer!r}; it has {", ".join(found) or "none"}')
  return found[layer]


def earlier(levels: tuple[Level, ...]) -> Level:
  """The last level whose width is not the last one's: the stage before. In a network of one width, the last but one."""
  end = last(levels)
  other = [level for level in levels if level.channels != end.channels]
  return (other or levels[:-1] or levels)[-1]


def at_stride(levels: tuple[Level, ...], stride: int) -> Level:
  """The last level ahead of the last stage at that stride, else at the nearest finer one, else the finest there is."""
  end = last(levels)
  before = [level for level in levels if level.channels != end.channels] or list(levels[:-1]) or list(levels)
  strides = {level.stride for level in before}
  wanted = max((s for s in strides if s <= stride), default=min(strides))
  return [level for level in before if level.stride == wanted][-1]


VOC = (  # the classes of PASCAL VOC
  'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
  'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
MOBILE = ('tv_mobilenetv3_large_100', {'output_stride': 16, 'hidden': 0})  # torchvision's backbone: name, options
MOBILE_FINE = 'stage2_block0'  # its first layer of stride 8, which torchvision takes where others take the last


def layout(head: Callable[[Any], Iterator[rules.Rule]]) -> WholeLayout:
  """torchvision's: the backbone's own names below 'backbone.', where those of MobileNet lose their 'features.'."""
  return WholeLayout('torchvision', 'backbone.', head, strip='features.')


def of_torchvision(
  file: str, backbone: str, backbone_options: Mapping[str, Any], options: Mapping[str, Any]
) -> WholeModel:
  """A row of torchvision's weights for the 21 classes of PASCAL VOC, trained on the images of COCO that show them.

  torchvision resizes the shorter side to 520 pixels and keeps the aspect; tlx squashes the image to a square of 520.
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
