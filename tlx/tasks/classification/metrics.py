"""Metrics as masked sums: computed on the device, merged by addition, and divided once at the end."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

BINS = 15  # confidence bins of equal width; the usual number for the calibration error


@struct.dataclass
class Sums:
  """Sums over the real examples of any number of batches. `jax.lax.psum` adds them over devices.

  Counts are int32, exact up to 2**31 examples. The other sums are float32 on the device; `evaluate.exact.merge` adds
  those of several batches on the host, in float64.

  Examples:
    >>> sums = Sums.of(logits=jnp.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), labels=jnp.array([0, 0, 0]),
    ...                mask=jnp.array([True, True, False]), losses=jnp.array([0.1, 2.1, 0.0]))
    >>> sums.compute()['accuracy'], sums.compute()['count']
    (0.5, 2)
  """

  count: jax.Array  # int32 []
  loss: jax.Array  # float32 []
  top1: jax.Array  # int32 []
  top5: jax.Array  # int32 []
  confusion: jax.Array  # int32 [k, k], rows = truth, columns = prediction
  bin_count: jax.Array  # int32 [BINS]
  bin_confidence: jax.Array  # float32 [BINS]
  bin_correct: jax.Array  # int32 [BINS]

  @classmethod
  def of(cls, logits, labels, mask, losses):
    """Computes the sums of one batch.

    Args:
      logits: float [b, k]; of equal logits the lower class id wins.
      labels: int [b].
      mask: bool [b]; False marks padding, which has no effect even if its values are NaN.
      losses: float [b].

    Returns:
      The sums.
    """
    classes = logits.shape[-1]
    logits, real = logits.astype(jnp.float32), mask.astype(bool)
    labels = jnp.where(real, labels, 0)
    ones = real.astype(jnp.int32)
    order = jax.lax.top_k(logits, min(5, classes))[1]
    hits = (order == labels[:, None]) & real[:, None]
    correct = hits[:, 0].astype(jnp.int32)
    confidence = jnp.where(real, jax.nn.softmax(logits).max(axis=-1), 0)
    # Bin i is (i / BINS, (i + 1) / BINS], as in Guo et al.
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    return cls(
      count=ones.sum(),
      loss=jnp.where(real, losses.astype(jnp.float32), 0).sum(),
      top1=correct.sum(),
      top5=hits.any(axis=1).sum(dtype=jnp.int32),
      confusion=jnp.zeros((classes, classes), jnp.int32).at[labels, order[:, 0]].add(ones),
      bin_count=_into_bins(bins, ones),
      bin_confidence=_into_bins(bins, confidence),
      bin_correct=_into_bins(bins, correct),
    )

  def compute(self) -> dict:
    """Divides the sums, on the host in float64.

    Returns:
      Plain Python numbers, all 0.0 without examples: accuracy, top5_accuracy, loss, calibration_error (ECE, Guo et al.
      2017, Sec. 2, https://arxiv.org/abs/1706.04599), count, macro_precision, macro_recall, macro_f1, and `per_class`,
      a list of {precision, recall, f1, support}. The macro values are means over all k classes, where a class without a
      prediction or an example counts as 0, as in scikit-learn's `precision_recall_fscore_support(average='macro',
      labels=range(k), zero_division=0)`.
    """
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), self)
    right, predicted, support = np.diag(sums.confusion), sums.confusion.sum(axis=0), sums.confusion.sum(axis=1)
    rates = {
      'precision': _divide(right, predicted),
      'recall': _divide(right, support),
      'f1': _divide(2 * right, predicted + support),
    }
    return {
      'accuracy': float(_divide(sums.top1, sums.count)),
      'top5_accuracy': float(_divide(sums.top5, sums.count)),
      'loss': float(_divide(sums.loss, sums.count)),
      **{f'macro_{name}': float(values.mean()) for name, values in rates.items()},
      'calibration_error': float(_divide(np.abs(sums.bin_correct - sums.bin_confidence).sum(), sums.count)),
      'count': int(sums.count),
      'per_class': [
        {name: float(values[c]) for name, values in rates.items()} | {'support': int(support[c])}
        for c in range(len(support))
      ],
    }


def _into_bins(bins, values):
  return jax.ops.segment_sum(values, bins, BINS)


def _divide(a, b):
  """a / b, or 0 where b is 0."""
  return np.divide(a, b, out=np.zeros(np.shape(b)), where=np.asarray(b) != 0)
