"""How a phase sees the data: as images, or as the features of its frozen prefix, computed once."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from tlx.cost import certificate, prefix
from tlx.data import pipeline, transforms
from tlx.evaluate import exact
from tlx.train.loop import Stretch, View
from tlx.train.placement import Jit, Pmap
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
    layer = prefix.boundary(self.recipe.model, stretch.phase)
    asked, whole = self.experiment.cache, len(self.data.splits['train'])
    passes = (stretch.end - stretch.start) * self.experiment.batch_size / whole
    if reason := self._hindrance(layer):
      if asked in ('memory', 'disk') and not layer:
        self.say(f'phase {stretch.phase.name}: no features are kept, because {reason}')
      elif asked in ('memory', 'disk'):
        raise UsageError(f'--cache {asked}: {reason}')
      layer = None
    elif asked == 'off' or (asked == 'auto' and passes <= 1):
      layer = None
    features = self._features(stretch, layer, variables, leave) if layer else {}
    evaluate = self.evaluator('validation', layer, features.get('validation'))
    return View(
      layer if features else None,
      batches=lambda step: self._batches(step, features.get('train')),
      evaluate=lambda variables: evaluate(variables).numbers(),
    )

  def expected(self, stretch: Stretch) -> Batch | None:
    """Shapes of a phase's training batches, over all processes; None where they may be features."""
    if self.experiment.cache != 'off' and not self._hindrance(prefix.boundary(self.recipe.model, stretch.phase)):
      return None
    return certificate.example_batch(self.experiment.batch_size, self._transform.size)

  def evaluator(
    self, split: str, layer: str | None = None, features: prefix.Features | None = None
  ) -> Callable[[Variables], exact.Evaluation]:
    """A function of placed variables: one exact pass over a split."""
    step, size = self._of_images if features is None else self._compiled(layer), len(self.data.splits[split])

    def evaluate(variables: Variables) -> exact.Evaluation:
      batches = self._in_order(split, features)
      return exact.evaluate(step, variables, batches, self.placement.put_batch, size=size)

    return evaluate

  @property
  def _transform(self) -> Callable:
    """Of training images."""
    if self.recipe.augment is None:
      return transforms.evaluation(self.recipe.preprocess)
    return transforms.canvas(round(self.experiment.image_size * CANVAS))

  @functools.cached_property
  def _of_images(self) -> Callable:
    return self._compiled(None)  # once for all phases and splits

  def _compiled(self, start: str | None) -> Callable:
    return self.placement.evaluate(eval_step(dataclasses.replace(self.recipe, start=start)))

  def _hindrance(self, layer: str | None) -> str | None:
    """Why no features can stand for the images, or None."""
    if layer is None:
      return 'its first layer learns'
    return (
      'the augmentation makes new pixels in every pass (--augment none makes none)' if self.recipe.augment else None
    )

  def _features(
    self, stretch: Stretch, layer: str, variables: Variables, leave: Callable[[], None]
  ) -> Mapping[str, prefix.Features]:
    """Of both splits, or none where nothing has room for them."""
    step, start = prefix.prefix_step(self.recipe, layer), time.monotonic()
    sizes = {name: len(self.data.splits[name]) for name in ('train', 'validation')}
    abstract = {
      **certificate.example_batch(1, self.recipe.preprocess.size),
      'index': jax.ShapeDtypeStruct((1,), 'int32'),
    }
    one = jax.eval_shape(self.placement.one, variables)
    needed = prefix.size_in_bytes(step, one, abstract, sum(sizes.values()))
    place = prefix.place(needed, self.folder.parent, self.experiment.cache)
    if place is None:
      self.say(f'no room for {needed / 1e9:,.1f} GB of features: the frozen layers run in every pass')
      return {}
    compiled, found = self.placement.evaluate(step), {}
    for name in sizes:
      where = self.folder / f'{name}_{stretch.start}_{jax.process_index()}.npy' if place == 'disk' else None
      labels = self.data.splits[name].labels
      batches = map(lambda batch: (leave(), self.placement.put_batch(batch))[1], self._in_order(name))
      found[name] = prefix.compute(compiled, variables, batches, labels, where)
    self.say(
      f'features of {sum(sizes.values()):,} images up to {layer}: {needed / 1e6:,.1f} MB in {place}, '
      f'{time.monotonic() - start:.1f} s; the frozen layers do not run again'
    )
    return found

  def _in_order(self, split: str, features: prefix.Features | None = None):
    """Batches of a whole split, once."""
    return pipeline.eval_batches(
      self.data.splits[split],
      batch_size=self.experiment.batch_size,
      transform=transforms.evaluation(self.recipe.preprocess),
      load=features and features.load,
      workers=self.experiment.workers,
      shard=(jax.process_index(), jax.process_count()),
    )

  def _batches(self, step: int, features: prefix.Features | None) -> pipeline.Prefetch:
    """Placed training batches from the one after `step` on."""
    e = self.experiment
    batches = pipeline.train_batches(
      self.data.splits['train'],
      batch_size=e.batch_size,
      transform=self._transform,
      load=features and features.load,
      seed=e.seed,
      start_step=step,
      class_balanced=e.sampling == 'balanced',
      workers=e.workers,
      shard=(jax.process_index(), jax.process_count()),
    )
    return pipeline.Prefetch(batches, self.placement.put_batch)
