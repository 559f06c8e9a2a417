"""One linear layer on the pooled features: the head of a linear probe, and of the published classifiers."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from tlx.nn.conv import Dense
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level
from tlx.nn.pool import pooled
from tlx.nn.stochastic import Dropout


class Head(nn.Module):
  """Dropout and one linear layer, both in float32.

  With `spatial` the linear layer reads every position of the last map, and the head averages the logits of all
  positions after a ReLU (SqueezeNet, https://arxiv.org/abs/1602.07360).

  Logits float32 [b, num_classes]; the pooled features float32 [b, d] for num_classes = 0.
  """

  num_classes: int  # 0 = no linear layer: the head returns the pooled features
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  dropout: float = 0.0  # rate
  pool: str = 'avg'  # 'avg' (the backbone's own pooling), 'max' or 'flatten'
  spatial: bool = False

  @property
  def needs(self) -> tuple[str, ...]:
    """Names of the features that the head reads."""
    maps = (self.spatial and self.num_classes) or self.pool != 'avg'
    return (self.levels[-1].layer,) if maps else ('pooled',)

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    spatial = self.spatial and self.num_classes
    x = features[self.levels[-1].layer] if spatial else pooled(features, self.levels, self.pool)
    x = Dropout(self.dropout, name='dropout')(widened(x), train)
    x = Dense(self.num_classes, name='logits')(x) if self.num_classes else x
    return nn.relu(x).mean(axis=(1, 2)) if spatial else x
