"""Semantic segmentation: one class per pixel. Targets are maps of class ids; outputs are logits at any resolution."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tlx.data import geometry as places
from tlx.data.masks import IGNORE
from tlx.nn.resize import bilinear
from tlx.tasks.segmentation import pictures, sections, windows
from tlx.tasks.segmentation.losses import FOCAL_GAMMA, Loss, labelled, parse
from tlx.tasks.segmentation.metrics import Sums
from tlx.types import Card, DatasetInfo, DataSource, Geometry, Pretrained, Section, Target, UsageError, Warp

STRIP = 256  # rows of a photograph per step of `decode`, so that a large one fits in memory


@dataclasses.dataclass(frozen=True)
class Task:
  """The segmentation task. It is hashable, so that it can be a static argument of jit.

  `types.Task` describes the methods.

  Attributes:
    class_names: of the data set.
    losses: a sum of ce, dice, focal and lovasz, such as 'ce' or '0.5*ce+dice'; `losses.py` defines them. On CamVid
      (110 training images, U-Net on EfficientNet-Lite0), ce+dice reached a test mIoU of 0.451 and ce 0.425.
    class_weights: one number per class, for ce and focal; 'balanced' computes them from the pixels of the training
      split, see `balanced`.
    focal_gamma: exponent of focal, 0 or more.

  Raises:
    UsageError: for values out of range, one line for each.
  """

  class_names: tuple[str, ...] = ()
  losses: str = 'ce+dice'
  class_weights: tuple[float, ...] | str | None = None
  focal_gamma: float = FOCAL_GAMMA

  primary: ClassVar[str] = 'miou'
  metrics: ClassVar[tuple[str, ...]] = (
    'miou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou', 'boundary_f1', 'loss',
  )  # fmt: skip
  percents: ClassVar[tuple[str, ...]] = metrics[:-1]
  dense: ClassVar[bool] = True
  default_head: ClassVar[str] = 'unet'

  def __post_init__(self):
    object.__setattr__(self, 'class_names', tuple(self.class_names))
    if isinstance(self.class_weights, str) and self.class_weights != 'balanced':
      raise UsageError(f'segmentation: class_weights is {self.class_weights!r}; give numbers or balanced')
    if not isinstance(self.class_weights, str | None):  # a list, as JSON gives it, is not hashable
      object.__setattr__(self, 'class_weights', tuple(float(weight) for weight in self.class_weights))
    if self.class_weights != 'balanced':
      self.objective()

  def bind(self, info: DatasetInfo) -> 'Task':
    if info.task != 'segmentation':
      raise UsageError(f'{info.name} has labels for {info.task}, not for segmentation; leave --task out')
    weights = balanced(info.counts['train']) if self.class_weights == 'balanced' else self.class_weights
    return dataclasses.replace(self, class_names=info.class_names, class_weights=weights)

  def objective(self) -> Loss:
    """Makes the loss that the options describe. Raises UsageError for wrong options."""
    return parse(self.losses, class_weights=self.class_weights, focal_gamma=self.focal_gamma)

  def encode(self, annotation: np.ndarray, geometry: Geometry, shape: tuple[int, int]) -> Target:
    """Cuts and resizes a mask uint8 [h, w] (class ids, or IGNORE) as the picture: 'labels' uint8 `shape`."""
    return {'labels': places.nearest(annotation, geometry, shape, IGNORE)}

  def blank(self, shape: tuple[int, int]) -> Target:
    return {'labels': np.full(shape, IGNORE, np.uint8)}

  def warp(self, target: Target, warp: Warp) -> Target:
    return {'labels': warp.labels(target['labels'], IGNORE)}

  def mix(self, target: Target, share: jax.Array) -> None:
    return None

  def loss(self, outputs: jax.Array, target: Target, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum over labelled pixels, their number). Each image's loss is multiplied by its number of labelled pixels."""
    weights = labelled(target['labels'], mask)
    return (self.objective()(_fit(outputs, target), target['labels'], mask) * weights).sum(), weights.sum()

  def hits(self, outputs: jax.Array, target: Target, mask: jax.Array) -> dict[str, jax.Array]:
    right = _fit(outputs, target).argmax(-1) == target['labels']
    return {'pixel_accuracy': (right & mask[:, None, None]).sum()}

  def evaluate(self, outputs: jax.Array, target: Target, mask: jax.Array) -> tuple[Sums, dict[str, jax.Array]]:
    """(sums, records). Records: pixel accuracy, and mean IoU over the classes in label or prediction."""
    logits, labels = _fit(outputs, target), target['labels']
    return Sums.of(logits, labels, mask), _image_records(logits, labels)

  def summary(self, sums: Sums, records: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return sums.compute()

  def arrays(self, sums: Sums, records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {field.name: getattr(sums, field.name) for field in dataclasses.fields(sums)} | dict(records)

  def decode(self, outputs: np.ndarray, geometry: Geometry, top: int = 5) -> dict[str, Any]:
    """Predicts the class of each pixel of a photograph.

    Args:
      outputs: logits float [h', w', k] of one picture.
      geometry: the part of the photograph that the picture shows.
      top: not used.

    Returns:
      {'mask': uint8 [h, w] class ids, 'classes': [{'id', 'name', 'share'}]}. 'share' is the class's share of the
      pixels; the largest comes first, and classes without a pixel are left out.
    """
    rows = range(0, round(geometry.height), STRIP)
    mask = np.concatenate([places.back(outputs, geometry, (row, row + STRIP)).argmax(-1) for row in rows])
    return self._prediction(mask, outputs.shape[-1])

  def whole(self, run: Callable, photograph: np.ndarray, shape: tuple[int, int], scales: Sequence[float]) -> np.ndarray:
    """Log probabilities float32 [h, w, k] of a photograph's pixels, by windows; arguments as in `windows`."""
    return np.log(np.maximum(windows.probabilities(run, photograph, shape, scales), 1e-12))

  def _prediction(self, mask: np.ndarray, classes: int) -> dict[str, Any]:
    shares = np.bincount(mask.ravel(), minlength=classes) / mask.size
    names = self.class_names or [f'class {i}' for i in range(len(shares))]
    order = [i for i in np.argsort(-shares, kind='stable') if shares[i]]
    found = [{'id': int(i), 'name': names[i], 'share': float(shares[i])} for i in order]
    return {'mask': mask.astype(np.uint8), 'classes': found}

  def draw(self, image: np.ndarray, prediction: Mapping[str, Any]) -> np.ndarray:
    return pictures.overlay(image, prediction['mask'])

  def pictures(self, out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained) -> None:
    pictures.write(self, out, records, source, model)

  def cards(self, result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]:
    return sections.cards(result)

  def sections(self, run: Mapping[str, Any]) -> list[Section]:
    return sections.sections(run, self.class_names)


def balanced(pixels: tuple[int, ...]) -> tuple[float, ...]:
  """Computes class weights by median frequency balancing (https://arxiv.org/abs/1411.4734, Sec. 4.3).

  Args:
    pixels: number of pixels of each class in the whole split.

  Returns:
    median of the classes' pixels / pixels of the class; 0 for a class without pixels.

  Examples:
    >>> balanced((100, 50, 0, 200))
    (1.0, 2.0, 0.0, 0.5)
  """
  counts = np.asarray(pixels, np.float64)
  some = counts > 0
  middle = np.median(counts[some]) if some.any() else 1.0
  return tuple(np.divide(middle, counts, out=np.zeros_like(counts), where=some).tolist())


def _fit(outputs: jax.Array, target: Target) -> jax.Array:
  """Resizes logits to the target's resolution: float32 [b, h, w, k]."""
  return bilinear(outputs.astype(jnp.float32), target['labels'].shape[1:])


def _image_records(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
  """{'iou', 'pixel_accuracy'}, float32 [b] each; 1 for an image without labels."""
  classes = jnp.arange(logits.shape[-1])
  counts = labels != IGNORE
  predicted = logits.argmax(-1)
  true = (labels[..., None] == classes) & counts[..., None]
  found = (predicted[..., None] == classes) & counts[..., None]
  both, either = ((true & found).sum((1, 2)), (true | found).sum((1, 2)))
  present = either > 0
  iou = jnp.where(present, both / jnp.maximum(either, 1), 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
  right = both.sum(-1) / jnp.maximum(counts.sum((1, 2)), 1)
  some = counts.any((1, 2))
  return {'iou': jnp.where(some, iou, 1).astype(jnp.float32), 'pixel_accuracy': jnp.where(some, right, 1)}
