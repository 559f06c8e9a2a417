"""One linear layer on what the backbone pools: the head of a linear probe, and of the published classifiers."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from tlx.nn.conv import Dense
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level
from tlx.nn.pool import pooled
from tlx.nn.stochastic import Dropout


class Head(nn.Module):
  """Dropout and one linear layer, in float32: -> logits float32 [b, k]; with k = 0 what is pooled passes through.

  pool: avg (the backbone's own), max or flatten. spatial: the layer sees every place of the last map, and the rectified
  logits of all places are averaged (SqueezeNet).
  """

  num_classes: int
  levels: tuple[Level, ...] = ()
  dropout: float = 0.0
  pool: str = 'avg'
  spatial: bool = False

  @property
  def needs(self) -> tuple[str, ...]:
    """The features that it reads."""
    maps = (self.spatial and self.num_classes) or self.pool != 'avg'
    return (self.levels[-1].layer,) if maps else ('pooled',)

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    spatial = self.spatial and self.num_classes
    x = features[self.levels[-1].layer] if spatial else pooled(features, self.levels, self.pool)
    x = Dropout(self.dropout, name='dropout')(widened(x), train)
    x = Dense(self.num_classes, name='logits')(x) if self.num_classes else x
    return nn.relu(x).mean(axis=(1, 2)) if spatial else x
