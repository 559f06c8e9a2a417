"""What the frozen layers give for every image of a run: found where an earlier run kept it, or computed once.

`--cache memory` holds it in memory and touches no disk, `disk` holds it in files, and `auto` holds it wherever there is
room. Both of the latter look first for what an earlier run kept (`store`), and keep what they compute for later
runs: another learning rate, head, seed or number of epochs then starts at once. Kept are features of at most
`store.LARGEST` bytes, of data that can name themselves; those held in memory only if computing them takes
longer than reading them, and the disk stays mostly free. All others are files of the run folder, and go with the run.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tlx import files, processes
from tlx.cache import identity
from tlx.cost import certificate
from tlx.data.augment import Augment
from tlx.prefix import boundary, store
from tlx.types import TlxError, Variables

SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class Frozen:
  """The layers up to one, with the placed variables that they keep from here on."""

  run: Any  # views.Views
  layer: str
  variables: Variables

  def features(self, leave: Callable[[], None], found_only: bool) -> Mapping[str, boundary.Features]:
    """Of both splits; none where nothing has room for them, or where only found ones will do and there are none.

    leave: called between batches, and may raise.
    """
    run, began = self.run, time.monotonic()
    one = self._size_of_one()
    needed = {split: one * self._examples(split) for split in SPLITS}
    total = sum(needed.values())
    lasting = self._lasting(total)
    place = boundary.place(total, store.folder() if lasting else run.folder.parent, run.experiment.cache)
    root = store.folder() if lasting else run.folder if place == 'disk' else None
    entries = self._entries(root) if root else dict.fromkeys(SPLITS)
    found = {split: store.take(entry, memory=place == 'memory') for split, entry in entries.items()}
    missing = [split for split in SPLITS if processes.largest(int(found[split] is None))]  # all compute, or none
    if missing and found_only:
      return {}
    if missing and processes.largest(int(place is None)):
      run.say(f'no room for {total / 1e9:,.1f} GB of features: the frozen layers run in every pass')
      return {}
    compiled = functools.cache(lambda augment: run.placement.evaluate(self._step(augment)))
    for split in missing:
      parts = self._parts(split, compiled(self._seen(split)[1]), leave)
      found[split] = self._held(parts, self._examples(split), entries[split], place, needed[split])
    what = f'{sum(map(self._examples, SPLITS)):,} {"views" if run.experiment.cache_views else "images"}'
    where = f'in {place}' if missing else 'found from an earlier run'
    run.say(
      f'features of {what} up to {self.layer}: {total / 1e6:,.1f} MB {where}, '
      f'{time.monotonic() - began:.1f} s; the frozen layers do not run again'
    )
    labels = {split: np.repeat(run.data.splits[split].labels, self._seen(split)[0]) for split in SPLITS}
    return {split: boundary.Features(values, labels[split], mask) for split, (values, mask) in found.items()}

  def _seen(self, split: str) -> tuple[int, Augment | None]:
    """How many views of an image these layers see, and what makes them differ."""
    return (max(1, self.run.experiment.cache_views), self.run.recipe.augment) if split == 'train' else (1, None)

  def _examples(self, split: str) -> int:
    return len(self.run.data.splits[split]) * self._seen(split)[0]

  def _step(self, augment: Augment | None) -> Callable:
    recipe = dataclasses.replace(self.run.recipe, augment=augment)
    return boundary.prefix_step(recipe, self.layer, self.run.experiment.seed)

  def _size_of_one(self) -> int:
    image = certificate.example_batch(1, self.run.recipe.preprocess.size)
    abstract = {**image, 'index': jax.ShapeDtypeStruct((1,), 'int32')}
    one = jax.eval_shape(self.run.placement.one, self.variables)
    return boundary.size_in_bytes(self._step(None), one, abstract)

  def _parts(self, split: str, step: Callable, leave: Callable[[], None]) -> store.Parts:
    views, augment = self._seen(split)
    batches = map(lambda batch: (leave(), batch)[1], self.run.in_order(split, augmented=augment is not None))
    images = len(self.run.data.splits[split])
    return boundary.parts(step, self.variables, batches, self.run.placement.put_batch, images, views)

  def _lasting(self, needed: int) -> bool:
    """Whether features of so many bytes are looked for, and kept for later runs."""
    if self.run.experiment.cache == 'memory' or needed > store.LARGEST:
      return False
    return all(self._data.values()) and store.usable()

  @functools.cached_property
  def _data(self) -> Mapping[str, str | None]:
    return {split: self.run.data.splits[split].fingerprint() for split in SPLITS}

  def _entries(self, root: Path) -> dict[str, Path]:
    """Where the features of each split are, or would be: named by all that decides their bits."""
    run, e = self.run, self.run.experiment
    model, entries = run.recipe.model, {}
    weights = store.of_arrays(boundary.leaves(model, self.layer, run.placement.one(self.variables)))
    layers = self.layer, type(model.backbone.config).__module__, model.backbone.config, weights
    for split in SPLITS:
      views, augment = self._seen(split)
      drawn = (views, augment, e.seed) if augment else None
      pixels = run.recipe.preprocess, run.transform(augment is not None), drawn
      data = self._data[split] or split
      entries[split] = root / identity.key(layers, pixels, data, run.recipe.dtype, e.batch_size, e.compile)
    return entries

  def _held(self, parts: store.Parts, total: int, entry: Path | None, place: str, size: int):
    """Computes (values, mask) into memory, keeping a copy where that pays, or into a file."""
    began, here = time.monotonic(), store.folder()
    put = functools.partial(store.write, entry, total, owner=str(self.run.folder.absolute()))
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
      self.run.say(f'the features are not kept for later runs: {_reason(error)}')
    return held


def _reason(error: OSError) -> str:
  return files.FULL.get(error.errno) or error.strerror or str(error)
