"""The pure training and evaluation steps: built once a phase, compiled by `jit` or `pmap`, the same numbers.

Gradients, their norm, clipping, accumulation and the all-reduce see the trainable leaves alone, so the cost is
that of what learns: over all leaves the whole backward pass would come back. Losses are sums; one weight divides them,
summed over all micro-batches and devices, so that the gradient is the same however a batch is cut.
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
AUX_WEIGHT = 0.4  # of auxiliary outputs (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; torchvision's recipe)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a step needs beside the state: the model, the task, and how pixels become input."""

  model: TransferModel
  task: Task
  preprocess: Preprocess
  augment: Augment | None = None  # None: the evaluation transform, done on the host
  dtype: Any = jnp.float32  # of the compute; parameters, statistics and the loss stay float32
  micro_batches: int = 1
  ema: float = 0.0  # decay of the moving average; 0 = off
  remat: bool = False  # the backward pass computes the inside of each layer again; XLA:CPU merges the two, and keeps it
  norm_statistics: str = 'batch'  # 'frozen': batch norms of the backbone keep their stored statistics while they learn
  start: str | None = None  # the batch holds features up to this layer (`prefix.boundary`) in place of images

  def inputs(self, images: Any) -> Any:
    """[0, 1] pixels -> what the backbone expects; features stay as they are."""
    if self.start:
      return images
    return self.preprocess.normalise(images).astype(self.dtype)


def train_step(recipe: Recipe, phase: Phase, tx: optax.GradientTransformation) -> Callable:
  """(state, batch) -> (state, metrics); batch: image uint8 [b, h, w, 3], mask bool [b], geometry [b, 6], target.

  Where the recipe starts after a layer, image is a dict of features float [b, ...].
  """

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    trainable, frozen = split(state.params, phase)
    micro = _split_batch(_prepare(recipe, augment_key, batch), recipe.micro_batches)
    gradient = jax.value_and_grad(loss_function(recipe, phase, frozen), has_aux=True)

    def part_of(batch_stats: Params, part: Batch, key: jax.Array) -> tuple[Params, Metrics, Params]:
      (loss, (batch_stats, sums)), grads = gradient(trainable, batch_stats, part, key)
      return grads, {'loss': loss, **sums}, batch_stats

    def accumulate(carry: tuple, part_and_key: tuple) -> tuple[tuple, None]:
      grads, sums, batch_stats = carry
      part_grads, part_sums, batch_stats = part_of(batch_stats, *part_and_key)
      return (*jax.tree.map(jnp.add, (grads, sums), (part_grads, part_sums)), batch_stats), None

    keys = jax.random.split(dropout_key, recipe.micro_batches)
    first = jax.tree.map(lambda x: x[0], micro), keys[0]
    if recipe.micro_batches == 1:
      grads, sums, batch_stats = part_of(state.batch_stats, *first)
    else:
      grads, sums, _ = jax.tree.map(jnp.zeros_like, jax.eval_shape(part_of, state.batch_stats, *first))
      (grads, sums, batch_stats), _ = jax.lax.scan(accumulate, (grads, sums, state.batch_stats), (micro, keys))
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
  """(trainable, batch_stats, part, key) -> (sum of the losses, (batch_stats, {'weight', and what the task logs})).

  part: image float [b, h, w, 3] in [0, 1], target, mask bool [b].
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
    for side in jax.tree.leaves(changed.get('aux', {})):  # a second head
      loss = loss + AUX_WEIGHT * recipe.task.loss(side, target, mask)[0]
    sums = {'weight': weight, **recipe.task.hits(outputs, target, mask)}
    return loss, ({**batch_stats, **changed.get('batch_stats', {})}, jax.tree.map(jnp.float32, sums))

  return losses


def eval_step(recipe: Recipe) -> Callable:
  """(variables, batch) -> (metric sums, per-example records); padding counts for nothing."""

  def step(variables: Params, batch: Batch):
    images = batch['image'] if recipe.start else augment.to_float(batch['image'])
    outputs = recipe.model.apply(variables, recipe.inputs(images), start=recipe.start)
    sums, records = recipe.task.evaluate(outputs, batch['target'], batch['mask'])
    return _over_devices(sums), records | {name: batch[name] for name in ('index', 'mask')}

  return step


def _prepare(recipe: Recipe, key: jax.Array, batch: Batch) -> Batch:
  """Augmented float images and their targets."""
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
  """[b, ...] -> [parts, b / parts, ...], every part spread over all devices."""
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _over_devices(tree: Any) -> Any:
  """Sums over devices under pmap; under jit over a mesh the sums are already global."""
  return jax.lax.psum(tree, devices.AXIS) if devices.axis_is_bound() else tree
