"""Linear probe, then full fine-tuning at a lower rate (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).

A fresh head sends large gradients into good features; training it first keeps them.
"""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """lp_ft."""

  rate: float = 0.1
  probe_share: float = 0.3

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    everything = dict.fromkeys((*layers, labels.HEAD), self.rate)
    return (
      Phase('head', self.probe_share, labels.head_only()),
      Phase('everything', 1 - self.probe_share, everything),
    )
