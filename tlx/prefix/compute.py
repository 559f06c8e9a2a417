"""Computes the features of the frozen layers for every image of a run, or loads those of an earlier run.

`--cache memory` keeps features in memory and does not touch the disk. `disk` keeps them in files. `auto` keeps them in
memory if they fit, else on disk. `disk` and `auto` first look for the features of an earlier run (`store`) and store
new ones for later runs, so that a run with another learning rate, head or number of epochs starts at once.
Features are stored for later runs only if they take at most `store.LARGEST` bytes and the data set has a fingerprint.
Features in memory must also take longer to compute than to read, and leave most of the disk free. Other features on
disk are files of the run folder and are deleted with it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from tlx import files, processes
from tlx.cache import identity
from tlx.cost import certificate
from tlx.data import pipeline
from tlx.data.augment import Augment
from tlx.prefix import boundary, store
from tlx.train.sharding import Jit, Pmap
from tlx.train.step import Recipe
from tlx.types import Batch, DataSource, TlxError, Variables

SPLITS = ('train', 'validation')
HELD = 2**28  # maximum bytes of targets to keep in memory; larger ones are made again for each batch


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a run reads its data."""

  batch_size: int  # images per step, over all devices
  seed: int = 0  # random seed
  workers: int | None = None  # threads that decode images
  cache: str = 'auto'  # of features: auto, off, memory or disk
  cache_views: int = 0  # augmented views of each image; 0 = one view, as in evaluation
  sampling: str = 'shuffled'  # or 'balanced': each class equally often
  compile: str = 'jit'  # or 'pmap'


@dataclasses.dataclass(frozen=True)
class Prefix:
  """A frozen prefix: its layers, their placed variables, and the images that they read."""

  recipe: Recipe  # of the whole model, on images
  layer: str
  variables: Variables
  placement: Jit | Pmap
  splits: Mapping[str, DataSource]
  in_order: Callable[[str, bool], Iterable[Batch]]  # (split, whether augmented) -> batches of one pass
  transform: Callable[[bool], Any]  # whether augmented -> transform on the host
  settings: Settings
  folder: Path  # for features that are not stored for later runs
  say: Callable[[str], None]

  def features(self, leave: Callable[[], None], found_only: bool) -> Mapping[str, boundary.Features]:
    """Loads or computes the features of both splits.

    Args:
      leave: called between batches; it may raise to stop.
      found_only: whether to load only, and compute nothing.

    Returns:
      {split: features}; {} if they do not fit anywhere, or if `found_only` and one split is not stored.

    Raises:
      TlxError: if a file cannot be written.
    """
    began = time.monotonic()
    one = self._size_of_one()
    needed = {split: one * self._examples(split) for split in SPLITS}
    total = sum(needed.values())
    lasting = self._lasting(total)
    place = boundary.place(total, store.folder() if lasting else self.folder.parent, self.settings.cache)
    root = store.folder() if lasting else self.folder if place == 'disk' else None
    entries = self._entries(root) if root else dict.fromkeys(SPLITS)
    found = {split: store.take(entry, memory=place == 'memory') for split, entry in entries.items()}
    missing = [split for split in SPLITS if processes.largest(int(found[split] is None))]  # all compute, or none
    if missing and found_only:
      return {}
    if missing and processes.largest(int(place is None)):
      self.say(f'no room for {total / 1e9:,.1f} GB of features: the frozen layers run in every pass')
      return {}
    compiled = functools.cache(lambda augment: self.placement.evaluate(self._step(augment)))
    for split in missing:
      parts = self._parts(split, compiled(self._seen(split)[1]), leave)
      found[split] = self._held(parts, self._examples(split), entries[split], place, needed[split])
    what = f'{sum(map(self._examples, SPLITS)):,} {"views" if self.settings.cache_views else "images"}'
    where = f'in {place}' if missing else 'found from an earlier run'
    self.say(
      f'features of {what} up to {self.layer}: {total / 1e6:,.1f} MB {where}, '
      f'{time.monotonic() - began:.1f} s; the frozen layers do not run again'
    )
    return {
      split: boundary.Features(values, mask, self._targets(split), self._seen(split)[0])
      for split, (values, mask) in found.items()
    }

  def _targets(self, split: str) -> Callable:
    make = pipeline.Targets(self.splits[split], self.recipe.task, self.transform(False))
    size = sum(x.nbytes for x in make.blank.values())
    return make.held() if size * len(self.splits[split]) <= HELD else make

  def _seen(self, split: str) -> tuple[int, Augment | None]:
    """The number of views of an image, and the augmentation that makes them."""
    return (max(1, self.settings.cache_views), self.recipe.augment) if split == 'train' else (1, None)

  def _examples(self, split: str) -> int:
    return len(self.splits[split]) * self._seen(split)[0]

  def _step(self, augment: Augment | None) -> Callable:
    recipe = dataclasses.replace(self.recipe, augment=augment)
    return boundary.prefix_step(recipe, self.layer, self.settings.seed)

  def _size_of_one(self) -> int:
    image = certificate.example_batch(self.recipe.task, 1, self.recipe.preprocess.shape)
    abstract = {**image, 'index': jax.ShapeDtypeStruct((1,), 'int32')}
    one = jax.eval_shape(self.placement.one, self.variables)
    return boundary.size_in_bytes(self._step(None), one, abstract)

  def _parts(self, split: str, step: Callable, leave: Callable[[], None]) -> store.Parts:
    views, augment = self._seen(split)
    batches = map(lambda batch: (leave(), batch)[1], self.in_order(split, augment is not None))
    images = len(self.splits[split])
    return boundary.parts(step, self.variables, batches, self.placement.put_batch, images, views)

  def _lasting(self, needed: int) -> bool:
    """Whether features of so many bytes are loaded from earlier runs and stored for later ones."""
    if self.settings.cache == 'memory' or needed > store.LARGEST:
      return False
    return all(self._data.values()) and store.usable()

  @functools.cached_property
  def _data(self) -> Mapping[str, str | None]:
    return {split: self.splits[split].fingerprint() for split in SPLITS}

  def _entries(self, root: Path) -> dict[str, Path]:
    """The folder of each split's features. Its name is a hash of everything that their bits depend on."""
    model, settings, entries = self.recipe.model, self.settings, {}
    weights = store.of_arrays(boundary.leaves(model, self.layer, self.placement.one(self.variables)))
    config = model.backbone.config
    layers = self.layer, boundary.kept(model, self.layer), type(config).__module__, config, weights
    for split in SPLITS:
      views, augment = self._seen(split)
      drawn = (views, augment, settings.seed) if augment else None
      pixels = self.recipe.preprocess, self.transform(augment is not None), drawn
      data = self._data[split] or split
      entries[split] = root / identity.key(
        layers, pixels, data, self.recipe.dtype, settings.batch_size, settings.compile
      )
    return entries

  def _held(self, parts: store.Parts, total: int, entry: Path | None, place: str, size: int):
    """Computes (values, mask) into a file, or into memory with a stored copy if reading it is faster than computing."""
    began, here = time.monotonic(), store.folder()
    put = functools.partial(store.write, entry, total, owner=str(self.folder.absolute()))
    if place == 'disk':
      try:
        if entry.parent == here:
          store.make_room(size)
        return put(parts)
      except OSError as error:
        way_out = 'free some space, point TLX_FEATURE_CACHE elsewhere, or choose --cache memory or off'
        raise TlxError(f'the features cannot be written to {entry.parent}: {_reason(error)}; {way_out}') from None
    held = boundary.gather(parts, total)
    try:
      if entry and size <= store.WORTH * (time.monotonic() - began) and boundary.disk_has_room(size, here):
        store.make_room(size)
        put([held])
    except OSError as error:
      self.say(f'the features are not kept for later runs: {_reason(error)}')
    return held


def _reason(error: OSError) -> str:
  return files.FULL.get(error.errno) or error.strerror or str(error)
