"""Multi-label metrics on the host: average precision, F1 at a threshold, and the threshold with the best F1."""

from typing import Any

import numpy as np


def compute(tags: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
  """Computes the metrics of one pass over a split, in float64.

  The average precision and F1 of a tag that no image has are nan; `map` and `macro_f1` leave them out.

  Args:
    tags: bool [n, k].
    probabilities: float [n, k].
    threshold: minimum probability of a predicted tag.

  Returns:
    A dict:
    map: mean over the tags of the average precision (scikit-learn's `average_precision_score`, without interpolation).
    macro_f1: mean of the tags' F1.
    micro_f1: F1 of all decisions together.
    exact_match: share of the images with every tag right.
    hamming: share of the decisions that are right.
    per_class: list of {average_precision, precision, recall, f1, threshold, support}; threshold is the one with the
      highest F1 on these images.
  """
  given = probabilities >= threshold
  rows = [_row(tags[:, c], probabilities[:, c], given[:, c]) for c in range(tags.shape[1])]
  mean = lambda name: _mean([row[name] for row in rows])
  both, either = (tags & given).sum(), tags.sum() + given.sum()
  return {
    'map': mean('average_precision'),
    'macro_f1': mean('f1'),
    'micro_f1': float(2 * both / either) if either else float('nan'),
    'exact_match': float((tags == given).all(axis=1).mean()) if len(tags) else float('nan'),
    'hamming': float((tags == given).mean()) if len(tags) else float('nan'),
    'per_class': rows,
  }


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
  """Average precision: the sum over the distinct scores of precision x gain in recall.

  Args:
    truth: bool [n].
    scores: float [n].

  Returns:
    In [0, 1]; nan if nothing is true.

  Examples:
    >>> round(average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])), 3)
    0.833
  """
  if not truth.any():
    return float('nan')
  precision, recall, _ = _curve(truth, scores)
  return float((precision * np.diff(recall, prepend=0.0)).sum())


def best_threshold(truth: np.ndarray, scores: np.ndarray) -> float:
  """Finds the threshold with the highest F1.

  Args:
    truth: bool [n].
    scores: float [n].

  Returns:
    One of the scores; nan if nothing is true.
  """
  if not truth.any():
    return float('nan')
  precision, recall, at = _curve(truth, scores)
  both = precision + recall
  return float(at[np.argmax(np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0))])


def _curve(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(precision, recall, score) at each distinct score, from the highest down."""
  order = np.argsort(-scores, kind='stable')
  scores, truth = np.asarray(scores, np.float64)[order], truth[order]
  last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # equal scores are one decision
  right = np.cumsum(truth)[last].astype(np.float64)
  return right / (last + 1), right / truth.sum(), scores[last]


def _row(truth: np.ndarray, scores: np.ndarray, given: np.ndarray) -> dict[str, Any]:
  both = (truth & given).sum()
  ratio = lambda a, b: float(a / b) if b else float('nan')
  return {
    'average_precision': average_precision(truth, scores),
    'precision': ratio(both, given.sum()),
    'recall': ratio(both, truth.sum()),
    'f1': ratio(2 * both, truth.sum() + given.sum()) if truth.any() else float('nan'),
    'threshold': best_threshold(truth, scores),
    'support': int(truth.sum()),
  }


def _mean(values: list[float]) -> float:
  known = [value for value in values if not np.isnan(value)]
  return float(np.mean(known)) if known else float('nan')
