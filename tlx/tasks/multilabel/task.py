"""Multi-label classification: any number of tags per picture, with one sigmoid per tag."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from tlx import words
from tlx.data.augment import partners
from tlx.tasks.multilabel import metrics, sections
from tlx.types import Card, DatasetInfo, DataSource, Geometry, Pretrained, Section, Target, UsageError, Warp


@struct.dataclass
class Sums:
  """Sums over the real examples. Metrics that need all scores at once are computed from the records."""

  count: jax.Array  # int32 []
  loss: jax.Array  # float32 []


@dataclasses.dataclass(frozen=True)
class Task:
  """The multi-label task. It is hashable, so that it can be a static argument of jit.

  `types.Task` describes the methods.

  Attributes:
    class_names: the tags.
    threshold: minimum probability of a predicted tag, in (0, 1).
    focal_gamma: of the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002); 0 = binary cross-entropy.

  Raises:
    UsageError: for values out of range, one line for each.
  """

  class_names: tuple[str, ...] = ()
  threshold: float = 0.5
  focal_gamma: float = 0.0

  primary: ClassVar[str] = 'map'
  metrics: ClassVar[tuple[str, ...]] = ('map', 'macro_f1', 'micro_f1', 'exact_match', 'hamming', 'loss')
  percents: ClassVar[tuple[str, ...]] = metrics[:-1]
  dense: ClassVar[bool] = False
  default_head: ClassVar[str] = 'linear'

  def __post_init__(self):
    object.__setattr__(self, 'class_names', tuple(self.class_names))
    checks = (
      (f'threshold is {self.threshold}; give a number between 0 and 1', not 0 < self.threshold < 1),
      (f'focal_gamma is {self.focal_gamma}; give 0 or more', not self.focal_gamma >= 0),
    )
    words.refuse([f'multilabel: {what}' for what, wrong in checks if wrong])

  def bind(self, info: DatasetInfo) -> 'Task':
    if info.task not in ('multilabel', 'classification'):
      raise UsageError(f'{info.name} has labels for {info.task}, not for multilabel; leave --task out')
    return dataclasses.replace(self, class_names=info.class_names)

  def encode(self, annotation: Any, geometry: Geometry, shape: tuple[int, int]) -> Target:
    """Converts the ids of an image's tags, or its one class id, to 'tags' uint8 [k], 0 or 1."""
    tags = np.zeros(len(self.class_names), np.uint8)
    tags[np.asarray(annotation, np.int64)] = 1
    return {'tags': tags}

  def blank(self, shape: tuple[int, int]) -> Target:
    return {'tags': np.zeros(len(self.class_names), np.uint8)}

  def warp(self, target: Target, warp: Warp) -> Target:
    return target

  def mix(self, target: Target, share: jax.Array) -> Target:
    return {**target, 'other': partners(target['tags']), 'share': share}

  def loss(self, outputs: jax.Array, target: Target, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum over the examples of the mean loss over the tags, number of examples)."""
    tags = target['tags'].astype(jnp.float32)
    if 'share' in target:
      share = target['share'][:, None]
      tags = share * tags + (1 - share) * target['other']
    logits = outputs.astype(jnp.float32)
    if self.focal_gamma:
      losses = optax.sigmoid_focal_loss(logits, tags, gamma=self.focal_gamma)
    else:
      losses = optax.sigmoid_binary_cross_entropy(logits, tags)
    return jnp.where(mask, losses.mean(-1), 0).sum(), mask.sum().astype(jnp.float32)

  def hits(self, outputs: jax.Array, target: Target, mask: jax.Array) -> dict[str, jax.Array]:
    """'hamming': the sum over the examples of the share of decisions that are right."""
    right = (jax.nn.sigmoid(outputs) >= self.threshold) == target['tags'].astype(bool)
    return {'hamming': jnp.where(mask, right.mean(-1), 0).sum()}

  def evaluate(self, outputs: jax.Array, target: Target, mask: jax.Array) -> tuple[Sums, dict[str, jax.Array]]:
    """(sums, records): tags and probabilities of each image. The loss is binary cross-entropy, never the focal loss."""
    logits, tags = outputs.astype(jnp.float32), target['tags']
    losses = optax.sigmoid_binary_cross_entropy(logits, tags.astype(jnp.float32)).mean(-1)
    sums = Sums(count=mask.sum(dtype=jnp.int32), loss=jnp.where(mask, losses, 0).sum())
    return sums, {'tags': tags, 'probability': jax.nn.sigmoid(logits)}

  def summary(self, sums: Sums, records: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = metrics.compute(records['tags'].astype(bool), records['probability'], self.threshold)
    return {**found, 'loss': float(sums.loss / max(int(sums.count), 1)), 'count': int(sums.count)}

  def arrays(self, sums: Sums, records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: records[name] for name in ('tags', 'probability', 'index')}

  def decode(self, outputs: np.ndarray, geometry: Geometry, top: int = 5) -> dict[str, Any]:
    """{'classes': [{'id', 'name', 'probability', 'given'}]}: the `top` tags and all 'given' ones (above threshold)."""
    row = 1 / (1 + np.exp(-np.asarray(outputs, np.float64)))
    names = self.class_names or [f'class {i}' for i in range(len(row))]
    order = [i for rank, i in enumerate(np.argsort(-row, kind='stable')) if rank < top or row[i] >= self.threshold]
    return {
      'classes': [
        {'id': int(i), 'name': names[i], 'probability': float(row[i]), 'given': bool(row[i] >= self.threshold)}
        for i in order
      ]
    }

  def draw(self, image: np.ndarray, prediction: Mapping[str, Any]) -> None:
    return None

  def pictures(self, out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained) -> None:
    sections.write_worst(out, records, source, self.class_names, self.threshold)

  def cards(self, result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]:
    return sections.cards(result)

  def sections(self, run: Mapping[str, Any]) -> list[Section]:
    return sections.sections(run, self.class_names, self.threshold)
