"""`tlx cost`: the cost of a strategy on a model, next to the forward pass and full fine-tuning. It trains nothing."""

from typing import Any

import jax
import jax.numpy as jnp

from tlx import catalog, pretrained, trees, words
from tlx.actions import defaults, tasks
from tlx.cost import certificate
from tlx.train import optimizer
from tlx.train.step import Recipe
from tlx.types import Preprocess

OF_THE_COSTLIEST = ('flops', 'peak_bytes', 'optimizer_bytes', 'allreduce_bytes', 'activation_bytes')


def certify(
  model: str = 'efficientnet_lite0',
  strategy: str = 'lp_ft',
  *,
  batch_size: int = 32,
  image_size: int | str | None = None,
  num_classes: int = 1000,
  dtype: str = 'float32',
  micro_batches: int = 1,
  remat: bool = False,
  optimizer_name: str = 'adamw',
  task: str | None = None,
  head: str | None = None,
) -> dict[str, Any]:
  """Computes what `tlx cost --json` prints: the cost per device, over all devices that JAX sees.

  The step contains clipping, norm logging and the NaN check, as in `tlx finetune`, but no augmentation.

  Args:
    model: a variant's name, a folder or hf-hub:OWNER/NAME.
    strategy: such as 'partial:3'.
    batch_size: images per step, over all devices.
    image_size: height and width in pixels, one number or 'HxW'; the model's own by default.
    num_classes: outputs of the head.
    dtype: of the computation.
    micro_batches: parts of a batch.
    remat: whether the backward pass recomputes the inside of each layer.
    optimizer_name: 'adamw' or 'sgd'.
    task: a task's name; the model's own by default.
    head: a head's name; the model's own or the task's default head by default.

  Returns:
    The figures of the costliest phase, and of each phase under 'phases'.

  Raises:
    UsageError: for an unknown model or strategy, and for sizes that do not fit.
  """
  chosen, full = catalog.strategy(strategy), catalog.strategy('full')
  _check(batch_size, micro_batches, num_classes, image_size)
  found = pretrained.resolve(model)
  task = task or found.task
  names = tuple(f'class {i}' for i in range(num_classes))
  made = tasks.of_record(task, names)
  head = head or (found.head if found.task == task else None if made.default_head == 'linear' else made.default_head)
  asked = pretrained.Asked(num_classes, image_size and defaults.shape(image_size), head=head)
  module, preprocess = asked.module(asked.variant(found.variant), num_classes, found.head), asked.preprocess(found)
  variables = pretrained.abstract(module, shape=preprocess.shape)
  recipe = Recipe(
    module,
    made,
    Preprocess(size=preprocess.size, crop=1.0),
    dtype=jnp.dtype(dtype),
    micro_batches=micro_batches,
    remat=remat,
  )
  batch, rates = certificate.example_batch(made, batch_size, preprocess.shape), optimizer.Optimizer(optimizer_name)
  cost = lambda phase: certificate.train_cost(recipe, phase, rates, variables, batch)
  names = module.backbone.names
  phases = {phase.name: cost(phase) for phase in chosen.phases(names)}
  whole = cost(full.phases(names)[0]) if strategy != 'full' else next(iter(phases.values()))
  side = preprocess.shape
  return {
    'model': model,
    'strategy': strategy,
    'batch_size': batch_size,
    'image_size': side[0] if side[0] == side[1] else list(side),
    'dtype': dtype,
    'platform': jax.default_backend(),
    'devices': jax.device_count(),
    **{name: max(getattr(found, name) for found in phases.values()) for name in OF_THE_COSTLIEST},
    'trainable_parameters': max(found.trainable_parameters for found in phases.values()),
    'parameters': trees.count(variables['params']),
    'forward_flops': certificate.forward_flops(recipe, variables, batch),
    'full_flops': whole.flops,
    'phases': {name: found._asdict() for name, found in phases.items()},
    'full': whole._asdict(),
  }


def _check(batch_size: int, micro_batches: int, num_classes: int, image_size: int | str | None) -> None:
  given = {'--batch-size': batch_size, '--micro-batches': micro_batches, '--num-classes': num_classes}
  problems = defaults.problems_of_size(image_size)
  problems += [f'{name} {value}: must be above 0' for name, value in given.items() if value < 1]
  parts = micro_batches * jax.device_count()
  if not problems and batch_size % parts:
    problems = [f'--batch-size {batch_size} does not divide into {parts} parts (micro-batches x devices)']
  words.refuse(problems)
