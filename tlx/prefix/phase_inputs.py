"""A phase's input: images, or cached features of the frozen layers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from tlx.cost import certificate
from tlx.data import pipeline, transforms
from tlx.evaluate import exact
from tlx.prefix import boundary
from tlx.prefix.compute import Prefix, Settings
from tlx.train.loop import PhaseInputs, Stretch
from tlx.train.sharding import Jit, Pmap
from tlx.train.step import Recipe, eval_step
from tlx.types import Batch, DataSource, UsageError, Variables

CANVAS = 8 / 7  # of the image size: a little larger, so that a random crop is seldom enlarged much


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Of one run. `recipe` is the one that sees images."""

  settings: Settings
  splits: Mapping[str, DataSource]
  recipe: Recipe
  placement: Jit | Pmap
  folder: Path  # for features that memory has no room for
  say: Callable[[str], None]

  def of(
    self, stretch: Stretch, variables: Variables, leave: Callable[[], None] = lambda: None
  ) -> PhaseInputs:
    """Of a phase that begins with these placed variables; `leave` is called now and then, and may raise.

    Raises: UsageError where --cache asks for features that there cannot be.
    """
    layer = boundary.boundary(self.recipe.model, stretch.phase)
    cache, whole = self.settings.cache, len(self.splits['train'])
    passes = (stretch.end - stretch.start) * self.settings.batch_size // whole  # whole ones: the last batch goes beyond
    if reason := self._hindrance(layer):
      if cache in ('memory', 'disk') and layer:
        raise UsageError(f'--cache {cache}: {reason}')
      if cache in ('memory', 'disk') or self.settings.cache_views:
        self.say(f'phase {stretch.phase.name}: no features are kept, because {reason}')
      layer = None
    elif cache == 'off':
      layer = None
    found_only = cache == 'auto' and not self.settings.cache_views and passes <= 1  # then computing them saves nothing
    features = self._prefix(layer, variables).features(leave, found_only) if layer else {}
    evaluate = self.evaluator('validation', layer, features.get('validation'))
    return PhaseInputs(
      layer if features else None,
      batches=lambda step: self._batches(step, features.get('train')),
      evaluate=lambda variables: evaluate(variables).numbers(),
    )

  def expected(self, stretch: Stretch) -> Batch | None:
    """Shapes of a phase's training batches, over all processes; None where they may be features."""
    if self.settings.cache != 'off' and not self._hindrance(boundary.boundary(self.recipe.model, stretch.phase)):
      return None
    shape = self.transform(self.recipe.augment is not None).shape
    return certificate.example_batch(self.recipe.task, self.settings.batch_size, shape)

  def evaluator(
    self, split: str, layer: str | None = None, features: boundary.Features | None = None
  ) -> Callable[[Variables], exact.Evaluation]:
    """A function of placed variables: one exact pass over a split."""
    step, size = self._of_images if features is None else self._compiled(layer), len(self.splits[split])

    def evaluate(variables: Variables) -> exact.Evaluation:
      batches = self.in_order(split, features=features)
      return exact.evaluate(self.recipe.task, step, variables, batches, self.placement.put_batch, size=size)

    return evaluate

  @functools.cached_property
  def _of_images(self) -> Callable:
    return self._compiled(None)  # once for all phases and splits

  def _compiled(self, start: str | None) -> Callable:
    return self.placement.evaluate(eval_step(dataclasses.replace(self.recipe, start=start)))

  def _prefix(self, layer: str, variables: Variables) -> Prefix:
    return Prefix(
      self.recipe, layer, variables, self.placement, self.splits, self.in_order, self.transform, self.settings,
      self.folder, self.say,
    )  # fmt: skip

  def _hindrance(self, layer: str | None) -> str | None:
    """Why no features can stand for the images, or None."""
    if layer is None:
      return 'its first layer learns'
    if self.recipe.augment and not self.settings.cache_views:
      return 'the augmentation makes new pixels in every pass (--augment none makes none, --cache-views K so many)'
    return None

  def transform(self, augmented: bool) -> transforms.Canvas | transforms.Evaluation:
    """Of images on the host: a canvas to draw from, or what evaluation sees."""
    if augmented:
      height, width = self.recipe.preprocess.shape
      return transforms.canvas((round(height * CANVAS), round(width * CANVAS)))
    return transforms.evaluation(self.recipe.preprocess)

  def in_order(self, split: str, augmented: bool = False, features: boundary.Features | None = None):
    """Batches of a whole split, once."""
    return pipeline.eval_batches(
      self.splits[split],
      task=self.recipe.task,
      batch_size=self.settings.batch_size,
      transform=self.transform(augmented),
      load=features and features.load,
      workers=self.settings.workers,
      shard=(jax.process_index(), jax.process_count()),
    )

  def _batches(self, step: int, features: boundary.Features | None) -> pipeline.Prefetch:
    """Placed training batches from the one after `step` on."""
    batches = pipeline.train_batches(
      self.splits['train'],
      task=self.recipe.task,
      batch_size=self.settings.batch_size,
      transform=self.transform(self.recipe.augment is not None),
      load=features and features.load,
      views=features.views if features else 1,
      seed=self.settings.seed,
      start_step=step,
      class_balanced=self.settings.sampling == 'balanced',
      workers=self.settings.workers,
      shard=(jax.process_index(), jax.process_count()),
    )
    return pipeline.Prefetch(batches, self.placement.put_batch)
