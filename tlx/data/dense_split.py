"""Hold-out splits of images that each show several classes, as images with masks, boxes or tags do."""

from collections.abc import Mapping, Sequence

import numpy as np

from tlx.data.masks import some
from tlx.types import UsageError

SHARE = 0.2  # of the images, held back for validation if a data set has neither validation nor test images
HELD_BACK = f' ({SHARE:.0%} of the images held back for validation)'
FROM_TEST = ' (no validation: test is used for validation)'


def with_validation(counts: Mapping[str, np.ndarray], *, seed: int) -> tuple[dict[str, tuple[str, np.ndarray]], str]:
  """Finds validation images for splits that have none: those of 'test', or else a part of 'train'.

  Args:
    counts: {split: int [n, k]}, as in `holdout`; 'train' is among them.
    seed: random seed.

  Returns:
    {split: (the given split that it comes from, positions int [m] in it)}, and a note that says where the validation
    images come from; '' if they were given.

  Raises:
    UsageError: if no image can be held back.
  """
  every = {split: (split, np.arange(len(found))) for split, found in counts.items()}
  if 'validation' in counts:
    return every, ''
  if 'test' in counts:
    return {'train': every['train'], 'validation': every['test']}, FROM_TEST
  kept, held = holdout(counts['train'], share=SHARE, seed=seed)
  return {'train': ('train', kept), 'validation': ('train', held)}, HELD_BACK


def holdout(counts: np.ndarray, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Holds back random images, and keeps at least one image of every class.

  Args:
    counts: int [n, k], the amount of each of k classes in each of n images, such as pixels; 0 = none.
    share: share of the images to hold back, in [0, 1]. At least one image is held back, and fewer than this share if
      the kept images would otherwise lose a class.
    seed: random seed.

  Returns:
    Sorted positions (kept, held back), int [m] each.

  Raises:
    UsageError: if no image can be held back.

  Examples:
    >>> kept, held = holdout(np.array([[9, 0], [0, 9], [9, 0], [0, 9]]), share=0.5, seed=0)
    >>> len(kept), len(held)
    (2, 2)
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
  """Lists the classes that another split has and 'train' lacks.

  Args:
    class_names: names of the k classes.
    counts: {split: int [n, k]}, as in `holdout`.
    names: {split: names of its n images' annotations}, for the message.

  Returns:
    One line per class and split, for an error message.
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
