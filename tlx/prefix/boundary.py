"""The frozen prefix: where it ends, which of its features a phase needs, and the step that computes them.

Every example's features come from the same program in the same batches, so a resumed run finds the same bits.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tlx import labels, trees
from tlx.data import augment
from tlx.nn.model import POOLED, TransferModel
from tlx.train import memory
from tlx.train.step import Recipe
from tlx.types import Batch, Phase, Target, Variables

SHARE = 4  # features may take this part of the memory that is free
STREAM = 0x76696577  # of random numbers: not those of the steps, which fold in their number
Values = Mapping[str, np.ndarray]  # {layer or tap: float [n, ...]}


class Features(NamedTuple):
  """The features of one split, in its order; the views of an image stand one after the other."""

  values: Values  # n counts the views
  mask: np.ndarray  # bool [n]; False where an image could not be read
  targets: Callable[[np.ndarray], Target]  # positions of images, -1 for padding -> their targets
  views: int = 1  # of each image

  def load(self, positions: np.ndarray) -> Batch:
    """The part of a batch at these positions; -1 is padding."""
    found = np.maximum(positions, 0)
    return {
      'image': {name: values[found] for name, values in self.values.items()},
      'mask': self.mask[found] & (positions >= 0),
      'target': self.targets(positions // self.views),
    }


def boundary(module: TransferModel, phase: Phase) -> str | None:
  """The last layer before the first trainable one; None where the first layer learns.

  Where only the head learns: 'pooled' if it reads nothing else, and the last layer if it does.
  """
  names = module.backbone.names
  learning = [i for i, name in enumerate(names) if name in phase.rates]
  if not learning:
    return POOLED if module.reads() == (POOLED,) else names[-1]
  return names[learning[0] - 1] if learning[0] else None


def kept(module: TransferModel, layer: str) -> tuple[str, ...]:
  """The features up to `layer` that the rest of the model needs: its output, and the earlier ones that heads read."""
  names = module.backbone.names
  if layer in (POOLED, names[-1]):
    return module.reads()
  inside = names[: names.index(layer) + 1]
  early = [name for name in module.reads() if name.split('/')[0] in inside and name != layer]
  return (*early, layer)


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
  backbone, names = recipe.model.backbone, kept(recipe.model, layer)
  last = backbone.names[-1] if layer == POOLED else layer

  def step(variables: Variables, batch: Batch):
    inside = {name: tree['backbone'] for name, tree in variables.items() if 'backbone' in tree}
    found = backbone.apply(inside, recipe.inputs(pixels(batch)), stop=last, taps=True)
    features = {name: backbone.pool(found[last]) if name == POOLED else found[name] for name in names}
    return (), {'index': batch['index'], 'mask': batch['mask'], 'features': features}

  def pixels(batch: Batch) -> jax.Array:
    if recipe.augment is None:
      return augment.to_float(batch['image'])
    key = jax.random.fold_in(jax.random.key(seed), STREAM)
    aspect, shape = batch['geometry'][:, 1] / batch['geometry'][:, 0], recipe.preprocess.shape
    return augment.augment_batch(key, batch['image'], aspect, recipe.augment, shape, batch['draw'])[0]

  return step


def parts(
  step: Callable, variables: Variables, batches: Iterable[Batch], put: Callable, examples: int, views: int = 1
) -> Iterator[tuple[Values, np.ndarray]]:
  """(values, mask) of every batch of a whole split, in its order, the views of an image one after the other.

  step: the compiled `prefix_step`, which runs `views` times on each batch. put: the placement's `put_batch`.
  """
  for batch in batches:
    seen = {name: batch[name] for name in ('image', 'mask', 'geometry', 'index')}
    placed, first = put(seen), batch['index']
    draws = [put({'draw': first + np.int32(view * examples)}) for view in range(views)]
    found = jax.device_get([step(variables, {**placed, **draw})[1] for draw in draws])
    order = np.argsort(index := found[0]['index'])[(index < 0).sum() :]  # devices may hold it in another one
    stacked = jax.tree.map(lambda *each: np.stack(each, axis=1), *found)
    joined = jax.tree.map(lambda x, order=order: x[order].reshape(-1, *x.shape[2:]), stacked)
    yield joined['features'], joined['mask']


def gather(parts: Iterable[tuple[Values, np.ndarray]], total: int) -> tuple[Values, np.ndarray]:
  """The (values, mask) of `total` views in memory."""
  values, mask, done = {}, np.zeros(total, bool), 0
  for part, seen in parts:
    values = values or {name: np.empty((total, *x.shape[1:]), x.dtype) for name, x in part.items()}
    for name, x in part.items():
      values[name][done : done + len(x)] = x
    mask[done : done + len(seen)] = seen
    done += len(seen)
  return values, mask


def size_in_bytes(step: Callable, variables: Variables, batch: Batch) -> int:
  """Of the features of one example."""
  _, found = jax.eval_shape(step, variables, batch)
  return trees.size_in_bytes(found['features'])


def place(needed: int, folder: Path, asked: str) -> str | None:
  """'memory' or 'disk', whichever has room for so many bytes; `asked` may insist on one. None: neither has."""
  if asked in ('memory', 'disk'):
    return asked
  if needed * SHARE <= memory.memory('SC_AVPHYS_PAGES', unknown=4 * 2**30):
    return 'memory'
  return 'disk' if disk_has_room(needed, folder) else None


def disk_has_room(needed: int, folder: Path) -> bool:
  return needed * SHARE <= shutil.disk_usage(folder).free
