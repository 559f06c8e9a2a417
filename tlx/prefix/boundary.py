"""The frozen prefix is computed once: where it ends, and its features of a whole split.

Every example's features come from the same program in the same batches, so a resumed run finds the same bits.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tlx import labels, trees
from tlx.data import augment
from tlx.nn.model import POOLED, TransferModel
from tlx.train import memory
from tlx.train.step import Recipe
from tlx.types import Batch, Phase, Variables

SHARE = 4  # features may take this part of the memory that is free
STREAM = 0x76696577  # of random numbers: not those of the steps, which fold in their number


class Features(NamedTuple):
  """Of one split, in its order; with several views of each image, one after the other, `n` counts the views."""

  values: np.ndarray  # float [n, ...]
  labels: np.ndarray  # int32 [n]
  mask: np.ndarray  # bool [n]; False where an image could not be read

  def load(self, positions: np.ndarray) -> Batch:
    """The part of a batch at these positions; -1 is padding."""
    found = np.maximum(positions, 0)
    return {
      'features': self.values[found],
      'label': np.where(positions >= 0, self.labels[found], 0).astype(np.int32),
      'mask': self.mask[found] & (positions >= 0),
    }


def boundary(module: TransferModel, phase: Phase) -> str | None:
  """The layer after which the first one learns; 'pooled' where only the head does, None where the first layer does."""
  names = module.backbone.names
  learning = [i for i, name in enumerate(names) if name in phase.rates]
  if not learning:
    return names[-1] if module.pools_nothing else POOLED
  return names[learning[0] - 1] if learning[0] else None


def leaves(module: TransferModel, layer: str, variables: Variables) -> dict[str, Any]:
  """{collection and path: array} of what the prefix up to `layer` is made of."""
  names = module.backbone.names
  inside = set(names if layer == POOLED else names[: names.index(layer) + 1])
  return {
    f'{collection}/{path}': leaf
    for collection, tree in variables.items()
    for path, leaf in trees.flatten(tree).items()
    if labels.layer_of(path) in inside
  }


def prefix_step(recipe: Recipe, layer: str, seed: int = 0) -> Callable:
  """(variables, batch of eval_batches) -> ((), {'index', 'mask', 'features'}), for a placement's `evaluate`.

  Where the recipe augments, the batch is of canvases and has draw int32 [b]: image i's pixels are a function of the
  seed and draw[i] alone.
  """
  backbone = recipe.model.backbone

  def step(variables: Variables, batch: Batch):
    inside = {name: tree['backbone'] for name, tree in variables.items() if 'backbone' in tree}
    last = backbone.names[-1] if layer == POOLED else layer
    features = backbone.apply(inside, recipe.inputs(pixels(batch)), stop=last)[last]
    features = backbone.pool(features) if layer == POOLED else features
    return (), {'index': batch['index'], 'mask': batch['mask'], 'features': features}

  def pixels(batch: Batch) -> jax.Array:
    if recipe.augment is None:
      return augment.to_float(batch['image'])
    key = jax.random.fold_in(jax.random.key(seed), STREAM)
    size = recipe.preprocess.size
    return augment.augment_batch(key, batch['image'], batch['aspect'], recipe.augment, size, batch['draw'])

  return step


def parts(
  step: Callable, variables: Variables, batches: Iterable[Batch], put: Callable, examples: int, views: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(values, mask) of every batch of a whole split, in its order, the views of an image one after the other.

  step: the compiled `prefix_step`, which runs `views` times on each batch. put: the placement's `put_batch`.
  """
  for batch in batches:
    placed, first = put(batch), batch['index']
    draws = [put({'draw': first + np.int32(view * examples)}) for view in range(views)]
    found = jax.device_get([step(variables, {**placed, **draw})[1] for draw in draws])
    order = np.argsort(index := found[0]['index'])[(index < 0).sum() :]  # devices may hold it in another one
    values, mask = (np.stack([each[name][order] for each in found], axis=1) for name in ('features', 'mask'))
    yield values.reshape(-1, *values.shape[2:]), mask.reshape(-1)


def gather(parts: Iterable[tuple[np.ndarray, np.ndarray]], total: int) -> tuple[np.ndarray, np.ndarray]:
  """The (values, mask) of `total` views in memory."""
  values, mask, done = None, np.zeros(total, bool), 0
  for part, seen in parts:
    values = np.empty((total, *part.shape[1:]), part.dtype) if values is None else values
    values[done : done + len(part)], mask[done : done + len(part)] = part, seen
    done += len(part)
  return values, mask


def size_in_bytes(step: Callable, variables: Variables, batch: Batch) -> int:
  """Of the features of one example."""
  _, found = jax.eval_shape(step, variables, batch)
  return int(np.prod(found['features'].shape[1:])) * found['features'].dtype.itemsize


def place(needed: int, folder: Path, asked: str) -> str | None:
  """'memory' or 'disk', whichever has room for so many bytes; `asked` may insist on one. None: neither has."""
  if asked in ('memory', 'disk'):
    return asked
  if needed * SHARE <= memory.memory('SC_AVPHYS_PAGES', unknown=4 * 2**30):
    return 'memory'
  return 'disk' if disk_has_room(needed, folder) else None


def disk_has_room(needed: int, folder: Path) -> bool:
  return needed * SHARE <= shutil.disk_usage(folder).free
