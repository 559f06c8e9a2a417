"""The frozen prefix is computed once: where it ends, and its features of a whole split.

Every example's features come from the same program in the same batches, so a resumed run finds the same bits.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from tlx.data import augment
from tlx.nn.model import POOLED, TransferModel
from tlx.train import room
from tlx.train.step import Recipe
from tlx.types import Batch, Phase, Variables

SHARE = 4  # features may take this part of the memory that is free


class Features(NamedTuple):
  """Of one split, in its order."""

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


def prefix_step(recipe: Recipe, layer: str) -> Callable:
  """(variables, batch of eval_batches) -> ((), {'index', 'mask', 'features'}), for a placement's `evaluate`."""
  backbone = recipe.model.backbone

  def step(variables: Variables, batch: Batch):
    inside = {name: tree['backbone'] for name, tree in variables.items() if 'backbone' in tree}
    images = recipe.inputs(augment.to_float(batch['image']))
    last = backbone.names[-1] if layer == POOLED else layer
    features = backbone.apply(inside, images, stop=last)[last]
    features = backbone.pool(features) if layer == POOLED else features
    return (), {'index': batch['index'], 'mask': batch['mask'], 'features': features}

  return step


def compute(
  step: Callable, variables: Variables, batches: Iterable[Batch], labels: np.ndarray, where: Path | None = None
) -> Features:
  """Runs the compiled `prefix_step` over the placed batches of a whole split.

  labels: of the split. where: the .npy file to keep the values in, rather than in memory; if it is there already, left
  by an interrupted run, it is taken as it is.
  """
  kept = where.with_suffix('.mask.npy') if where else None
  if where and where.exists():
    values = np.load(where, mmap_mode='r')
    values = values.view(ml_dtypes.bfloat16) if values.dtype.kind == 'V' else values  # which .npy has no name for
    return Features(values, labels, np.load(kept))
  values, mask = None, np.zeros(len(labels), bool)
  for batch in batches:
    _, found = jax.device_get(step(variables, batch))
    if values is None:
      values = _empty((len(labels), *found['features'].shape[1:]), found['features'].dtype, where)
    real = found['index'] >= 0
    values[found['index'][real]] = found['features'][real]
    mask[found['index'][real]] = found['mask'][real]
  if where:
    np.save(kept, mask)
    values.flush()
    _unfinished(where).rename(where)
  return Features(values, labels, mask)


def size_in_bytes(step: Callable, variables: Variables, batch: Batch, examples: int) -> int:
  """Of the features of that many examples."""
  _, found = jax.eval_shape(step, variables, batch)
  return examples * int(np.prod(found['features'].shape[1:])) * found['features'].dtype.itemsize


def place(needed: int, folder: Path, asked: str) -> str | None:
  """'memory' or 'disk', whichever has room for so many bytes; `asked` may insist on one. None: neither has."""
  if asked in ('memory', 'disk'):
    return asked
  if needed * SHARE <= room.memory('SC_AVPHYS_PAGES', unknown=4 * 2**30):
    return 'memory'
  return 'disk' if needed * SHARE <= shutil.disk_usage(folder).free else None


def _empty(shape: tuple[int, ...], dtype: Any, where: Path | None) -> np.ndarray:
  if where is None:
    return np.empty(shape, dtype)
  where.parent.mkdir(parents=True, exist_ok=True)
  return np.lib.format.open_memmap(_unfinished(where), mode='w+', dtype=dtype, shape=shape)


def _unfinished(where: Path) -> Path:
  return where.with_suffix('.part')
