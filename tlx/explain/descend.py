"""Gradient descent on the parameters of a picture, such as its pixels or its Fourier coefficients."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Descent(NamedTuple):
  """The state after `step` steps: all losses so far, and the parameters with the smallest of them."""

  step: int
  losses: jax.Array  # float32 [step]
  least: jax.Array  # float32 []
  best: Any


def descend(
  loss: Callable[[Any, Any, jax.Array], jax.Array],
  fixed: Any,
  start: Any,
  optimizer: optax.GradientTransformation,
  steps: int,
  *,
  key: jax.Array,
  project: Callable[[Any], Any] = lambda parameters: parameters,
  every: int = 16,
) -> Iterator[Descent]:
  """Minimises a loss, and yields the best parameters so far, so that stopping early loses nothing.

  Args:
    loss: (fixed, parameters, key) -> float []; each step has its own key.
    fixed: a pytree that stays as it is, such as a model's variables. As an argument it is not a constant of the
      program.
    start: initial parameters, a pytree of floats.
    optimizer: from optax. A line search sees one key per step.
    steps: gradient steps.
    key: random key.
    project: maps parameters to the nearest allowed ones (pixels in [0, 1]) after each update.
    every: steps between two results.

  Yields:
    A `Descent` after every `every` steps and after the last.
  """
  optimizer = optax.with_extra_args_support(optimizer)

  @partial(jax.jit, static_argnames='count')
  def run(fixed, carry, first, count):
    return jax.lax.scan(partial(_step, loss, fixed, optimizer, project, key), carry, first + jnp.arange(count))

  carry = start, optimizer.init(start), start, jnp.full((), jnp.inf)  # strongly typed, so that one compilation suffices
  losses = jnp.zeros(0)
  for first in range(0, steps, every):
    carry, values = run(fixed, carry, first, min(every, steps - first))
    losses = jnp.concatenate([losses, values])
    yield Descent(len(losses), losses, carry[3], carry[2])


def _step(loss, fixed, optimizer, project, key, carry, step):
  parameters, state, best, least = carry
  at = lambda parameters: loss(fixed, parameters, jax.random.fold_in(key, step))
  value, slope = jax.value_and_grad(at)(parameters)
  better = value < least  # always false if the loss is not a number
  best = jax.tree.map(lambda new, old: jnp.where(better, new, old), parameters, best)
  updates, state = optimizer.update(slope, state, parameters, value=value, grad=slope, value_fn=at)
  parameters = project(optax.apply_updates(parameters, updates))
  return (parameters, state, best, jnp.where(better, value, least)), value
