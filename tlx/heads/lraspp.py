"""Lite R-ASPP (Howard et al. 2019, https://arxiv.org/abs/1905.02244, Sec. 6.4): a gate instead of ASPP's dilations.

A gate that reads the mean of the whole image weighs the channels of the last map. The head classifies this map and a
finer one, and adds the two logits.
"""

from collections.abc import Iterator, Mapping

import jax
from flax import linen as nn

from tlx.nn import segmentation
from tlx.nn.conv import Conv
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level, read
from tlx.nn.resize import bilinear
from tlx.weights import rules


class Head(nn.Module):
  """Logits from the last map, with a gate on its channels, and from a finer map.

  Logits float32 [b, h, w, num_classes] at the resolution of the finer map.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  channels: int = 128  # of the last map behind its 1x1 convolution, and of the gate
  fine: str = ''  # the layer of the finer map; '' = the last one at stride 8, see `segmentation.at_stride`

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    levels = self.levels
    high = read(features, segmentation.last(levels))
    low = read(features, segmentation.named(levels, self.fine) if self.fine else segmentation.at_stride(levels, 8))
    pooled = widened(high).mean((1, 2), keepdims=True).astype(high.dtype)
    gate = nn.sigmoid(Conv(self.channels, 1, name='gate')(pooled))
    x = bilinear(ConvNorm(self.channels, 1, name='unit')(high, train) * gate, low.shape[1:3])
    return Classifier(self.num_classes, name='low')(low) + Classifier(self.num_classes, name='high')(x)


class Classifier(nn.Module):
  """A 1x1 convolution: [b, h, w, c] -> logits float32 [b, h, w, num_classes]."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return segmentation.logits(x, self.num_classes)


def torchvision(head: Head) -> Iterator[rules.Rule]:
  """torchvision's names: classifier.cbr.0, classifier.scale.1, classifier.low_classifier."""
  yield from segmentation.unit('classifier.cbr.0', 'classifier.cbr.1', 'head/unit')
  yield from rules.conv('classifier.scale.1', 'head/gate')
  for name in ('low', 'high'):
    yield from rules.conv(f'classifier.{name}_classifier', f'head/{name}/logits', bias=True)


LAYOUTS = {'torchvision': segmentation.layout(torchvision)}
MODELS = {
  'lraspp_mobilenet_v3_large': segmentation.of_torchvision(
    'lraspp_mobilenet_v3_large-d234d4ea', *segmentation.MOBILE, {'fine': segmentation.MOBILE_FINE}
  )
}
