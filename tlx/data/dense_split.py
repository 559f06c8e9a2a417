"""Splits of images that hold several classes each, as masks and boxes do."""

from collections.abc import Mapping, Sequence

import numpy as np

from tlx.data.masks import some
from tlx.types import UsageError


def holdout(counts: np.ndarray, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Sorted positions (kept, held back), drawn such that every class stays among those that are kept.

  Args:
    counts: int [n, k], how much of each class each image holds.
    share: of the images that are held back; fewer where classes would be lost, but at least one.
  Raises: UsageError where no image can be held back.
  """
  present = np.asarray(counts) > 0
  images, held, wanted = present.sum(axis=0), [], max(1, round(share * len(present)))
  for i in np.random.default_rng(seed).permutation(len(present)):
    if len(held) < wanted and (images[present[i]] > 1).all() and len(held) + 1 < len(present):
      held.append(i)
      images = images - present[i]
  if not held:
    raise UsageError(
      f'{len(present)} images cannot be split: each has a class that no other image has; next: add images, '
      'or name the validation images in a folder of their own'
    )
  return np.setdiff1d(np.arange(len(present)), held), np.sort(held)


def untrained(class_names: Sequence[str], counts: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> list:
  """One line for each class that a split has and 'train' lacks.

  Args:
    counts: split -> int [n, k], as in `holdout`.
    names: split -> names of the n images' annotations, for the message.
  """
  trained, problems = counts['train'].sum(axis=0) > 0, []
  for split, found in counts.items():
    for c in np.flatnonzero((found.sum(axis=0) > 0) & ~trained):
      holders = [name for name, count in zip(names[split], found[:, c], strict=True) if count]
      problems.append(
        f'class {class_names[c]!r} is in {split} ({some(holders)}) and not in train; '
        'next: move an image to train, or ignore the class'
      )
  return problems
