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

CANVAS = 8 / 7  # canvas side / image side; above 1, so that random crops lose little resolution


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Makes the input of each phase of one run.

  `recipe` is the recipe for images. It replaces the image input by cached features if a phase permits it.
  """

  settings: Settings
  splits: Mapping[str, DataSource]
  recipe: Recipe
  placement: Jit | Pmap
  folder: Path  # for features that do not fit in memory
  say: Callable[[str], None]

  def of(
    self, stretch: Stretch, variables: Variables, leave: Callable[[], None] = lambda: None
  ) -> PhaseInputs:
    """Makes the input of a phase, and computes its features if it has any.

    Args:
      stretch: the phase.
      variables: at its start, placed on the devices.
      leave: called between batches of images; it may raise to stop.

    Returns:
      The input.

    Raises:
      UsageError: if --cache asks for features in a phase that cannot use them.
    """
    layer = boundary.boundary(self.recipe.model, stretch.phase)
    cache, whole = self.settings.cache, len(self.splits['train'])
    passes = (stretch.end - stretch.start) * self.settings.batch_size // whole  # whole passes over the training split
    if reason := self._hindrance(layer):
      if cache in ('memory', 'disk') and layer:
        raise UsageError(f'--cache {cache}: {reason}')
      if cache in ('memory', 'disk') or self.settings.cache_views:
        self.say(f'phase {stretch.phase.name}: no features are kept, because {reason}')
      layer = None
    elif cache == 'off':
      layer = None
    found_only = cache == 'auto' and not self.settings.cache_views and passes <= 1  # computing saves nothing
    features = self._prefix(layer, variables).features(leave, found_only) if layer else {}
    evaluate = self.evaluator('validation', layer, features.get('validation'))
    return PhaseInputs(
      layer if features else None,
      batches=lambda step: self._batches(step, features.get('train')),
      evaluate=lambda variables: evaluate(variables).numbers(),
    )

  def expected(self, stretch: Stretch) -> Batch | None:
    """Shapes of a phase's training batches of images, over all processes. None if the batches may hold features."""
    if self.settings.cache != 'off' and not self._hindrance(boundary.boundary(self.recipe.model, stretch.phase)):
      return None
    shape = self.transform(self.recipe.augment is not None).shape
    return certificate.example_batch(self.recipe.task, self.settings.batch_size, shape)

  def evaluator(
    self, split: str, layer: str | None = None, features: boundary.Features | None = None
  ) -> Callable[[Variables], exact.Evaluation]:
    """Makes a function that evaluates a split.

    Args:
      split: its name.
      layer: the layer of `features`.
      features: of the split, to use in place of images.

    Returns:
      A function from placed variables to the result of one exact pass.
    """
    step, size = self._of_images if features is None else self._compiled(layer), len(self.splits[split])

    def evaluate(variables: Variables) -> exact.Evaluation:
      batches = self.in_order(split, features=features)
      return exact.evaluate(self.recipe.task, step, variables, batches, self.placement.put_batch, size=size)

    return evaluate

  @functools.cached_property
  def _of_images(self) -> Callable:
    return self._compiled(None)  # compiled once for all phases and splits

  def _compiled(self, start: str | None) -> Callable:
    return self.placement.evaluate(eval_step(dataclasses.replace(self.recipe, start=start)))

  def _prefix(self, layer: str, variables: Variables) -> Prefix:
    return Prefix(
      self.recipe, layer, variables, self.placement, self.splits, self.in_order, self.transform, self.settings,
      self.folder, self.say,
    )  # fmt: skip

  def _hindrance(self, layer: str | None) -> str | None:
    """Why features cannot replace the images; None if they can."""
    if layer is None:
      return 'its first layer learns'
    if self.recipe.augment and not self.settings.cache_views:
      return 'the augmentation makes new pixels in every pass (--augment none makes none, --cache-views K so many)'
    return None

  def transform(self, augmented: bool) -> transforms.Canvas | transforms.Evaluation:
    """The transform on the host: a canvas for random crops if `augmented`, else that of evaluation."""
    if augmented:
      height, width = self.recipe.preprocess.shape
      return transforms.canvas((round(height * CANVAS), round(width * CANVAS)), self.recipe.preprocess.grey)
    return transforms.evaluation(self.recipe.preprocess)

  def in_order(self, split: str, augmented: bool = False, features: boundary.Features | None = None):
    """Batches of one pass over a split, in order; of images, or of `features`."""
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
    """Training batches on the devices, beginning after `step`."""
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
