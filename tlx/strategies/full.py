"""Full fine-tuning: every parameter learns, the backbone at a lower learning rate than the fresh head."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`full`. The backbone learns at `rate` times the head's learning rate."""

  rate: float = 0.1

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase('everything', 1.0, labels.last_layers(layers, len(layers), self.rate)),)
