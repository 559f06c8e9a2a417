"""Fully convolutional network (Long et al. 2015, https://arxiv.org/abs/1411.4038), as torchvision builds it.

A 3x3 convolution and a classifier read the last map. The logits have the resolution of that map.
"""

from collections.abc import Iterator, Mapping

import jax
from flax import linen as nn

from tlx.nn import segmentation
from tlx.nn.levels import Level, read
from tlx.weights import rules


class Head(nn.Module):
  """The classifier `segmentation.FCN` on the last map of the backbone.

  Logits float32 [b, h, w, num_classes] at the resolution of that map.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  dropout: float = 0.1  # rate, before the classifier
  aux: bool = False  # whether a second classifier learns on an earlier map: see `segmentation.sow_auxiliary`
  aux_layer: str = ''  # the layer that the second classifier reads; '' = the last layer of the stage before the last

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    segmentation.sow_auxiliary(self, features, train)
    x = read(features, segmentation.last(self.levels))
    return segmentation.FCN(self.num_classes, self.dropout, name='classifier')(x, train)


def torchvision(head: Head) -> Iterator[rules.Rule]:
  """torchvision's names: classifier.0, classifier.4, aux_classifier.0."""
  yield from segmentation.fcn('classifier', 'head/classifier')
  yield from segmentation.auxiliary(head)


LAYOUTS = {'torchvision': segmentation.layout(torchvision)}
MODELS = {
  f'fcn_{name}': segmentation.of_torchvision(f'fcn_{name}_coco-{digest}', name, {'output_stride': 8}, {'aux': True})
  for name, digest in (('resnet50', '1167a1af'), ('resnet101', '7ecb50ca'))
}
