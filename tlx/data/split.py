"""Holding examples back for validation, stratified and seeded; and what a split is known by."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlx.types import DataSource, Example


class Labelled(DataSource):
  """Base of the sources whose annotation is one class an image."""

  labels: np.ndarray  # int32 [n]

  def annotation(self, index: int) -> int:
    return int(self.labels[index])


class Subset(DataSource):
  """Some examples of another source, in the given order."""

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
  """That many examples drawn without replacement, in the order of the source; all where it has no more."""
  chosen = np.random.default_rng(seed).permutation(len(source))[:count]
  return Subset(source, np.sort(chosen))


def holdout(labels: np.ndarray, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Sorted positions (kept, held back), the same share of every class.

  A class of two or more examples gives at least one and keeps at least one; a class of one keeps it.
  """
  held = []
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    count = min(max(1, round(share * len(members))), len(members) - 1)
    held.append(np.random.default_rng((seed, int(label))).permutation(members)[:count])
  held = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
  return np.setdiff1d(np.arange(len(labels)), held), held


def class_counts(labels: np.ndarray, classes: int) -> tuple[int, ...]:
  """Examples of each class."""
  return tuple(np.bincount(labels, minlength=classes).tolist())
