"""The state of training, and how it changes when the next phase begins."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tlx import labels, trees
from tlx.train import optimizer
from tlx.types import Params, Phase, Variables


class TrainState(struct.PyTreeNode):
  """Everything that a run needs to continue."""

  step: jax.Array  # int32 []
  key: jax.Array  # uint32 key data; each step folds its number in, so that a resumed run draws the same
  params: Params
  batch_stats: Params
  opt_state: Any  # of the trainable leaves only
  ema: Any  # moving average of the trainable leaves, or None

  @property
  def variables(self) -> Variables:
    """The current variables of the model."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def averaged(self) -> Variables:
    """The variables to evaluate and export: those of the moving average if there is one."""
    return self.variables if self.ema is None else {**self.variables, 'params': trees.merge(self.params, self.ema)}


def split(params: Params, phase: Phase) -> tuple[Params, Params]:
  """Splits parameters by whether they learn in a phase.

  Args:
    params: of the model.
    phase: names the layers that learn.

  Returns:
    (trainable, frozen), two nested dicts.
  """
  return trees.split(params, lambda path: labels.label(path, phase.rates) != labels.FROZEN)


def create(variables: Variables, phase: Phase, tx: optax.GradientTransformation, *, seed: int, ema: bool) -> TrainState:
  """Makes the state before the first step.

  Args:
    variables: of the model.
    phase: the first phase.
    tx: its transformation.
    seed: random seed.
    ema: whether to keep a moving average of the trainable leaves.

  Returns:
    The state at step 0.
  """
  trainable, _ = split(variables['params'], phase)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key_data(jax.random.key(seed)),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=_begin(tx, trainable),
    ema=jax.tree.map(jnp.copy, trainable) if ema else None,  # a copy, because a buffer can be donated only once
  )


def enter(state: TrainState, phase: Phase, tx: optax.GradientTransformation) -> TrainState:
  """Makes the state at the start of the next phase.

  A leaf that continues to learn keeps its moments and moving average. A leaf that stops is set to its moving average.

  Args:
    state: at the end of a phase.
    phase: the next phase.
    tx: its transformation.

  Returns:
    The state, at the same step.
  """
  trainable, _ = split(state.averaged['params'], phase)
  ema = state.ema
  if ema is not None:
    known = trees.flatten(ema)
    ema = trees.unflatten({path: jnp.copy(known.get(path, leaf)) for path, leaf in trees.flatten(trainable).items()})
    stopped = {path: leaf for path, leaf in known.items() if path not in trees.flatten(trainable)}
    state = state.replace(params=trees.merge(state.params, trees.unflatten(stopped)))
  return state.replace(opt_state=optimizer.carry(state.opt_state, _begin(tx, trainable)), ema=ema)


def _begin(tx: optax.GradientTransformation, trainable: Params) -> Any:
  return jax.jit(tx.init)(trainable)  # without jit each shape is a program: 1 s for 200 tensors
