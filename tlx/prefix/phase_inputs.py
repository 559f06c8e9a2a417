"""How a phase sees the data: as images, or as the features of its frozen prefix, computed once."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tlx.cost import certificate
from tlx.data import pipeline, transforms
from tlx.evaluate import exact
from tlx.prefix import boundary
from tlx.prefix.compute import Frozen
from tlx.train.loop import Stretch, View
from tlx.train.sharding import Jit, Pmap
from tlx.train.step import Recipe, eval_step
from tlx.types import Batch, Dataset, UsageError, Variables

CANVAS = 8 / 7  # of the image size: a little larger, so that a random crop is seldom enlarged much


@dataclasses.dataclass(frozen=True)
class Views:
  """Of one run. `recipe` is the one that sees images."""

  experiment: Any  # Experiment, with nothing left open
  data: Dataset
  recipe: Recipe
  placement: Jit | Pmap
  folder: Path  # for features that memory has no room for
  say: Callable[[str], None]

  def of(self, stretch: Stretch, variables: Variables, leave: Callable[[], None] = lambda: None) -> View:
    """Of a phase that begins with these placed variables; `leave` is called now and then, and may raise.

    Raises: UsageError where --cache asks for features that there cannot be.
    """
    layer = boundary.boundary(self.recipe.model, stretch.phase)
    e, whole = self.experiment, len(self.data.splits['train'])
    passes = (stretch.end - stretch.start) * e.batch_size // whole  # whole ones: the last batch goes beyond
    if reason := self._hindrance(layer):
      if e.cache in ('memory', 'disk') and layer:
        raise UsageError(f'--cache {e.cache}: {reason}')
      if e.cache in ('memory', 'disk') or e.cache_views:
        self.say(f'phase {stretch.phase.name}: no features are kept, because {reason}')
      layer = None
    elif e.cache == 'off':
      layer = None
    found_only = e.cache == 'auto' and not e.cache_views and passes <= 1  # then computing them saves nothing
    features = Frozen(self, layer, variables).features(leave, found_only) if layer else {}
    evaluate = self.evaluator('validation', layer, features.get('validation'))
    return View(
      layer if features else None,
      batches=lambda step: self._batches(step, features.get('train')),
      evaluate=lambda variables: evaluate(variables).numbers(),
    )

  def expected(self, stretch: Stretch) -> Batch | None:
    """Shapes of a phase's training batches, over all processes; None where they may be features."""
    if self.experiment.cache != 'off' and not self._hindrance(boundary.boundary(self.recipe.model, stretch.phase)):
      return None
    return certificate.example_batch(self.experiment.batch_size, self.transform(self.recipe.augment is not None).size)

  def evaluator(
    self, split: str, layer: str | None = None, features: boundary.Features | None = None
  ) -> Callable[[Variables], exact.Evaluation]:
    """A function of placed variables: one exact pass over a split."""
    step, size = self._of_images if features is None else self._compiled(layer), len(self.data.splits[split])

    def evaluate(variables: Variables) -> exact.Evaluation:
      batches = self.in_order(split, features)
      return exact.evaluate(step, variables, batches, self.placement.put_batch, size=size)

    return evaluate

  @functools.cached_property
  def _of_images(self) -> Callable:
    return self._compiled(None)  # once for all phases and splits

  def _compiled(self, start: str | None) -> Callable:
    return self.placement.evaluate(eval_step(dataclasses.replace(self.recipe, start=start)))

  def _hindrance(self, layer: str | None) -> str | None:
    """Why no features can stand for the images, or None."""
    if layer is None:
      return 'its first layer learns'
    if self.recipe.augment and not self.experiment.cache_views:
      return 'the augmentation makes new pixels in every pass (--augment none makes none, --cache-views K so many)'
    return None

  def transform(self, augmented: bool) -> Callable:
    """Of images on the host: a canvas to draw from, or what evaluation sees."""
    if augmented:
      return transforms.canvas(round(self.experiment.image_size * CANVAS))
    return transforms.evaluation(self.recipe.preprocess)

  def in_order(self, split: str, features: boundary.Features | None = None, augmented: bool = False):
    """Batches of a whole split, once."""
    return pipeline.eval_batches(
      self.data.splits[split],
      batch_size=self.experiment.batch_size,
      transform=self.transform(augmented),
      load=features and features.load,
      workers=self.experiment.workers,
      shard=(jax.process_index(), jax.process_count()),
    )

  def _batches(self, step: int, features: boundary.Features | None) -> pipeline.Prefetch:
    """Placed training batches from the one after `step` on."""
    e = self.experiment
    batches = pipeline.train_batches(
      self.data.splits['train'],
      batch_size=e.batch_size,
      transform=self.transform(self.recipe.augment is not None),
      load=features and features.load,
      views=e.cache_views if features else 1,
      seed=e.seed,
      start_step=step,
      class_balanced=e.sampling == 'balanced',
      workers=e.workers,
      shard=(jax.process_index(), jax.process_count()),
    )
    return pipeline.Prefetch(batches, self.placement.put_batch)
