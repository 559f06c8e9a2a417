"""Only a linear head learns; the backbone, its statistics included, stays as it was pretrained."""

import dataclasses
from collections.abc import Sequence

from tlx import labels, types
from tlx.types import Phase


@dataclasses.dataclass(frozen=True)
class Strategy(types.Strategy):
  """linear_probe."""

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    return (Phase('head', 1.0, labels.head_only()),)
