"""Accuracy of a fine-tuned probe under attack: EfficientNet-Lite0, 400 validation photographs of cats and dogs.

  tlx finetune --data folder:PATH --strategy linear_probe --out RUN     with PATH/train and PATH/val/{cat,dog}/*.jpg
  python experiments/robustness.py RUN

Untargeted PGD in L-infinity, 10 steps of a quarter of epsilon from one random start, stopped at success, seed 0, by
`tlx explain robustness RUN --steps 10`; 529 s on 2 CPU cores that five other jobs shared, 192 s of processor time,
2026-11-21:
  epsilon * 255      0      0.5    1      2      4      8
  answers changed    0      0.7525 0.985  1      1      1
  accuracy           0.985  0.2475 0.015  0      0      0
`tlx explain robustness RUN --epsilons 0,8/255` (20 steps) changed a share of 0 and 1 of the answers; accuracy 0.985
and 0.
Reference: foolbox 3.3.4's LinfPGD with 5 steps of half of epsilon from its own random start, against `perturb` with the
same steps and without early stop. At 8/255 they changed 120 and 120 of the first 120 photographs (drawn by seed 0), at
0.5/255 79 and 79 of 120.
"""

import sys

from tlx.actions import runs
from tlx.explain.attack import Attack
from tlx.explain.robustness import robustness


def curve(run: str) -> list[dict]:
  """The points of the curve over the run's validation split."""
  source = runs.data_of(run, None, 'validation').splits['validation']
  epsilons = {f'{levels:g}/255': levels / 255 for levels in (0, 0.5, 1, 2, 4, 8)}
  attack = Attack(steps=10, random_start=True, stop=True)
  *_, found = robustness(runs.load_run(run), source, epsilons, attack)
  return found.figures['curve']


if __name__ == '__main__':
  for point in curve(sys.argv[1]):
    print(point)
