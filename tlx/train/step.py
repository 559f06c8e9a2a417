"""The pure training and evaluation steps. `jit` and `pmap` compile the same step.

Gradients, their norm, clipping, accumulation and the all-reduce see only the trainable leaves. With all leaves, XLA
would have to compute the whole backward pass. Losses are sums. One weight, summed over all micro-batches and devices,
divides them, so that the gradient does not depend on how a batch is split.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tlx import trees
from tlx.data import augment
from tlx.data.augment import Augment
from tlx.labels import BACKBONE
from tlx.nn import devices
from tlx.nn.model import TransferModel
from tlx.nn.norm import stored_statistics
from tlx.train.state import TrainState, split
from tlx.types import Batch, Params, Phase, Preprocess, Task

Metrics = dict[str, jax.Array]
AUX_WEIGHT = 0.4  # weight of an auxiliary head's loss (https://arxiv.org/abs/1512.00567; torchvision's recipe)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The static inputs of a step: the model, the task, and how pixels become input."""

  model: TransferModel
  task: Task
  preprocess: Preprocess
  augment: Augment | None = None  # None: the host has applied the evaluation transform
  dtype: Any = jnp.float32  # of the computation; parameters, statistics and the loss stay float32
  micro_batches: int = 1  # parts of a batch, computed one after the other
  ema: float = 0.0  # decay of the moving average; 0 = off
  remat: bool = False  # whether the backward pass recomputes the inside of each layer; XLA:CPU undoes it
  norm_statistics: str = 'batch'  # 'frozen': batch norms of the backbone use their stored statistics
  start: str | None = None  # batches hold features of this layer (`prefix.boundary`) instead of images

  def inputs(self, images: Any) -> Any:
    """Normalises pixels in [0, 1] as the backbone expects; returns features as they are."""
    if self.start:
      return images
    return self.preprocess.normalise(images).astype(self.dtype)


def train_step(recipe: Recipe, phase: Phase, tx: optax.GradientTransformation) -> Callable:
  """Builds the training step of a phase.

  Args:
    recipe: the static inputs.
    phase: names the layers that learn.
    tx: the phase's transformation of gradients.

  Returns:
    (state, batch) -> (state, metrics). A batch has image uint8 [b, h, w, 3], mask bool [b] (False = padding), geometry
    float32 [b, 6] and target. If the recipe starts after a layer, image is a dict of features float [b, ...]. Metrics
    are float32 scalars: 'loss' and the task's own, divided by the weight of the batch, 'grad_norm' before clipping, and
    'count', the number of real examples.
  """

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    trainable, frozen = split(state.params, phase)
    micro = _split_batch(_prepare(recipe, augment_key, batch), recipe.micro_batches)
    gradient = jax.value_and_grad(loss_function(recipe, phase, frozen), has_aux=True)

    key = jax.random.split(dropout_key, 1)[0]

    def part_of(batch_stats: Params, part: Batch, index: jax.Array) -> tuple[Params, Metrics, Params]:
      parts = recipe.micro_batches  # an example keeps its dropout mask, whatever its micro-batch
      with devices.micro_batch(index, parts) if parts > 1 else contextlib.nullcontext():
        (loss, (batch_stats, sums)), grads = gradient(trainable, batch_stats, part, key)
      return grads, {'loss': loss, **sums}, batch_stats

    def accumulate(carry: tuple, part_and_index: tuple) -> tuple[tuple, None]:
      grads, sums, batch_stats = carry
      part_grads, part_sums, batch_stats = part_of(batch_stats, *part_and_index)
      return (*jax.tree.map(jnp.add, (grads, sums), (part_grads, part_sums)), batch_stats), None

    indices = jnp.arange(recipe.micro_batches, dtype=jnp.int32)
    first = jax.tree.map(lambda x: x[0], micro), indices[0]
    if recipe.micro_batches == 1:
      grads, sums, batch_stats = part_of(state.batch_stats, *first)
    else:
      grads, sums, _ = jax.tree.map(jnp.zeros_like, jax.eval_shape(part_of, state.batch_stats, *first))
      (grads, sums, batch_stats), _ = jax.lax.scan(accumulate, (grads, sums, state.batch_stats), (micro, indices))
    count = _over_devices(batch['mask'].sum())
    grads, sums = _over_devices((grads, sums))
    weight = sums.pop('weight')
    share = lambda x: x / jnp.where(weight > 0, weight, 1)
    grads = jax.tree.map(share, grads)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    ema = state.ema and jax.tree.map(lambda a, x: recipe.ema * a + (1 - recipe.ema) * x, state.ema, trainable)
    state = state.replace(
      step=state.step + 1, params=trees.merge(frozen, trainable), batch_stats=batch_stats, opt_state=opt_state, ema=ema
    )
    return state, {**jax.tree.map(share, sums), 'grad_norm': optax.tree.norm(grads), 'count': count}

  return step


def loss_function(recipe: Recipe, phase: Phase, frozen: Params) -> Callable:
  """Builds the loss of one micro-batch.

  Args:
    recipe: the static inputs.
    phase: names the layers that learn.
    frozen: the other parameters.

  Returns:
    (trainable, batch_stats, part, key) -> (sum of the losses, (batch_stats, sums)). A part has image float
    [b, h, w, 3] in [0, 1] or features, target, and mask bool [b]. The sums are 'weight' and those that the task logs.
  """
  stored = recipe.norm_statistics == 'frozen'

  def losses(trainable: Params, batch_stats: Params, part: Batch, key: jax.Array):
    with stored_statistics(BACKBONE) if stored else contextlib.nullcontext():
      outputs, changed = recipe.model.apply(
        {'params': trees.merge(frozen, trainable), 'batch_stats': batch_stats},
        recipe.inputs(part['image']),
        train=frozenset(phase.rates),
        start=recipe.start,
        remat=recipe.remat,
        rngs={'dropout': key},
        mutable=['batch_stats', 'aux'],
      )
    target, mask = part['target'], part['mask']
    loss, weight = recipe.task.loss(outputs, target, mask)
    for side in jax.tree.leaves(changed.get('aux', {})):  # auxiliary heads
      loss = loss + AUX_WEIGHT * recipe.task.loss(side, target, mask)[0]
    sums = {'weight': weight, **recipe.task.hits(outputs, target, mask)}
    return loss, ({**batch_stats, **changed.get('batch_stats', {})}, jax.tree.map(jnp.float32, sums))

  return losses


def eval_step(recipe: Recipe) -> Callable:
  """Builds the evaluation step.

  Args:
    recipe: the static inputs.

  Returns:
    (variables, batch) -> (sums, records). The task merges the sums over batches; padding does not count. Records have
    one row per example, and 'index' and 'mask' of the batch.
  """

  def step(variables: Params, batch: Batch):
    images = batch['image'] if recipe.start else augment.to_float(batch['image'])
    outputs = recipe.model.apply(variables, recipe.inputs(images), start=recipe.start)
    sums, records = recipe.task.evaluate(outputs, batch['target'], batch['mask'])
    return _over_devices(sums), records | {name: batch[name] for name in ('index', 'mask')}

  return step


def _prepare(recipe: Recipe, key: jax.Array, batch: Batch) -> Batch:
  """Augments the images, and their targets with them: float images in [0, 1]."""
  images, target = batch['image'], batch['target']
  first = devices.example_positions(len(batch['mask']))[0]
  if recipe.augment is None or recipe.start:
    images = images if recipe.start else augment.to_float(images)
  else:
    aspect, shape = batch['geometry'][:, 1] / batch['geometry'][:, 0], recipe.preprocess.shape
    images, warp = augment.augment_batch(key, images, aspect, recipe.augment, shape, first)
    target = recipe.task.warp(target, warp)
    if (recipe.augment.mixup or recipe.augment.cutmix) and len(images) > 1:
      images, share = augment.mix_batch(jax.random.fold_in(key, 1), images, recipe.augment, first)
      target = recipe.task.mix(target, share)
  return {'image': images, 'target': target, 'mask': batch['mask']}


def _split_batch(batch: Batch, parts: int) -> Batch:
  """[b, ...] -> [parts, b / parts, ...]. Every part is spread over all devices."""
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _over_devices(tree: Any) -> Any:
  """Sums over devices under pmap. Under jit the sums are global already."""
  return jax.lax.psum(tree, devices.AXIS) if devices.axis_is_bound() else tree
