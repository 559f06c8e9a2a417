"""The commands of `tlx explain`: as in `commands`, a dataclass each; every one writes pictures and figures.json."""

import dataclasses
from typing import ClassVar

from tlx.cli.explain_change import Attack, Ideal, Robustness, Style
from tlx.cli.explain_look import Deletion, Exciting, Features, Gradcam, Map


@dataclasses.dataclass(frozen=True)
class Explain:
  """See what a backbone sees: feature maps, where it looks, and what gradients of pixels bring about."""

  TOOLS: ClassVar[tuple[type, ...]] = (Features, Exciting, Gradcam, Deletion, Map, Ideal, Style, Attack, Robustness)
