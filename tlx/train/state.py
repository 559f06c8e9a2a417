"""What a step owns, and how it changes when the next phase begins."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tlx import labels, trees
from tlx.train import optimizer
from tlx.types import Params, Phase, Variables


class TrainState(struct.PyTreeNode):
  """Everything a run needs to go on, and nothing that can be derived."""

  step: jax.Array  # int32 []
  key: jax.Array  # uint32 key data; each step folds its number in, so no generator is carried
  params: Params
  batch_stats: Params
  opt_state: Any  # of the trainable leaves alone
  ema: Any  # moving average of the trainable leaves, or None

  @property
  def variables(self) -> Variables:
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def averaged(self) -> Variables:
    """The variables to evaluate and export: with the moving average where there is one."""
    return self.variables if self.ema is None else {**self.variables, 'params': trees.merge(self.params, self.ema)}


def split(params: Params, phase: Phase) -> tuple[Params, Params]:
  """(trainable, frozen)."""
  return trees.split(params, lambda path: labels.label(path, phase.rates) != labels.FROZEN)


def create(variables: Variables, phase: Phase, tx: optax.GradientTransformation, *, seed: int, ema: bool) -> TrainState:
  """The state before the first step."""
  trainable, _ = split(variables['params'], phase)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    key=jax.random.key_data(jax.random.key(seed)),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=_begin(tx, trainable),
    ema=jax.tree.map(jnp.copy, trainable) if ema else None,  # a copy: the step donates its buffers, and one can go once
  )


def enter(state: TrainState, phase: Phase, tx: optax.GradientTransformation) -> TrainState:
  """The state at the start of the next phase: what was learning keeps its moments and its average."""
  trainable, _ = split(state.averaged['params'], phase)  # a leaf that stops learning rests at its average
  ema = state.ema
  if ema is not None:
    known = trees.flatten(ema)
    ema = trees.unflatten({path: jnp.copy(known.get(path, leaf)) for path, leaf in trees.flatten(trainable).items()})
    stopped = {path: leaf for path, leaf in known.items() if path not in trees.flatten(trainable)}
    state = state.replace(params=trees.merge(state.params, trees.unflatten(stopped)))
  return state.replace(opt_state=optimizer.carry(state.opt_state, _begin(tx, trainable)), ema=ema)


def _begin(tx: optax.GradientTransformation, trainable: Params) -> Any:
  return jax.jit(tx.init)(trainable)  # one program; else one for each shape, a second for 200 tensors
