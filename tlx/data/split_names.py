"""Tells which split a folder, a file or a column of a table names: train, validation or test."""

import os
import re
from collections.abc import Mapping

from tlx.types import UsageError

ROLES = {  # split: the words that name it
  'train': r'train(ing|ings|s|set|data)?|trn|learn(ing)?',
  'validation': r'val|vals|valid(ation|s|set)?|valset|vld|dev(elopment|set)?|eval(uation)?|holdout',
  'test': r'test(ing|s|set|data)?|tst|unseen',
}
CLEARLY = 1.5  # a folder whose name tells nothing is for training if it has so many times the images of any other


def role(name: str) -> str | None:
  """The split that a word of a name tells; None if none does, or if words tell different splits.

  >>> [role(name) for name in ('seg_train', 'TrainingSet', 'dev', 'instances_val2017', 'valley')]
  ['train', 'train', 'validation', 'validation', None]
  """
  parts = [word.lower() for word in re.findall('[A-Z]?[a-z]+|[A-Z]+', name)]
  found = {split for split, pattern in ROLES.items() for part in parts if re.fullmatch(pattern, part)}
  return found.pop() if len(found) == 1 else None


def told_apart(top: str, sizes: Mapping[str, int]) -> tuple[dict[str, str], str]:
  """Tells which of several alike folders is which split: by name, and where names tell nothing, the largest trains.

  Args:
    top: the folder that holds them, for messages.
    sizes: {path: number of its images} of two folders or more.

  Returns:
    {split: path}, and a line that says how it was decided.

  Raises:
    UsageError: if neither names nor sizes tell.
  """
  named = {path: role(os.path.basename(path)) for path in sizes}
  tops = {split: path for path, split in named.items() if split}
  nameless = sorted((path for path in sizes if not named[path]), key=lambda path: -sizes[path])
  free = [split for split in ROLES if split not in tops]
  largest = nameless[0] if nameless else ''
  clear = 'train' in tops or all(sizes.get(largest, 0) >= CLEARLY * sizes[path] for path in sizes if path != largest)
  there = ', '.join(f'{os.path.basename(path)} ({sizes[path]} images)' for path in sizes)
  enough = len(nameless) <= min(len(free), 2 - ('train' in tops))
  if not clear or not enough or len(tops) + len(nameless) != len(sizes):
    raise UsageError(
      f'{top}: {there} are laid out alike, and neither names nor sizes tell which is for what; '
      'next: rename them to train, validation and test; or move them into a folder train if they are classes'
    )
  tops |= dict(zip(free, nameless))
  told = ', '.join(f'{os.path.basename(tops[split])} for {split}' for split in ROLES if split in tops)
  return tops, f'{there} are laid out alike; so they are splits: {told}'
