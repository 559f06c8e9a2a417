"""Image classification: one label a picture. Losses are per example and float32, whatever the logits' dtype."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlx import metrics
from tlx.types import UsageError


@dataclasses.dataclass(frozen=True)
class Classification:
  """What is asked of a classifier; hashable, so it can be a static argument of jit.

  Raises UsageError for values out of range, all of them at once.
  """

  num_classes: int
  label_smoothing: float = 0.0  # Szegedy et al. 2016, Sec. 7, https://arxiv.org/abs/1512.00567
  focal_gamma: float = 0.0  # Lin et al. 2017, https://arxiv.org/abs/1708.02002; 0 = cross-entropy
  class_weights: tuple[float, ...] | None = None  # one a class; `balanced_weights` makes them

  def __post_init__(self):
    if self.class_weights is not None:  # a list, as JSON gives it, is not hashable
      object.__setattr__(self, 'class_weights', tuple(float(weight) for weight in self.class_weights))
    checks = (
      (f'{self.num_classes} classes; at least 1 is needed', self.num_classes < 1),
      (f'label_smoothing is {self.label_smoothing}; give a number from 0 to 1', not 0 <= self.label_smoothing <= 1),
      (f'focal_gamma is {self.focal_gamma}; give 0 or more', not self.focal_gamma >= 0),
    )
    problems = [f'classification: {what}' for what, wrong in checks if wrong]
    weights = self.class_weights
    if weights is not None and (len(weights) != self.num_classes or not all(0 <= w < np.inf for w in weights)):
      problems.append(f'classification: class_weights is {weights}; give {self.num_classes} finite numbers >= 0')
    if problems:
      raise UsageError('\n'.join(problems))

  def targets(self, labels):
    """int [b] -> float32 [b, k]: one-hot, of which label_smoothing is spread evenly over all classes."""
    return optax.smooth_labels(jax.nn.one_hot(labels, self.num_classes), self.label_smoothing)

  def losses(self, logits, targets):
    """float [b, k] and float [b, k], whose rows sum to one -> float32 [b].

    Cross-entropy -sum_c t_c log p_c, or with focal_gamma the softmax focal loss -sum_c t_c (1 - p_c)^gamma log p_c.
    class_weights w multiply an example's loss by sum_c t_c w_c. Where labels are neither smoothed nor mixed that is
    PyTorch's weight[label], and elsewhere it differs from `CrossEntropyLoss`, which weights each term of the sum
    instead. The trainer divides by the number of examples, not by their weights as PyTorch's mean does, so that the
    gradient is the same however a batch is cut; `balanced_weights` average one over the data, hence the same scale.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    loss = partial(_focal, gamma=self.focal_gamma) if self.focal_gamma else optax.softmax_cross_entropy
    losses = loss(logits, targets)
    return losses if self.class_weights is None else losses * (targets * jnp.array(self.class_weights)).sum(axis=-1)

  def metrics(self, logits, labels, mask) -> metrics.Classification:
    """Sums over the examples that `mask` keeps; the loss is plain cross-entropy, so that runs can be compared."""
    logits = logits.astype(jnp.float32)
    safe = jnp.where(mask.astype(bool), labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    return metrics.Classification.of(logits, labels, mask, losses)


def _focal(logits, targets, gamma):
  """optax has the sigmoid form only."""
  log_p = jax.nn.log_softmax(logits)
  miss = -jnp.expm1(log_p)  # 1 - p, without the cancellation where p is near one
  # At miss = 0 the power's derivative is infinite for gamma < 1, and its product with log p = 0 is NaN.
  return -(targets * jnp.where(miss > 0, jnp.where(miss > 0, miss, 1) ** gamma, 0) * log_p).sum(axis=-1)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
  """Class weights n / (k n_c) from the number of examples of each class: scikit-learn's 'balanced'.

  They average one over the data; a class without examples weighs 0 and is not among the k, which keeps that average.
  """
  counts = np.asarray(counts, np.float64)
  present = counts > 0
  weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros_like(counts), where=present)
  return tuple(float(weight) for weight in weights)
