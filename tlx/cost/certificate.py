"""The cost certificate: the cost of one training step, read from the compiled program, which never runs.

All numbers are per device. FLOPs, memory and all-reduces are the compiler's own. The bytes stored for the backward pass
are counted in the program before compilation; the compiler may store less and compute more.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from tlx import trees
from tlx.cost.compiled import flops
from tlx.data import augment
from tlx.train import optimizer, sharding, state
from tlx.train.memory import peak_bytes
from tlx.train.step import Recipe, loss_function, train_step
from tlx.types import Batch, Geometry, Phase, Target, Task, Variables

# On a CPU, XLA's passes decide what is computed and stored. LLVM only makes it fast, and takes most of the time.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


class Cost(NamedTuple):
  """The cost of one training step on one device."""

  flops: float
  peak_bytes: int  # maximum memory in use: state, batch, activations, scratch
  optimizer_bytes: int
  allreduce_bytes: int
  activation_bytes: int  # stored by the forward pass for the backward pass, per micro-batch
  trainable_parameters: int


def train_cost(recipe: Recipe, phase: Phase, rates: optimizer.Optimizer, variables: Variables, batch: Batch) -> Cost:
  """Computes the cost of the trainer's own step in one phase, over all devices.

  Args:
    recipe: model, task and settings of the step.
    phase: what learns.
    rates: the optimizer.
    variables: arrays or jax.ShapeDtypeStruct.
    batch: the global batch, as `step.train_step` takes it; arrays or jax.ShapeDtypeStruct.

  Returns:
    The cost.
  """
  program, start = train_program(recipe, phase, rates, variables, batch)
  whole = program
  if recipe.micro_batches > 1:  # a loop; the compiler may count its body once
    whole, _ = train_program(dataclasses.replace(recipe, micro_batches=1), phase, rates, variables, batch)
  trainable, _ = state.split(start.params, phase)
  examples = batch['mask'].shape[0] // (recipe.micro_batches * jax.device_count())
  return Cost(
    flops=flops(whole),
    peak_bytes=peak_bytes(program),
    optimizer_bytes=trees.size_in_bytes(start.opt_state),
    allreduce_bytes=allreduce_bytes(program),
    activation_bytes=_activation_bytes(recipe, phase, start, examples),
    trainable_parameters=trees.count(trainable),
  )


def train_program(recipe: Recipe, phase: Phase, rates: optimizer.Optimizer, variables: Variables, batch: Batch):
  """Compiles the trainer's step in one phase; arguments as in `train_cost`.

  Returns:
    (the compiled step, the shapes of its state).
  """
  variables, batch = jax.tree.map(_shape, (dict(variables), batch))
  tx = rates.build(phase, 100, state.split(variables['params'], phase)[0])
  begin = lambda variables: state.create(variables, phase, tx, seed=0, ema=recipe.ema > 0)
  start = jax.eval_shape(begin, variables)
  return _everywhere().train(train_step(recipe, phase, tx), start, batch, _options()), start


def forward_flops(recipe: Recipe, variables: Variables, batch: Batch) -> float:
  """FLOPs of an evaluation pass over the batch, per device."""
  return flops(_forward(recipe, variables, batch).compile(_options()))


def forward_flops_uncompiled(recipe: Recipe, variables: Variables, batch: Batch) -> float | None:
  """FLOPs of an evaluation pass before the compiler's passes, in a second instead of many.

  On a CPU it is 0.8 % above the compiled count for EfficientNet-Lite0 (2.326 and 2.308 GFLOPs, 16 images of 96 pixels).

  Returns:
    FLOPs per device; None if the platform does not count them.
  """
  try:
    counted = _forward(recipe, variables, batch).cost_analysis() or {}
  except (NotImplementedError, jax.errors.JaxRuntimeError):
    return None
  return counted['flops'] / jax.device_count() if 'flops' in counted else None


def _forward(recipe: Recipe, variables: Variables, batch: Batch) -> jax.stages.Lowered:
  variables, images = jax.tree.map(_shape, (dict(variables), batch['image']))
  image = jax.ShapeDtypeStruct((images.shape[0], *_pixels(recipe)), images.dtype)
  forward = lambda variables, images: recipe.model.apply(variables, recipe.inputs(augment.to_float(images)))
  return _everywhere().evaluate(forward).lower(variables, image)


def example_batch(task: Task, count: int, shape: tuple[int, int]) -> Batch:
  """Shapes of a training batch of `count` images, each of height and width `shape`."""
  return {
    'image': jax.ShapeDtypeStruct((count, *shape, 3), jnp.uint8),
    'mask': jax.ShapeDtypeStruct((count,), bool),
    'geometry': jax.ShapeDtypeStruct((count, len(Geometry._fields)), jnp.float32),
    'target': example_target(task, count, shape),
  }


def example_target(task: Task, count: int, shape: tuple[int, int]) -> Target:
  """Shapes of the targets of `count` images, each of height and width `shape`."""
  return {name: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for name, x in task.blank(shape).items()}


def allreduce_bytes(program: jax.stages.Compiled) -> int:
  """Bytes that each device contributes to all-reduces, found in the program's text."""
  shapes = re.findall(r'= (.*?) all-reduce(?:-start)?\(', program.as_text())
  return sum(_bytes(*array) for shape in shapes for array in re.findall(r'([a-z]+\d*)\w*\[([\d,]*)\]', shape))


def kept_bytes(loss: Callable, *arguments: Any) -> int:
  """Bytes that the forward pass of `loss` stores for its gradient with respect to argument 0.

  Stored arguments, such as kernels, are in memory anyway and do not count.

  Args:
    loss: returns (value, auxiliary output).
    arguments: of `loss`; arrays or jax.ShapeDtypeStruct.

  Returns:
    Bytes.
  """

  def residuals(first, *rest):
    return jax.vjp(lambda x: loss(x, *rest), first, has_aux=True)[1]

  jaxpr = jax.make_jaxpr(residuals)(*arguments).jaxpr
  given = {id(v) for v in (*jaxpr.invars, *jaxpr.constvars)}
  kept = {id(v): v.aval for v in jaxpr.outvars if not isinstance(v, Literal) and id(v) not in given}
  return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def _activation_bytes(recipe: Recipe, phase: Phase, start: state.TrainState, examples: int) -> int:
  """Bytes stored for one micro-batch of that many examples."""
  trainable, frozen = state.split(start.params, phase)
  part = {
    'image': jax.ShapeDtypeStruct((examples, *_pixels(recipe)), jnp.float32),
    'target': example_target(recipe.task, examples, recipe.preprocess.shape),
    'mask': jax.ShapeDtypeStruct((examples,), bool),
  }

  def loss(trainable, frozen, batch_stats, part, key):
    return loss_function(recipe, phase, frozen)(trainable, batch_stats, part, key)

  key = jax.eval_shape(lambda: jax.random.key(0))
  return kept_bytes(loss, trainable, frozen, start.batch_stats, part, key)


def _everywhere() -> sharding.Jit:
  return sharding.Jit(tuple(jax.devices()))


def _options() -> Mapping[str, Any] | None:
  return QUICK if jax.default_backend() == 'cpu' else None


def _pixels(recipe: Recipe) -> tuple[int, int, int]:
  return *recipe.preprocess.shape, 3


def _shape(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _bytes(dtype: str, dimensions: str) -> int:
  """('bf16', '1280,5') -> 12,800."""
  bits = int(re.sub(r'\D', '', dtype) or 8)
  size = max(1, bits // 8)
  for dimension in filter(None, dimensions.split(',')):
    size *= int(dimension)
  return size
