"""Partial fine-tuning: the last K layers and the head learn."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`partial:K`. The layers learn at a tenth of the head's rate, because they are pretrained and the head is not."""

  last: int
  rate: float = 0.1

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase(f'last {self.last} layers', 1.0, labels.last_layers(layers, self.last, self.rate)),)
