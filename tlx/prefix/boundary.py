"""The frozen prefix: its last layer, which of its features a phase needs, and the step that computes them.

Every run computes an example's features with the same program in the same batch, so a resumed run gets the same bits.
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

SHARE = 4  # features may take 1 / SHARE of the free memory or disk
STREAM = 0x76696577  # folded into the random key; training steps fold in their number, which is smaller
Values = Mapping[str, np.ndarray]  # {layer or tap: float [n, ...]}


class Features(NamedTuple):
  """The features of one split, in its order. The views of an image are neighbours.

  A view is one augmented version of an image.
  """

  values: Values  # n = images x views
  mask: np.ndarray  # bool [n]; False if the image could not be read
  targets: Callable[[np.ndarray], Target]  # positions of images, -1 for padding -> their targets
  views: int = 1  # of each image

  def load(self, positions: np.ndarray) -> Batch:
    """Makes a batch from features.

    Args:
      positions: int [b], of views; -1 is padding.

    Returns:
      image: {layer or tap: float [b, ...]}, mask bool [b], and target.
    """
    found = np.maximum(positions, 0)
    return {
      'image': {name: values[found] for name, values in self.values.items()},
      'mask': self.mask[found] & (positions >= 0),
      'target': self.targets(positions // self.views),
    }


def boundary(module: TransferModel, phase: Phase) -> str | None:
  """Finds the last layer before the first trainable one.

  Args:
    module: the model.
    phase: names the layers that learn.

  Returns:
    The layer's name; None if the first layer learns. If only the head learns, it is 'pooled' if the head reads nothing
    else, and the last layer otherwise.
  """
  names = module.backbone.names
  learning = [i for i, name in enumerate(names) if name in phase.rates]
  if not learning:
    return POOLED if module.reads() == (POOLED,) else names[-1]
  return names[learning[0] - 1] if learning[0] else None


def kept(module: TransferModel, layer: str) -> tuple[str, ...]:
  """Names the features that the rest of the model needs: the output of `layer`, and earlier ones that the head reads.

  Args:
    module: the model.
    layer: the last layer of the prefix, or 'pooled'.

  Returns:
    Names of layers and taps.
  """
  names = module.backbone.names
  if layer in (POOLED, names[-1]):
    return module.reads()
  inside = names[: names.index(layer) + 1]
  early = [name for name in module.reads() if name.split('/')[0] in inside and name != layer]
  return (*early, layer)


def leaves(module: TransferModel, layer: str, variables: Variables) -> dict[str, Any]:
  """Selects the variables of the prefix.

  Args:
    module: the model.
    layer: the last layer of the prefix, or 'pooled' for the whole backbone.
    variables: of the model.

  Returns:
    {path: array}; paths begin with the collection, such as 'params/backbone/stem/conv/kernel'.
  """
  names = module.backbone.names
  inside = set(names if layer == POOLED else names[: names.index(layer) + 1])
  return {
    f'{collection}/{path}': leaf
    for collection, tree in variables.items()
    for path, leaf in trees.flatten(tree).items()
    if labels.layer_of(path) in inside
  }


def prefix_step(recipe: Recipe, layer: str, seed: int = 0) -> Callable:
  """Builds the step that computes features. Compile it with the `evaluate` method of a sharding.

  Args:
    recipe: of the whole model, on images.
    layer: the last layer of the prefix, or 'pooled'.
    seed: of the augmentation.

  Returns:
    (variables, batch) -> ((), {'index', 'mask', 'features'}). A batch is one of `pipeline.eval_batches`. If the recipe
    augments, its images are canvases, and it also has draw int32 [b]: the pixels of image i depend only on the image,
    the seed and draw[i].
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
  """Computes the features of a split, batch by batch. The views of an image are neighbours.

  Args:
    step: the compiled `prefix_step`. It runs `views` times on each batch.
    variables: of the model, placed on the devices.
    batches: of the split, in order.
    put: places a batch on the devices.
    examples: size of the split.
    views: of each image.

  Yields:
    (values, mask) of each batch, without padding, in the order of the split.
  """
  for batch in batches:
    seen = {name: batch[name] for name in ('image', 'mask', 'geometry', 'index')}
    placed, first = put(seen), batch['index']
    draws = [put({'draw': first + np.int32(view * examples)}) for view in range(views)]
    found = jax.device_get([step(variables, {**placed, **draw})[1] for draw in draws])
    order = np.argsort(index := found[0]['index'])[(index < 0).sum() :]  # devices may return examples in another order
    stacked = jax.tree.map(lambda *each: np.stack(each, axis=1), *found)
    joined = jax.tree.map(lambda x, order=order: x[order].reshape(-1, *x.shape[2:]), stacked)
    yield joined['features'], joined['mask']


def gather(parts: Iterable[tuple[Values, np.ndarray]], total: int) -> tuple[Values, np.ndarray]:
  """Concatenates features in memory.

  Args:
    parts: (values, mask), in order.
    total: number of views.

  Returns:
    (values, mask) of the whole split.
  """
  values, mask, done = {}, np.zeros(total, bool), 0
  for part, seen in parts:
    values = values or {name: np.empty((total, *x.shape[1:]), x.dtype) for name, x in part.items()}
    for name, x in part.items():
      values[name][done : done + len(x)] = x
    mask[done : done + len(seen)] = seen
    done += len(seen)
  return values, mask


def size_in_bytes(step: Callable, variables: Variables, batch: Batch) -> int:
  """Bytes of the features of `batch`, from shapes alone; a batch of one gives the bytes of one example."""
  _, found = jax.eval_shape(step, variables, batch)
  return trees.size_in_bytes(found['features'])


def place(needed: int, folder: Path, asked: str) -> str | None:
  """Chooses where to keep features.

  Args:
    needed: bytes.
    folder: for features on disk.
    asked: 'memory' or 'disk' forces one; any other text chooses memory if the features fit, else the disk.

  Returns:
    'memory' or 'disk'; None if neither has enough free space.
  """
  if asked in ('memory', 'disk'):
    return asked
  if needed * SHARE <= memory.memory('SC_AVPHYS_PAGES', unknown=4 * 2**30):
    return 'memory'
  return 'disk' if disk_has_room(needed, folder) else None


def disk_has_room(needed: int, folder: Path) -> bool:
  """Whether `needed` bytes are at most 1 / SHARE of the free space on the folder's disk."""
  return needed * SHARE <= shutil.disk_usage(folder).free
