"""Image classification: one label per picture. Losses are float32, one per example, for logits of any dtype."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlx import words
from tlx.data.augment import partners
from tlx.tasks.classification import mistakes, sections
from tlx.tasks.classification.metrics import Sums
from tlx.types import Card, DatasetInfo, DataSource, Geometry, Pretrained, Section, Target, UsageError, Warp


@dataclasses.dataclass(frozen=True)
class Task:
  """The classification task. It is hashable, so that it can be a static argument of jit.

  `types.Task` describes the methods.

  Raises:
    UsageError: for values out of range, one line for each.
  """

  class_names: tuple[str, ...] = ()
  label_smoothing: float = 0.0  # Szegedy et al. 2016, Sec. 7, https://arxiv.org/abs/1512.00567
  focal_gamma: float = 0.0  # Lin et al. 2017, https://arxiv.org/abs/1708.02002; 0 = cross-entropy
  class_weights: tuple[float, ...] | str | None = None  # one per class; 'balanced': see `balanced_weights`

  primary: ClassVar[str] = 'accuracy'
  metrics: ClassVar[tuple[str, ...]] = (
    'accuracy', 'top5_accuracy', 'loss', 'macro_precision', 'macro_recall', 'macro_f1', 'calibration_error',
  )  # fmt: skip
  percents: ClassVar[tuple[str, ...]] = tuple(name for name in metrics if name != 'loss')
  dense: ClassVar[bool] = False
  default_head: ClassVar[str] = 'linear'

  def __post_init__(self):
    weights = self.class_weights
    if weights is not None and not isinstance(weights, str):  # a list, as JSON gives it, is not hashable
      weights = tuple(float(weight) for weight in weights)
      object.__setattr__(self, 'class_weights', weights)
    object.__setattr__(self, 'class_names', tuple(self.class_names))
    checks = (
      (f'label_smoothing is {self.label_smoothing}; give a number from 0 to 1', not 0 <= self.label_smoothing <= 1),
      (f'focal_gamma is {self.focal_gamma}; give 0 or more', not self.focal_gamma >= 0),
      (f'class_weights is {weights!r}; give numbers or balanced', isinstance(weights, str) and weights != 'balanced'),
    )
    problems = [f'classification: {what}' for what, wrong in checks if wrong]
    if isinstance(weights, tuple):
      wrong = self.class_names and len(weights) != len(self.class_names)
      if wrong or not all(0 <= w < np.inf for w in weights):
        count = len(self.class_names) or 'as many as there are classes'
        problems.append(f'classification: class_weights is {weights}; give {count} finite numbers >= 0')
    words.refuse(problems)

  def bind(self, info: DatasetInfo) -> 'Task':
    """Sets the classes, and 'balanced' weights from the training split. Raises UsageError for other annotations."""
    if info.task != 'classification':
      raise UsageError(f'{info.name} is annotated for {info.task}, not for classification; leave --task out')
    balanced = self.class_weights == 'balanced'
    weights = balanced_weights(info.counts['train']) if balanced else self.class_weights
    return dataclasses.replace(self, class_names=info.class_names, class_weights=weights)

  def encode(self, annotation: int, geometry: Geometry, shape: tuple[int, int]) -> Target:
    return {'label': np.int32(annotation)}

  def blank(self, shape: tuple[int, int]) -> Target:
    return {'label': np.int32(0)}

  def warp(self, target: Target, warp: Warp) -> Target:
    return target

  def mix(self, target: Target, share: jax.Array) -> Target:
    return {**target, 'other': partners(target['label']), 'share': share}

  def loss(self, outputs: Any, target: Target, mask: Any) -> tuple[Any, Any]:
    """(sum of the losses, number of examples)."""
    targets = self.targets(target['label'])
    if 'share' in target:
      share = target['share'][:, None]
      targets = share * targets + (1 - share) * self.targets(target['other'])
    return jnp.where(mask, self.losses(outputs, targets), 0).sum(), mask.sum().astype(jnp.float32)

  def hits(self, outputs: Any, target: Target, mask: Any) -> dict[str, Any]:
    return {'accuracy': (mask & (outputs.argmax(-1) == target['label'])).sum()}

  def evaluate(self, outputs: Any, target: Target, mask: Any) -> tuple[Any, dict[str, Any]]:
    """(sums, records). The loss is cross-entropy without options, so that runs with different losses compare."""
    logits, labels = outputs.astype(jnp.float32), jnp.where(mask, target['label'], 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    probabilities = jax.nn.softmax(logits)
    own = jnp.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
    records = {'prediction': logits.argmax(-1), 'confidence': probabilities.max(-1), 'probability_of_label': own}
    return Sums.of(logits, labels, mask, losses), {**records, 'label': target['label']}

  def summary(self, sums: Sums, records: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return sums.compute()

  def arrays(self, sums: Sums, records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = {name: getattr(sums, name) for name in ('confusion', 'bin_count', 'bin_confidence', 'bin_correct')}
    names = {'labels': 'label', 'predictions': 'prediction', 'confidences': 'confidence', 'indices': 'index'}
    return kept | {name: records[record] for name, record in names.items()}

  def decode(self, outputs: np.ndarray, geometry: Geometry, top: int = 5) -> dict[str, Any]:
    """{'classes': [{'id', 'name', 'probability'}]}, best first."""
    names = self.class_names or [f'class {i}' for i in range(len(outputs))]
    row = np.exp(outputs - outputs.max())
    row /= row.sum()
    order = np.argsort(-row, kind='stable')[:top]
    return {'classes': [{'id': int(i), 'name': names[i], 'probability': float(row[i])} for i in order]}

  def draw(self, image: np.ndarray, prediction: Mapping[str, Any]) -> None:
    return None

  def pictures(self, out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained) -> None:
    mistakes.write(out, records, source, self.class_names)
    mistakes.add_heat(out, records, source, model)

  def cards(self, result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]:
    return sections.cards(result, evaluation)

  def sections(self, run: Mapping[str, Any]) -> list[Section]:
    return sections.sections(run, self.class_names)

  def targets(self, labels):
    """Makes one-hot targets, with `label_smoothing` spread evenly over all classes.

    Args:
      labels: int [b].

    Returns:
      float32 [b, k]; rows sum to 1.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, len(self.class_names)), self.label_smoothing)

  def losses(self, logits, targets):
    """Computes the loss of each example.

    It is the cross-entropy -sum_c t_c log p_c, or with `focal_gamma` the softmax focal loss
    -sum_c t_c (1 - p_c)^gamma log p_c. `class_weights` w multiply it by sum_c t_c w_c. For labels that are not smoothed
    or mixed this is PyTorch's weight[label]; for others, `CrossEntropyLoss` differs: it weights each term of the sum.
    Training divides by the number of examples, not by their weights as PyTorch's mean does, so that the gradient does
    not depend on how a batch is split. The scale is the same, because `balanced_weights` have the mean 1 over the data.

    Args:
      logits: float [b, k].
      targets: float [b, k]; rows sum to 1.

    Returns:
      float32 [b].
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    loss = partial(_focal, gamma=self.focal_gamma) if self.focal_gamma else optax.softmax_cross_entropy
    losses = loss(logits, targets)
    return losses if self.class_weights is None else losses * (targets * jnp.array(self.class_weights)).sum(axis=-1)


def _focal(logits, targets, gamma):
  """The softmax focal loss, because optax has only the sigmoid form."""
  log_p = jax.nn.log_softmax(logits)
  miss = -jnp.expm1(log_p)  # 1 - p, without the cancellation where p is near one
  # At miss = 0 the power's derivative is infinite for gamma < 1, and its product with log p = 0 is NaN.
  return -(targets * jnp.where(miss > 0, jnp.where(miss > 0, miss, 1) ** gamma, 0) * log_p).sum(axis=-1)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
  """Computes class weights n / (k n_c), as scikit-learn's 'balanced'. Their mean over the examples is 1.

  Args:
    counts: number n_c of examples of each class.

  Returns:
    One weight per class; 0 for a class without examples, which k does not count.

  Examples:
    >>> balanced_weights([1, 3, 0])
    (2.0, 0.6666666666666666, 0.0)
  """
  counts = np.asarray(counts, np.float64)
  present = counts > 0
  weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros_like(counts), where=present)
  return tuple(float(weight) for weight in weights)
