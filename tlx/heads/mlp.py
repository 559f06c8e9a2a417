"""Hidden layers and a linear one on what the backbone pools: the head of most Keras tutorials."""

from collections.abc import Mapping

import flax.linen as nn
import jax

from tlx.nn.conv import Dense
from tlx.nn.dtypes import widened
from tlx.nn.levels import Level
from tlx.nn.pool import pooled
from tlx.nn.stochastic import Dropout
from tlx.types import UsageError


class Head(nn.Module):
  """`depth` dense layers of `hidden` units, each with ReLU and dropout, then one to the classes: float32 [b, k].

  pool: avg (the backbone's own), max or flatten. Raises UsageError for sizes below 1.
  """

  num_classes: int
  levels: tuple[Level, ...] = ()
  hidden: int = 256
  depth: int = 1
  dropout: float = 0.5
  pool: str = 'avg'

  def __post_init__(self):
    if self.hidden < 1 or self.depth < 1:
      raise UsageError(f'head mlp: hidden is {self.hidden} and depth {self.depth}; both must be 1 or more')
    super().__post_init__()

  @nn.compact
  def __call__(self, features: Mapping[str, jax.Array], train: bool = False) -> jax.Array:
    x = widened(pooled(features, self.levels, self.pool))
    for i in range(self.depth):
      x = nn.relu(Dense(self.hidden, name=f'hidden{i}')(x))
      x = Dropout(self.dropout, name=f'dropout{i}')(x, train)
    return Dense(self.num_classes, name='logits')(x)
