"""Ideal pictures of five classes by EfficientNet-Lite0, with and without total variation in the loss.

  python experiments/ideal_images.py OUT [JUDGE]     with another model of the same classes as JUDGE

FIGURES
"""

import sys
from pathlib import Path

from tlx import explaining, inference
from tlx.explain import ideal

CLASSES = ('Egyptian cat', 'espresso', 'volcano', 'balloon', 'golden retriever')


def main(out: str, judge: str | None = None) -> None:
  model = inference.load_any('efficientnet_lite0')
  goals = [ideal.of_class(model, name) for name in CLASSES]
  other = inference.load_any(judge) if judge else None
  for name, weight in (('smooth', 2000.0), ('rough', 0.0)):
    *_, found = ideal.ideal_images(model, goals, size=model.preprocess.size, variation=weight, judge=other)
    explaining.save(Path(out) / name, found)
    for subject, figures in found.figures['pictures'].items():
      print(name, subject, {key: round(value, 4) for key, value in figures.items() if isinstance(value, float)})


if __name__ == '__main__':
  main(*sys.argv[1:])
