"""A multilayer perceptron on the pooled features: the head of most Keras tutorials."""

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
  """Hidden dense layers, each followed by ReLU and dropout, then a linear layer; all in float32.

  Raises:
    UsageError: if `hidden` or `depth` is below 1.

  Logits float32 [b, num_classes].
  """

  num_classes: int
  levels: tuple[Level, ...] = ()  # all levels of the backbone
  hidden: int = 256  # units of each hidden layer
  depth: int = 1  # hidden layers
  dropout: float = 0.5  # rate, after each hidden layer
  pool: str = 'avg'  # 'avg' (the backbone's own pooling), 'max' or 'flatten'

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
