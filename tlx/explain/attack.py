"""Adversarial examples: small changes of the pixels that change a model's answer.

All functions are pure and batched; the result for an image does not depend on the others in its batch. Pixels are float
[b, h, w, 3] in [0, 1] and stay in that range. Epsilon is in the same unit: the largest change of any value ('linf'), or
the L2 norm of the whole change ('l2'). The change stays within epsilon exactly, not only up to rounding.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tlx import words
from tlx.explain.objectives import log_probability
from tlx.explain.outputs import LOGITS, Look

NORMS = ('linf', 'l2')
TINY = 1e-12  # lower bound on norms; avoids division by zero


@dataclasses.dataclass(frozen=True)
class Attack:
  """Projected gradient descent (Madry et al. 2018, https://arxiv.org/abs/1706.06083) and its special cases.

  One step without a random start is FGSM (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572). With momentum it is
  MI-FGSM (Dong et al. 2018, https://arxiv.org/abs/1710.06081: Alg. 1, and Eq. 9 for 'l2').

  Raises:
    UsageError: it lists all values that are out of range.
  """

  norm: str = 'linf'
  steps: int = 20
  step: float | None = None  # step size, as a share of epsilon; None = min(1, 2.5 / steps)
  targeted: bool = False  # whether to approach the label or to leave it
  momentum: float = 0.0  # decay of the accumulated direction
  random_start: bool = False  # start from a uniform draw in the ball; each restart draws anew
  restarts: int = 1  # number of starts; each image keeps its best result
  stop: bool = False  # whether an image stops at its first success

  def __post_init__(self):
    checks = (
      (f'norm is {self.norm!r}; choose one of {", ".join(NORMS)}', self.norm in NORMS),
      (f'steps is {self.steps}; give at least 1', self.steps >= 1),
      (f'step is {self.step}; give a share of epsilon above 0', self.step is None or 0 < self.step < math.inf),
      (f'momentum is {self.momentum}; give 0 or more', 0 <= self.momentum < math.inf),
      (f'restarts is {self.restarts}; give at least 1', self.restarts >= 1),
      ('restarts need random_start: from one start all give the same result', self.random_start or self.restarts == 1),
    )
    words.refuse([f'attack: {what}' for what, right in checks if not right])

  @property
  def share(self) -> float:
    """Step size as a share of epsilon."""
    return min(1.0, 2.5 / self.steps) if self.step is None else self.step


class Attacked(NamedTuple):
  """The result for each image."""

  pixels: jax.Array  # float [b, h, w, 3] in [0, 1]
  success: jax.Array  # bool [b]: the answer is the label (targeted), or is not the label
  steps: jax.Array  # int32 [b]: updates from the best start to these pixels


def perturb(look: Look, attack: Attack) -> Callable[..., Attacked]:
  """Compiles an attack.

  Without `attack.stop` it returns the pixels of the last step, even if an earlier step was better.

  Args:
    look: the model.
    attack: the method.

  Returns:
    A function (variables, pixels, labels, epsilon, key, numbers) -> `Attacked`. `labels` int [b] are the classes to
    reach or to leave. `epsilon` is float [] or [b]; with epsilon 0 an image stays the same bit for bit. `numbers` int
    [b] identify the images: an image's random starts depend on its number, not on its position in the batch.
  """

  @jax.jit
  def attacked(variables, pixels, labels, epsilon, key, numbers) -> Attacked:
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, pixels.dtype), len(pixels))
    keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
    judge = _judge(look, attack.targeted, variables, labels)

    def restart(number, best):
      kept, merit = best
      begin = _start(attack, pixels, epsilon, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))
      found, value = _one_start(attack, judge, pixels, begin, epsilon, kept.success & attack.stop)
      better = jnp.where(kept.success == found.success, value > merit, found.success)
      return jax.tree.map(lambda new, old: jnp.where(_wide(better, new), new, old), (found, value), best)

    nothing = Attacked(pixels, jnp.zeros(len(pixels), bool), jnp.zeros(len(pixels), jnp.int32))
    return jax.lax.fori_loop(0, attack.restarts, restart, (nothing, jnp.full(len(pixels), -jnp.inf, pixels.dtype)))[0]

  return attacked


def descend_to(look: Look, *, steps: int, rate: float, targeted: bool) -> Callable[..., Attacked]:
  """Compiles plain gradient descent on the pixels, until the answer changes.

  Each step computes pixels <- clip(pixels - rate * gradient of the cross-entropy to the label, 0, 1), or + to leave the
  label. No ball limits the change; `smallest` shrinks it afterwards.

  Args:
    look: the model.
    steps: maximum gradient steps.
    rate: step size, for pixels in [0, 1].
    targeted: whether to approach the labels or to leave them.

  Returns:
    A function (variables, pixels, labels int [b]) -> `Attacked`.
  """

  @jax.jit
  def descended(variables, pixels, labels) -> Attacked:
    update = lambda x, slope, _: (jnp.clip(x + rate * slope, 0, 1), None)
    judge, all_run = _judge(look, targeted, variables, labels), jnp.ones(len(pixels), bool)
    return _climb(judge, update, pixels, None, all_run, steps)[0]

  return descended


def smallest(look: Look, *, targeted: bool, halvings: int = 10) -> Callable[..., jax.Array]:
  """Compiles a bisection for the smallest share of each change that still succeeds.

  With many more halvings than the default, the result depends on the last bits of the scores, and so on the batch size.

  Args:
    look: the model.
    targeted: whether the change approaches the labels or leaves them.
    halvings: number of bisection steps; the result is exact to 2 ** -halvings.

  Returns:
    A function (variables, pixels, changed, labels) -> scale float [b]. The attack succeeds at `scale` and fails at
    scale - 2 ** -halvings; the scale is 1 if the whole change fails. `shrunk` makes the pixels.
  """

  @jax.jit
  def least(variables, pixels, changed, labels) -> jax.Array:
    judge = _judge(look, targeted, variables, labels)

    def halve(_, ends):
      low, high = ends
      middle = (low + high) / 2
      success = judge(shrunk(pixels, changed, middle))[1][0]
      return jnp.where(success, low, middle), jnp.where(success, middle, high)

    zeros = jnp.zeros(len(pixels), pixels.dtype)
    return jax.lax.fori_loop(0, halvings, halve, (zeros, zeros + 1))[1]

  return least


def shrunk(pixels: jax.Array, changed: jax.Array, scale: jax.Array) -> jax.Array:
  """Applies a share, float [b], of each change to the pixels."""
  return jnp.clip(pixels + _wide(scale, pixels) * (changed - pixels), 0, 1)


def sizes(pixels: jax.Array, changed: jax.Array) -> dict[str, jax.Array]:
  """The size of each image's change, float [b]: its L2 norm, its largest value, and its mean magnitude."""
  change = jnp.abs(changed - pixels).reshape(len(pixels), -1)
  return {'l2': jnp.sqrt((change**2).sum(1)), 'linf': change.max(1), 'mean_abs': change.mean(1)}


def _judge(look: Look, targeted: bool, variables, labels):
  """x -> (sum of merits, (success, merit)). An attack increases the merit, one number per image."""
  sign = 1 if targeted else -1

  def judge(x):
    seen = look(variables, x)
    merit = sign * log_probability(labels)(seen)
    return merit.sum(), ((seen[LOGITS].argmax(-1) == labels) == targeted, merit)

  return judge


def _one_start(attack, judge, pixels, begin, epsilon, done):
  """(`Attacked` from one start, its merit). Images in `done` stay at their start."""

  def update(x, slope, velocity):
    total = jnp.abs(slope).sum((1, 2, 3), keepdims=True)
    velocity = attack.momentum * velocity + slope / jnp.maximum(total, TINY)
    stride = _wide(attack.share * epsilon, x)
    direction = jnp.sign(velocity) if attack.norm == 'linf' else velocity / jnp.maximum(_length(velocity), TINY)
    return project(attack.norm, x + stride * direction, pixels, epsilon), velocity

  runs = ~done & (epsilon > 0)
  return _climb(judge, update, begin, jnp.zeros_like(pixels), runs, attack.steps, attack.stop)


def _climb(judge, update, begin, memory, runs, steps, stop=True):
  """Makes at most `steps` updates of the images in `runs`. With `stop`, an image stops once it has succeeded."""

  def step(carry):
    number, x, memory, runs, taken = carry
    (_, (success, _)), slope = jax.value_and_grad(judge, has_aux=True)(x)
    runs = runs & ~(success & stop)
    new, memory = update(x, slope, memory)
    return number + 1, jnp.where(_wide(runs, x), new, x), memory, runs, taken + runs

  more = lambda carry: (carry[0] < steps) & carry[3].any()
  _, x, _, _, taken = jax.lax.while_loop(more, step, (0, begin, memory, runs, jnp.zeros(len(begin), jnp.int32)))
  success, merit = judge(x)[1]
  return Attacked(x, success, taken), merit


def _start(attack, pixels, epsilon, keys):
  """The start of an attack: the pixels, or a uniform draw in the ball around them."""
  if not attack.random_start:
    return pixels
  shape, reach = pixels.shape[1:], _wide(epsilon, pixels)
  if attack.norm == 'linf':
    away = jax.vmap(lambda key: jax.random.uniform(key, shape, pixels.dtype, -1, 1))(keys)
  else:  # a uniform direction; the radius has the density of the volume
    away = jax.vmap(lambda key: jax.random.normal(key, shape, pixels.dtype))(keys)
    radius = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (), pixels.dtype))(keys)
    away = away / jnp.maximum(_length(away), TINY) * _wide(radius ** (1 / math.prod(shape)), pixels)
  return project(attack.norm, pixels + reach * away, pixels, epsilon)


def project(norm: str, x: jax.Array, pixels: jax.Array, epsilon: jax.Array) -> jax.Array:
  """Projects onto the ball of radius epsilon [b] around the pixels, and clips to [0, 1]. The result is inside the ball.

  Floating-point rounding could put a sum just outside. For 'linf' it takes the next number inside; for 'l2' it shrinks
  the ball by the largest rounding error of a norm and of every value.

  Args:
    norm: 'linf' or 'l2'.
    x: pixels to project, [b, h, w, 3].
    pixels: centre of the ball, [b, h, w, 3].
    epsilon: radius, [b].

  Returns:
    [b, h, w, 3].
  """
  reach = _wide(epsilon, x)
  if norm == 'linf':
    low = jnp.minimum(pixels, jnp.nextafter(pixels - reach, jnp.inf))
    high = jnp.maximum(pixels, jnp.nextafter(pixels + reach, -jnp.inf))
    return jnp.clip(jnp.clip(x, low, high), 0, 1)
  change, error = x - pixels, jnp.finfo(x.dtype).eps
  radius = jnp.maximum(0, (1 - 32 * error) * reach - error / 2 * math.sqrt(math.prod(x.shape[1:])))
  return jnp.clip(pixels + change * jnp.minimum(1, radius / jnp.maximum(_length(change), TINY)), 0, 1)


def _length(x: jax.Array) -> jax.Array:
  return jnp.sqrt((x**2).sum((1, 2, 3), keepdims=True))


def _wide(values: jax.Array, like: jax.Array) -> jax.Array:
  """Reshapes [b] to [b, 1, ...], with as many axes as `like`."""
  return values.reshape(len(values), *[1] * (like.ndim - 1))
