"""DeepLab v3 (Chen et al. 2017, https://arxiv.org/abs/1706.05587): dilated convolutions on the last map.

The convolutions run in parallel. The paper calls them atrous spatial pyramid pooling (ASPP). The backbone should dilate
too: give its config an `output_stride` of 8 or 16.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tlx.nn import segmentation
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level, read
from tlx.nn.stochastic import Dropout
from tlx.types import Checkpoint, Preprocess, WholeLayout, WholeModel
from tlx.weights import rules, tflite


class Head(nn.Module):
  """ASPP on the last map of the backbone, then logits float32 [b, h, w, num_classes] at the resolution of that map.

  The default dilations depend on the stride of that map:

  >>> Head(21, levels=(Level('stage3', 16, 2048),)).dilations()
  (6, 12, 18)
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  channels: int = 256  # of each branch and of the layers after the branches
  rates: tuple[int, ...] | None = None  # dilations of the 3x3 branches; None = see `dilations`
  dropout: float = 0.5  # rate, after the branches are joined
  refine: bool = True  # whether a 3x3 convolution comes before the logits
  aux: bool = False  # whether a second classifier learns on an earlier map: see `segmentation.sow_auxiliary`
  aux_layer: str = ''  # the layer that the second classifier reads; '' = the last layer of the stage before the last

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    segmentation.sow_auxiliary(self, features, train)
    x = self._pyramid(read(features, segmentation.last(self.levels)), train)
    x = Dropout(self.dropout)(ConvNorm(self.channels, 1, name='project')(x, train), train)
    x = ConvNorm(self.channels, 3, name='refine')(x, train) if self.refine else x
    return segmentation.logits(x, self.num_classes)

  def dilations(self) -> tuple[int, ...]:
    """Returns the dilation of each 3x3 branch.

    By default these are the paper's: 12, 24 and 36 at stride 8, and half as large at stride 16.
    """
    unit = max(1, 96 // segmentation.last(self.levels).stride) if self.rates is None else 0
    return (unit, 2 * unit, 3 * unit) if self.rates is None else tuple(self.rates)

  def _pyramid(self, x: jax.Array, train: bool) -> jax.Array:
    """Joins all branches along the channels: a 1x1 convolution, the 3x3 ones, and the mean of the whole map."""
    branches = [ConvNorm(self.channels, 1, name='aspp0')(x, train)]
    for i, rate in enumerate(self.dilations(), 1):
      branches.append(ConvNorm(self.channels, 3, dilation=rate, name=f'aspp{i}')(x, train))
    pooled = widened(x).mean((1, 2), keepdims=True).astype(x.dtype)
    pooled = ConvNorm(self.channels, 1, name='pool')(pooled, train)
    return jnp.concatenate([*branches, jnp.broadcast_to(pooled, branches[0].shape)], axis=-1)


def torchvision(head: Head) -> Iterator[rules.Rule]:
  """torchvision's names: classifier.0.convs.0.0, classifier.0.project.0, classifier.1, classifier.4, aux_classifier."""
  if not head.refine:
    raise rules.NoLayoutError('torchvision has no DeepLab v3 without its last 3x3 convolution')
  branches = len(head.dilations()) + 1
  for i in range(branches):
    yield from segmentation.unit(f'classifier.0.convs.{i}.0', f'classifier.0.convs.{i}.1', f'head/aspp{i}')
  pool = f'classifier.0.convs.{branches}'
  yield from segmentation.unit(f'{pool}.1', f'{pool}.2', 'head/pool')
  yield from segmentation.unit('classifier.0.project.0', 'classifier.0.project.1', 'head/project')
  yield from segmentation.unit('classifier.1', 'classifier.2', 'head/refine')
  yield from rules.conv('classifier.4', 'head/logits', bias=True)
  yield from segmentation.auxiliary(head)


def of_tflite(head: Head) -> Iterator[rules.Rule]:
  """TensorFlow's names in a TensorFlow Lite file: aspp0/Conv2D_Fold, concat_projection/BatchNorm_Fold/bias.

  TensorFlow's mobile networks have only the 1x1 branch and the pooled branch, and join them with the pooled one first.
  """
  if head.dilations() or head.refine or head.aux:
    raise rules.NoLayoutError("TensorFlow's mobile DeepLab has no 3x3 convolutions and no second head")
  swap = lambda kernel: np.roll(kernel, head.channels, axis=2)
  swapped = rules.Transform(lambda x: swap(tflite.CONV.read(x)), lambda x: tflite.CONV.write(swap(x)))
  yield from tflite.unit('aspp0', 'head/aspp0')
  yield from tflite.unit('image_pooling', 'head/pool')
  yield from tflite.unit('concat_projection', 'head/project', transform=swapped)
  yield from tflite.logits('logits/semantic', 'head/logits', tflite.CONV)
  for name in ('strided_slice_4', 'ResizeBilinear/size', 'ArgMax/dimension'):  # constants of the steps after the logits
    yield rules.Rule(name, None)


LAYOUTS = {'torchvision': segmentation.layout(torchvision), 'tflite': WholeLayout('tflite', '', of_tflite)}
_RATES = (12, 24, 36)
MODELS = {
  f'deeplabv3_{name}': segmentation.of_torchvision(
    f'deeplabv3_{name}_coco-{digest}', name, {'output_stride': 8}, {'rates': _RATES, 'aux': True}
  )
  for name, digest in (('resnet50', 'cd0a2569'), ('resnet101', '586e9e4e'))
}
MODELS['deeplabv3_mobilenet_v3_large'] = segmentation.of_torchvision(
  'deeplabv3_mobilenet_v3_large-fc3c493d',
  *segmentation.MOBILE,
  {'rates': _RATES, 'aux': True, 'aux_layer': segmentation.MOBILE_FINE},
)
_HALF = (128 / 255,) * 3
MODELS['tf_deeplabv3_mobilenetv2_100'] = WholeModel(
  'tf_mobilenetv2_100',
  len(segmentation.VOC),
  options={'rates': (), 'refine': False},
  backbone_options={'output_stride': 16, 'final': 0},
  checkpoint=Checkpoint(
    'tf_deeplabv3_mobilenetv2_100',
    '',  # published as a quantised .tflite file; tlx reads an .npz of its dequantised constants
    'tflite',
    Preprocess(513, 1.0, 'bilinear', _HALF, _HALF, 'squash'),
    'apache-2.0',
    'https://github.com/google-coral/test_data',
  ),
  class_names=segmentation.VOC,
)
