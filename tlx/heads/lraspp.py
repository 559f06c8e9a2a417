"""Lite R-ASPP (Howard et al. 2019, https://arxiv.org/abs/1905.02244, Sec. 6.4): a gate instead of a pyramid of rates.

The last map, its channels weighed by a gate that sees the whole image, is joined with a finer one as logits.
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
  """Two maps -> logits float32 [b, h, w, num_classes] at the resolution of the finer one.

  Raises UsageError where the backbone lacks a map that it reads.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()
  channels: int = 128
  fine: str = ''  # the layer of the finer map; by default the last one at stride 8: `segmentation.at_stride`

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
  """Logits float32 [b, h, w, num_classes] at each place."""

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
