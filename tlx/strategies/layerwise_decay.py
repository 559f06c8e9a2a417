"""Layer-wise learning-rate decay: each layer learns slower than the next (BEiT, https://arxiv.org/abs/2106.08254)."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase, UsageError


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`layerwise_decay:D`, 0 < D <= 1. The i-th layer before the head learns at D^i times the head's learning rate."""

  decay: float

  def __post_init__(self) -> None:
    if not 0 < self.decay <= 1:
      raise UsageError(f'layerwise_decay:{self.decay}: the decay must lie in (0, 1], for example layerwise_decay:0.8')

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase(f'decay {self.decay:g}', 1.0, labels.layerwise(layers, self.decay)),)
