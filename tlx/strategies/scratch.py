"""Training from random weights: the baseline that shows what the transfer gained."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`scratch`. Everything learns at the peak rate."""

  pretrained = False  # a run then ignores the checkpoint's weights

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase('everything', 1.0, labels.last_layers(layers, len(layers))),)
