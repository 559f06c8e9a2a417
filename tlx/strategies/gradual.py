"""Gradual unfreezing from the head down (ULMFiT, https://arxiv.org/abs/1801.06146)."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`gradual`. The head learns first, then another third of the layers joins in each phase, until everything learns.

  The backbone learns at `rate` times the head's learning rate.
  """

  rate: float = 0.1
  parts: int = 3

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    depths = sorted({round(len(layers) * part / self.parts) for part in range(self.parts + 1)})
    names = ['head', *(f'last {k} layers' for k in depths[1:-1]), 'everything']
    return tuple(
      Phase(name, 1 / len(depths), labels.last_layers(layers, k, self.rate)) for name, k in zip(names, depths)
    )
