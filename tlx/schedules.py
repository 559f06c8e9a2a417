"""Learning-rate schedules over steps, built from optax's. Durations become steps here and nowhere else."""

import math
import re

import jax.numpy as jnp
import optax

from tlx import words
from tlx.types import UsageError


def _cosine(peak, length, end):
  """Half a cosine (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983)."""
  fall = optax.cosine_decay_schedule(1.0, length)
  return lambda count: end + (peak - end) * fall(count)


def _linear(peak, length, end):
  return optax.linear_schedule(peak, end, length)


def _constant(peak, length, end):
  """A constant; `end` has no effect."""
  return optax.constant_schedule(peak)


def _step(peak, length, end):
  """Multiplies the rate by 0.1 after each third of the run, down to `end` at the least.

  (He et al. 2016, https://arxiv.org/abs/1512.03385, Sec. 4.)
  """
  fall = optax.piecewise_constant_schedule(peak, {math.ceil(length / 3): 0.1, math.ceil(2 * length / 3): 0.1})
  return lambda count: jnp.maximum(fall(count), end)


def _polynomial(peak, length, end):
  """A polynomial of power 2."""
  return optax.polynomial_schedule(peak, end, 2, length)


def _rsqrt(peak, length, end):
  """The inverse square root of the step, and a linear cooldown to `end` over the last fifth of the run.

  The rate is peak / sqrt(1 + count / timescale) with timescale = a tenth of the run (Zhai et al. 2022, App. B,
  https://arxiv.org/abs/2106.04560, who use fixed numbers of steps).
  """
  timescale, cooldown = max(1, length / 10), max(1, length // 5)

  def schedule(count):
    rate = peak / jnp.sqrt(1 + jnp.minimum(count, length) / timescale)
    return end + jnp.maximum(rate - end, 0) * jnp.clip((length - count) / cooldown, 0, 1)

  return schedule


def _linear_rise(peak, length):
  """Starts at peak / (length + 1), because a first step at rate zero would be wasted."""
  return optax.linear_schedule(peak / (length + 1), peak, length)


def _cosine_rise(peak, length):
  """Starts at a 25th of the peak, as the one-cycle policy does."""
  return optax.cosine_decay_schedule(peak / 25, length, alpha=25.0)


# name -> (warm-up, decay, default share of the steps for the warm-up)
SCHEDULES = {
  'cosine': (_linear_rise, _cosine, 0.0),
  'linear': (_linear_rise, _linear, 0.0),
  'constant': (_linear_rise, _constant, 0.0),
  'step': (_linear_rise, _step, 0.0),
  'polynomial': (_linear_rise, _polynomial, 0.0),
  'one_cycle': (_cosine_rise, _cosine, 0.3),  # Smith & Topin 2018, https://arxiv.org/abs/1708.07120
  'rsqrt': (_linear_rise, _rsqrt, 0.0),
}


def make(name: str, peak: float, steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
  """Makes a learning-rate schedule.

  It rises to `peak` at step `warmup_steps` and falls to `end` at step `steps`, one past the last, where it stays.

  Args:
    name: a key of SCHEDULES.
    peak: maximum learning rate.
    steps: number of steps of the run.
    warmup_steps: steps of the warm-up; at most steps - 1 take effect, so that the last step has the peak.
    end: final learning rate.

  Returns:
    A function from the step (0 first; may be traced) to the learning rate.

  Raises:
    UsageError: for an unknown name, and for numbers that do not make a schedule.

  Examples:
    >>> schedule = make('cosine', peak=0.1, steps=100, warmup_steps=10)
    >>> [round(float(schedule(step)), 4) for step in (0, 10, 55, 100)]
    [0.0091, 0.1, 0.05, 0.0]
  """
  if name not in SCHEDULES:
    close = words.near(name, SCHEDULES)[:1]
    hint = f', did you mean {close[0]!r}?' if close else ';'
    raise UsageError(f'schedule: no {name!r}{hint} choose from {", ".join(SCHEDULES)}')
  problems = [
    f'schedule {name}: {what}'
    for what, wrong in (
      (f'{steps} steps; give at least 1', steps < 1),
      (f'{warmup_steps} warm-up steps; give 0 or more', warmup_steps < 0),
      (f'peak {peak} and end {end}; give 0 <= end <= peak', not 0 <= end <= peak),
    )
    if wrong
  ]
  words.refuse(problems)
  rise, fall, share = SCHEDULES[name]
  warmup = min(warmup_steps or int(share * steps), steps - 1)
  falling = fall(peak, steps - warmup, end)
  return optax.join_schedules([rise(peak, warmup), falling], [warmup]) if warmup else falling


def steps(duration: str | float, examples: int, batch_size: int) -> int:
  """Converts a duration to steps, rounded up, so that the last, smaller batch of an epoch counts as a step.

  Args:
    duration: '10 epochs', '5000 steps' or '1e6 examples'; a bare number counts epochs.
    examples: size of the training split.
    batch_size: examples per step.

  Returns:
    Number of steps; 0 stays 0.

  Raises:
    UsageError: for any other duration, and unless both sizes are at least 1.

  Examples:
    >>> steps('2 epochs', examples=1000, batch_size=64)
    32
  """
  match = re.fullmatch(r'\s*(\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*(epoch|step|example|)s?\s*', str(duration).lower())
  if not match or examples < 1 or batch_size < 1:
    raise UsageError(
      f'duration {duration!r} over {examples} examples in batches of {batch_size}: '
      "give '10 epochs', '5000 steps' or '1e6 examples', and at least one example per batch"
    )
  unit = {'step': 1, 'example': 1 / batch_size, 'epoch': examples / batch_size, '': examples / batch_size}[match[2]]
  return math.ceil(float(match[1]) * unit - 1e-6)  # the 1e-6 absorbs rounding: 0.1 * 30 = 3.0000000000000004
