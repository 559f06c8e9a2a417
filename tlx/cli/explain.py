"""The commands of `tlx explain`, one dataclass each (see `commands`). Every one writes pictures and figures.json."""

import dataclasses
from typing import ClassVar

from tlx.cli.explain_change import Attack, Ideal, Robustness, Style
from tlx.cli.explain_look import Deletion, Exciting, Features, Gradcam, Map


@dataclasses.dataclass(frozen=True)
class Explain:
  """Explain what a model sees: feature maps, heat maps, ideal pictures, styles and adversarial attacks."""

  TOOLS: ClassVar[tuple[type, ...]] = (Features, Exciting, Gradcam, Deletion, Map, Ideal, Style, Attack, Robustness)
