"""The deletion test of Grad-CAM on photographs of cats and dogs, EfficientNet-Lite0: does it show where a model looks?

  python experiments/where_it_looks.py PATH [RUN]     with PATH/val/{cat,dog}/*.jpg, and a run on PATH

Measured on 100 validation photographs, 2 CPU cores, 2026-11-21, 123 s with a linear probe as RUN. Areas under the curve
of the class's probability while the hottest of 7 x 7 cells are blurred first, with the ImageNet head: Grad-CAM 0.076,
integrated gradients 0.072, random cells 0.141. These are 0.54 and 0.51 of random's; the areas are below random's for 89
and 91 of the 100 photographs. The probe of two classes still gives 0.46 to its answer when everything is blurred, so
its areas are 0.652, 0.637 and 0.729: 0.90 and 0.87 of random's, and below it for 73 and 77 of the 100.
"""

import sys

from tlx import catalog
from tlx.actions import runs
from tlx.data.split import sample
from tlx.explain.deletion import deletion


def main(path: str, *folders: str) -> None:
  source = sample(catalog.dataset(f'folder:{path}').splits['validation'], 100, seed=0)
  for name in ('efficientnet_lite0', *folders):
    *_, found = deletion(runs.load_any(name), source, steps=16)
    print(name, {key: round(value, 4) for key, value in found.figures.items() if isinstance(value, float)})


if __name__ == '__main__':
  main(*sys.argv[1:])
