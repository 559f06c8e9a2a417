"""A cat in the style of a cup of coffee, by EfficientNet-Lite0.

  python experiments/style_transfer.py OUT [MODEL]

Measured on 2 CPU cores, 2026-11-21, 512 pixels, 56 s, as by `tlx explain style efficientnet_lite0 CAT COFFEE`: style
loss 0.451 of the photograph itself, 0.0140 after transfer, 32 times less; content 1.59, of the photograph with its 64
cells shuffled 1.78. The cat turns to the red-brown of the saucer in strokes of its wooden table, and stays a cat. Fewer
pixels match worse, as a layer's statistics come from fewer places: at 256 pixels 11 times less (0.0486), and 13 to 15
with more weight or steps; an astronaut as gravel 22 times, the cat as bricks 8 times, whose content (1.96) is then
further off than the shuffled photograph's (1.69).
"""

import sys
from pathlib import Path

from skimage import data

from tlx.actions import explain, runs
from tlx.explain import style


def main(out: str, name: str = 'efficientnet_lite0') -> None:
  model = runs.load_any(name)
  sizes = style.sizes_to(model, 512)
  *_, found = style.style_transfer(model, data.chelsea(), data.coffee(), sizes=sizes)
  explain.save(Path(out), found)
  print({key: round(value, 4) for key, value in found.figures.items() if isinstance(value, float)})


if __name__ == '__main__':
  main(*sys.argv[1:])
