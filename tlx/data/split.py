"""Subsets and hold-out splits of data sources, seeded and stratified, and their fingerprints."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlx.types import DataSource, Example


class Labelled(DataSource):
  """Base class of sources whose annotation is one class per image."""

  labels: np.ndarray  # int32 [n]

  def annotation(self, index: int) -> int:
    return int(self.labels[index])


class Subset(DataSource):
  """Selected examples of another source, in the given order."""

  def __init__(self, source: DataSource, indices: Sequence[int] | np.ndarray):
    self.source, self.indices = source, np.asarray(indices, np.int64)
    if source.labels is not None:
      self.labels = np.asarray(source.labels, np.int32)[self.indices]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Example:
    return self.source[int(self.indices[index])]

  def annotation(self, index: int) -> Any:
    return self.source.annotation(int(self.indices[index]))

  def size(self, index: int) -> tuple[int, int]:
    return self.source.size(int(self.indices[index]))

  def fingerprint(self) -> str | None:
    whole = self.source.fingerprint()
    return whole and hashlib.sha256(whole.encode() + self.indices.tobytes()).hexdigest()


def sample(source: DataSource, count: int, seed: int) -> Subset:
  """Draws a random sample without replacement, in the order of the source.

  Args:
    source: the examples.
    count: size of the sample; a smaller source is taken whole.
    seed: random seed.

  Returns:
    The sample.
  """
  chosen = np.random.default_rng(seed).permutation(len(source))[:count]
  return Subset(source, np.sort(chosen))


def holdout(labels: np.ndarray, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits examples in two, with the same share of every class held back.

  A class of two or more examples has at least one on either side; a class of one keeps it.

  Args:
    labels: int [n].
    share: share to hold back, in [0, 1].
    seed: random seed.

  Returns:
    Sorted positions (kept, held back).

  Examples:
    >>> kept, held = holdout(np.array([0, 0, 0, 0, 1, 1]), share=0.25, seed=0)
    >>> len(kept), len(held)
    (4, 2)
  """
  held = []
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    count = min(max(1, round(share * len(members))), len(members) - 1)
    held.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
  held = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
  return np.setdiff1d(np.arange(len(labels)), held), held


def class_counts(labels: np.ndarray, classes: int) -> tuple[int, ...]:
  """Number of examples of each class.

  >>> class_counts(np.array([0, 2, 2]), classes=3)
  (1, 0, 2)
  """
  return tuple(np.bincount(labels, minlength=classes).tolist())
