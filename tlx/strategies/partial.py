"""The last K layers of the layer order and the head learn."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """partial:K. The layers learn at a tenth of the head's rate: theirs are good weights, the head's are none."""

  last: int
  rate: float = 0.1

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase(f'last {self.last} layers', 1.0, labels.last_layers(layers, self.last, self.rate)),)
