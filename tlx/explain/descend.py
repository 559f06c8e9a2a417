"""Gradient descent on whatever makes a picture: pixels, their Fourier coefficients, a change of them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Descent(NamedTuple):
  """After `step` steps: the loss at each of them so far, and the parameters with the least of these."""

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
  """Yields what was found so far after every `every` steps and after the last; stopping early loses nothing.

  Args:
    loss: (fixed, parameters, key) -> float []; the key is another one at each step.
    fixed: what is not changed (a model's variables), a pytree; handed over so that it is no constant of the program.
    start: parameters, a pytree of floats.
    optimizer: of optax; those with a line search get what they need, and see one key a step.
    project: after each update, back to what is allowed (pixels in [0, 1]).
  """
  optimizer = optax.with_extra_args_support(optimizer)

  @partial(jax.jit, static_argnames='count')
  def run(fixed, carry, first, count):
    return jax.lax.scan(partial(_step, loss, fixed, optimizer, project, key), carry, first + jnp.arange(count))

  carry = start, optimizer.init(start), start, jnp.full((), jnp.inf)  # of a type that stays: one compilation
  losses = jnp.zeros(0)
  for first in range(0, steps, every):
    carry, values = run(fixed, carry, first, min(every, steps - first))
    losses = jnp.concatenate([losses, values])
    yield Descent(len(losses), losses, carry[3], carry[2])


def _step(loss, fixed, optimizer, project, key, carry, step):
  parameters, state, best, least = carry
  at = lambda parameters: loss(fixed, parameters, jax.random.fold_in(key, step))
  value, slope = jax.value_and_grad(at)(parameters)
  better = value < least  # never of a loss that is not a number
  best = jax.tree.map(lambda new, old: jnp.where(better, new, old), parameters, best)
  updates, state = optimizer.update(slope, state, parameters, value=value, grad=slope, value_fn=at)
  parameters = project(optax.apply_updates(parameters, updates))
  return (parameters, state, best, jnp.where(better, value, least)), value
