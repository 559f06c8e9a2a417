"""Handwritten digits of 8 x 8 grey pixels, from scikit-learn (UCI, Alpaydin and Kaynak 1998); for quick checks."""

import hashlib

import numpy as np

from tlx.data.split import Labelled, class_counts, holdout
from tlx.types import Dataset, DatasetInfo, Example, UsageError

SHARE = 0.2  # share of the examples in the validation split


class Digits(Labelled):
  """One split: images uint8 [n, 8, 8, 3] and labels in memory."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, positions: np.ndarray):
    self.images, self.labels, self.positions = images, labels, positions

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Example:
    return Example(self.images[index], int(self.labels[index]), f'digits/{self.positions[index]}')

  def fingerprint(self) -> str:
    return hashlib.sha256(self.images.tobytes()).hexdigest()


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' (80 %) and 'validation' (20 %), stratified.

  Args:
    argument: must be empty.
    seed: of the split.

  Returns:
    The data set.

  Raises:
    UsageError: if there is an argument, or scikit-learn is not installed.
  """
  if argument:
    raise UsageError(f"data set 'digits' takes no argument, got {argument!r}; write --data digits")
  try:
    from sklearn.datasets import load_digits
  except ImportError as error:
    raise UsageError("data set 'digits' is part of scikit-learn; run: pip install scikit-learn") from error
  raw = load_digits()
  images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)  # from grey levels 0 to 16
  labels = raw.target.astype(np.int32)
  kept, held = holdout(labels, share=SHARE, seed=seed)
  splits = {split: Digits(images[p], labels[p], p) for split, p in (('train', kept), ('validation', held))}
  info = DatasetInfo(
    name='digits',
    class_names=tuple(str(digit) for digit in range(10)),
    counts={split: class_counts(source.labels, 10) for split, source in splits.items()},
    resolution=(8, 8),
    source='scikit-learn load_digits: UCI optical recognition of handwritten digits, test part',
    license='CC BY 4.0',
    augment='glyph',
  )
  return Dataset(info, splits)
