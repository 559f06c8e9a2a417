"""Linear probe, then full fine-tuning at a lower rate (Kumar et al. 2022, https://arxiv.org/abs/2202.10054).

A fresh head would send large gradients into good features; training the head first preserves them.
"""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`lp_ft`. Only the head learns for `probe_share` of the steps; then everything learns at `rate` times the peak."""

  rate: float = 0.1
  probe_share: float = 0.3

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    everything = dict.fromkeys((*layers, labels.HEAD), self.rate)
    return (
      Phase('head', self.probe_share, labels.head_only()),
      Phase('everything', 1 - self.probe_share, everything),
    )
