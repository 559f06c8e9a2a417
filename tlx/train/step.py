"""The pure training and evaluation steps: built once a phase, compiled by `jit` or `pmap`, the same numbers.

Gradients, their norm, clipping, accumulation and the all-reduce see the trainable leaves alone, so the cost is
that of what learns: over all leaves the whole backward pass would come back.
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
from tlx.nn.norm import stored_statistics
from tlx.train.state import TrainState, split
from tlx.types import Batch, Params, Phase, Preprocess

Metrics = dict[str, jax.Array]
AUX_WEIGHT = 0.4  # of auxiliary logits (Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; torchvision's recipe)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a step needs beside the state: the model, the task, and how pixels become input."""

  model: Any  # TransferModel
  task: Any  # .targets(labels), .losses(logits, targets), .metrics(logits, labels, mask)
  preprocess: Preprocess
  augment: Augment | None = None  # None: the evaluation transform, done on the host
  dtype: Any = jnp.float32  # of the compute; parameters, statistics and the loss stay float32
  micro_batches: int = 1
  ema: float = 0.0  # decay of the moving average; 0 = off
  remat: bool = False  # the backward pass computes the inside of each layer again; XLA:CPU merges the two, and keeps it
  norm_statistics: str = 'batch'  # 'frozen': batch norms of the backbone keep their stored statistics while they learn
  start: str | None = None  # the batch holds the features of this layer (`prefix.boundary`) in place of images

  def inputs(self, images: jax.Array) -> jax.Array:
    """[0, 1] pixels -> what the backbone expects; features stay as they are."""
    if self.start:
      return images
    return augment.normalise(images, self.preprocess.mean, self.preprocess.std).astype(self.dtype)


def train_step(recipe: Recipe, phase: Phase, tx: optax.GradientTransformation) -> Callable:
  """(state, batch) -> (state, metrics); batch: image uint8 [b, s, s, 3], label int32 [b], mask bool [b], aspect [b].

  Where the recipe starts after a layer: features float [b, ...] in place of image and aspect.
  """

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    trainable, frozen = split(state.params, phase)
    micro = _split_batch(_prepare(recipe, augment_key, batch), recipe.micro_batches)
    total = _over_devices(batch['mask'].sum())
    losses = loss_function(recipe, phase, frozen)

    def accumulate(carry, part_and_key):
      grads, batch_stats, loss, correct = carry
      (part_loss, (batch_stats, part_correct)), part_grads = jax.value_and_grad(losses, has_aux=True)(
        trainable, batch_stats, *part_and_key, total
      )
      return (jax.tree.map(jnp.add, grads, part_grads), batch_stats, loss + part_loss, correct + part_correct), None

    keys = jax.random.split(dropout_key, recipe.micro_batches)
    first = (jax.tree.map(jnp.zeros_like, trainable), state.batch_stats, jnp.zeros(()), jnp.zeros(()))
    if recipe.micro_batches == 1:
      sums, _ = accumulate(first, (jax.tree.map(lambda x: x[0], micro), keys[0]))
    else:
      sums, _ = jax.lax.scan(accumulate, first, (micro, keys))
    grads, batch_stats, loss, accuracy = sums[0], sums[1], sums[2], sums[3]
    grads, loss, accuracy = _over_devices((grads, loss, accuracy))
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    ema = state.ema and jax.tree.map(lambda a, x: recipe.ema * a + (1 - recipe.ema) * x, state.ema, trainable)
    state = state.replace(
      step=state.step + 1, params=trees.merge(frozen, trainable), batch_stats=batch_stats, opt_state=opt_state, ema=ema
    )
    return state, {'loss': loss, 'accuracy': accuracy, 'grad_norm': optax.tree.norm(grads), 'count': total}

  return step


def loss_function(recipe: Recipe, phase: Phase, frozen: Params) -> Callable:
  """(trainable, batch_stats, part, key, total) -> (loss, (batch_stats, accuracy)), both shares of `total` examples.

  part: image float [b, s, s, 3] in [0, 1], target float32 [b, k], label int32 [b], mask bool [b].
  """

  def losses(trainable: Params, batch_stats: Params, part: Batch, key: jax.Array, total: Any):
    with stored_statistics(BACKBONE) if recipe.norm_statistics == 'frozen' else contextlib.nullcontext():
      logits, changed = recipe.model.apply(
        {'params': trees.merge(frozen, trainable), 'batch_stats': batch_stats},
        recipe.inputs(part['image']),
        train=frozenset(phase.rates),
        start=recipe.start,
        remat=recipe.remat,
        rngs={'dropout': key},
        mutable=['batch_stats', 'aux'],
      )
    each = recipe.task.losses(logits, part['target'])
    for side in jax.tree.leaves(changed.get('aux', {})):  # a second head inside the backbone
      each = each + AUX_WEIGHT * recipe.task.losses(side, part['target'])
    loss = jnp.where(part['mask'], each, 0).sum() / jnp.maximum(total, 1)
    correct = (part['mask'] & (logits.argmax(-1) == part['label'])).sum() / jnp.maximum(total, 1)
    return loss, ({**batch_stats, **changed.get('batch_stats', {})}, correct)

  return losses


def eval_step(recipe: Recipe) -> Callable:
  """(variables, batch) -> (metric sums, per-example records); padding counts for nothing."""

  def step(variables: Params, batch: Batch):
    images = batch['features'] if recipe.start else augment.to_float(batch['image'])
    logits = recipe.model.apply(variables, recipe.inputs(images), start=recipe.start)
    sums = _over_devices(recipe.task.metrics(logits, batch['label'], batch['mask']))
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(probabilities, jnp.maximum(batch['label'], 0)[:, None], axis=-1)[:, 0]
    records = {'prediction': logits.argmax(-1), 'confidence': probabilities.max(-1), 'probability_of_label': own}
    return sums, records | {name: batch[name] for name in ('index', 'label', 'mask')}

  return step


def _prepare(recipe: Recipe, key: jax.Array, batch: Batch) -> Batch:
  """Augmented float images and soft targets."""
  targets = recipe.task.targets(batch['label'])
  first = devices.example_positions(len(batch['label']))[0]
  if recipe.start:
    images = batch['features']
  elif recipe.augment is None:
    images = augment.to_float(batch['image'])
  else:
    images = augment.augment_batch(key, batch['image'], batch['aspect'], recipe.augment, recipe.preprocess.size, first)
    images, targets = augment.mix_batch(jax.random.fold_in(key, 1), images, targets, recipe.augment, first)
  return {'image': images, 'target': targets, 'label': batch['label'], 'mask': batch['mask']}


def _split_batch(batch: Batch, parts: int) -> Batch:
  """[b, ...] -> [parts, b / parts, ...], every part spread over all devices."""
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _over_devices(tree: Any) -> Any:
  """Sums over devices under pmap; under jit over a mesh the sums are already global."""
  return jax.lax.psum(tree, devices.AXIS) if devices.axis_is_bound() else tree
