"""Ideal pictures of five classes by EfficientNet-Lite0, with and without total variation in the loss.

  python experiments/ideal_images.py OUT [JUDGE]     JUDGE is another model with the same classes

Measured with MobileNetV1 0.75 (68 % top-1) as the judge on 2 CPU cores, 2026-11-21, 145 s for both rows. The model
gives probability 1.0000 to every file that is read back. Total variation: 0.0168, 0.0108, 0.0140, 0.0135, 0.0140 (cat,
espresso, volcano, balloon, retriever); without its loss 0.1507, 0.1459, 0.1509, 0.1535, 0.1484: 9.0, 13.5, 10.8, 11.4
and 10.6 times as much. The judge agrees on four of the five, with probabilities 0.39, 0.02 (it says pug), 1.00, 0.87
and 0.48; without the loss on three. A person sees volcanoes with smoke and lava, small balloons over clouds, brown foam
in a round white rim, spotted fur, and light fur with a dark muzzle: textures and parts, but not a whole animal. A
weight of 1200 instead of 2000 gives more contrast, and the judge agrees on two.
"""

import sys
from pathlib import Path

from tlx.actions import explain, runs
from tlx.explain import ideal

CLASSES = ('Egyptian cat', 'espresso', 'volcano', 'balloon', 'golden retriever')


def main(out: str, judge: str | None = None) -> None:
  model = runs.load_any('efficientnet_lite0')
  goals = [ideal.of_class(model, name) for name in CLASSES]
  other = runs.load_any(judge) if judge else None
  for name, weight in (('smooth', 2000.0), ('rough', 0.0)):
    *_, found = ideal.ideal_images(model, goals, size=model.preprocess.size, variation=weight, judge=other)
    explain.save(Path(out) / name, found)
    for subject, figures in found.figures['pictures'].items():
      print(name, subject, {key: round(value, 4) for key, value in figures.items() if isinstance(value, float)})


if __name__ == '__main__':
  main(*sys.argv[1:])
