"""Linear probe: only a linear head learns. The backbone stays as it was pretrained, its batch statistics too."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """`linear_probe`."""

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase('head', 1.0, labels.head_only()),)
