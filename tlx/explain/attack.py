"""Adversarial examples: changes of the pixels, each too small to see, that change a model's answer.

All of it is pure and batched: no image's change depends on the others beside it. Pixels are float [b, h, w, 3] in
[0, 1] and stay there; epsilon is in these units, the greatest change of a value ('linf') or the length of the whole
change ('l2'). The change is kept within epsilon as the numbers are, not merely up to rounding.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tlx.explain.objectives import log_probability
from tlx.explain.outputs import LOGITS, Look
from tlx.types import UsageError

NORMS = ('linf', 'l2')
TINY = 1e-12  # below it a length is taken for it, so that nothing is divided by zero


@dataclasses.dataclass(frozen=True)
class Attack:
  """Projected gradient descent (Madry et al. 2018, https://arxiv.org/abs/1706.06083) and what it contains.

  One step without a random start is FGSM (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572); with momentum it is
  MI-FGSM (Dong et al. 2018, Alg. 1, https://arxiv.org/abs/1710.06081), for 'l2' its Eq. 9. Raises UsageError for values
  out of range, all of them at once.
  """

  norm: str = 'linf'
  steps: int = 20
  step: float | None = None  # length of one, as a share of epsilon; None: 2.5 / steps, but not above 1
  targeted: bool = False  # towards a label rather than away from it
  momentum: float = 0.0  # share of the direction so far that a step keeps
  random_start: bool = False  # anywhere in the ball, evenly; each restart elsewhere
  restarts: int = 1  # starts in all; the best is kept for each image
  stop: bool = False  # an image that has succeeded stays as it is, and all ends with the last

  def __post_init__(self):
    checks = (
      (f'norm is {self.norm!r}; there are {", ".join(NORMS)}', self.norm in NORMS),
      (f'steps is {self.steps}; at least 1 is needed', self.steps >= 1),
      (f'step is {self.step}; give a share of epsilon above 0', self.step is None or 0 < self.step < math.inf),
      (f'momentum is {self.momentum}; give 0 or more', 0 <= self.momentum < math.inf),
      (f'restarts is {self.restarts}; at least 1 is needed', self.restarts >= 1),
      ('restarts need random_start: from one place all find the same', self.random_start or self.restarts == 1),
    )
    if problems := [f'attack: {what}' for what, right in checks if not right]:
      raise UsageError('\n'.join(problems))

  @property
  def share(self) -> float:
    """Of epsilon, that one step goes."""
    return min(1.0, 2.5 / self.steps) if self.step is None else self.step


class Attacked(NamedTuple):
  """What became of each image."""

  pixels: jax.Array  # float [b, h, w, 3] in [0, 1]
  success: jax.Array  # bool [b]: the answer is the label (targeted), or no longer the label
  steps: jax.Array  # int32 [b]: updates behind these pixels, of the start that was kept


def perturb(look: Look, attack: Attack) -> Callable[..., Attacked]:
  """(variables, pixels, labels int [b], epsilon, key, numbers int [b]) -> `Attacked`, as one compiled program.

  epsilon: float [] or [b]; where it is 0, nothing changes, bit for bit. numbers: what each image draws its starts by,
  so that neither its place in a batch nor the batch's size matters. labels: to get away from, or to reach.
  Without `stop` the last step's pixels are returned, whether or not an earlier step's were better.
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
  """(variables, pixels, labels) -> `Attacked`: plain gradient descent on the pixels until the answer is another.

  pixels <- clip(pixels - rate * gradient of the cross-entropy to the label, 0, 1), or + away from it; at most `steps`
  times. No ball holds the change: `smallest` shrinks it afterwards.
  """

  @jax.jit
  def descended(variables, pixels, labels) -> Attacked:
    update = lambda x, slope, _: (jnp.clip(x + rate * slope, 0, 1), None)
    judge, all_run = _judge(look, targeted, variables, labels), jnp.ones(len(pixels), bool)
    return _climb(judge, update, pixels, None, all_run, steps)[0]

  return descended


def smallest(look: Look, *, targeted: bool, halvings: int = 10) -> Callable[..., jax.Array]:
  """(variables, pixels, changed, labels) -> scale float [b]: the least share of each change that still succeeds.

  By bisection between 0 and 1, to 2 ** -halvings: at `scale` the answer is as wanted, at scale - 2 ** -halvings it is
  not. The whole change has to succeed, or the scale is 1. `shrunk` makes the pixels. With many more halvings than the
  default the answer hangs on the last bits of the scores, and is another in a batch of another size.
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
  """Pixels with a share, float [b], of their change."""
  return jnp.clip(pixels + _wide(scale, pixels) * (changed - pixels), 0, 1)


def sizes(pixels: jax.Array, changed: jax.Array) -> dict[str, jax.Array]:
  """The change of each image, float [b]: its length, its greatest value, and the mean of its magnitudes."""
  change = jnp.abs(changed - pixels).reshape(len(pixels), -1)
  return {'l2': jnp.sqrt((change**2).sum(1)), 'linf': change.max(1), 'mean_abs': change.mean(1)}


def _judge(look: Look, targeted: bool, variables, labels):
  """x -> (merit summed, (success, merit)); the merit is what an attack increases, one number an image."""
  sign = 1 if targeted else -1

  def judge(x):
    seen = look(variables, x)
    merit = sign * log_probability(labels)(seen)
    return merit.sum(), ((seen[LOGITS].argmax(-1) == labels) == targeted, merit)

  return judge


def _one_start(attack, judge, pixels, begin, epsilon, done):
  """(`Attacked` from one start, its merit); `done` images stay where they begin."""

  def update(x, slope, velocity):
    total = jnp.abs(slope).sum((1, 2, 3), keepdims=True)
    velocity = attack.momentum * velocity + slope / jnp.maximum(total, TINY)
    stride = _wide(attack.share * epsilon, x)
    direction = jnp.sign(velocity) if attack.norm == 'linf' else velocity / jnp.maximum(_length(velocity), TINY)
    return project(attack.norm, x + stride * direction, pixels, epsilon), velocity

  runs = ~done & (epsilon > 0)
  return _climb(judge, update, begin, jnp.zeros_like(pixels), runs, attack.steps, attack.stop)


def _climb(judge, update, begin, memory, runs, steps, stop=True):
  """At most `steps` updates of the images that run; with `stop` those that have succeeded run no more."""

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
  """Where an attack begins: at the pixels, or evenly anywhere in the ball around them."""
  if not attack.random_start:
    return pixels
  shape, reach = pixels.shape[1:], _wide(epsilon, pixels)
  if attack.norm == 'linf':
    away = jax.vmap(lambda key: jax.random.uniform(key, shape, pixels.dtype, -1, 1))(keys)
  else:  # a direction, by a radius that gives every volume its share
    away = jax.vmap(lambda key: jax.random.normal(key, shape, pixels.dtype))(keys)
    radius = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (), pixels.dtype))(keys)
    away = away / jnp.maximum(_length(away), TINY) * _wide(radius ** (1 / math.prod(shape)), pixels)
  return project(attack.norm, pixels + reach * away, pixels, epsilon)


def project(norm: str, x: jax.Array, pixels: jax.Array, epsilon: jax.Array) -> jax.Array:
  """The nearest point of the ball of radius epsilon [b] around the pixels, then clipped to [0, 1], which stays inside.

  A sum is rounded to the nearest number, which may lie outside: for 'linf' the next one within is taken, and for 'l2'
  the ball is smaller by what the rounding of a length, and of every value, can add.
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
  """[b] -> [b, 1, ...], as many axes as `like` has."""
  return values.reshape(len(values), *[1] * (like.ndim - 1))
