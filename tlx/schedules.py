"""Learning-rate schedules over steps, built on optax's; durations become steps here, once."""

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
  """Ignores end."""
  return optax.constant_schedule(peak)


def _step(peak, length, end):
  """A tenth after each third, never below end (He et al. 2016, https://arxiv.org/abs/1512.03385, Sec. 4)."""
  fall = optax.piecewise_constant_schedule(peak, {math.ceil(length / 3): 0.1, math.ceil(2 * length / 3): 0.1})
  return lambda count: jnp.maximum(fall(count), end)


def _polynomial(peak, length, end):
  """Power 2."""
  return optax.polynomial_schedule(peak, end, 2, length)


def _rsqrt(peak, length, end):
  """Inverse square root of the step, then linearly to end over the last fifth of the run.

  peak / sqrt(1 + count / timescale), timescale = a tenth of the run (Zhai et al. 2022, App. B,
  https://arxiv.org/abs/2106.04560, there fixed numbers of steps).
  """
  timescale, cooldown = max(1, length / 10), max(1, length // 5)

  def schedule(count):
    rate = peak / jnp.sqrt(1 + jnp.minimum(count, length) / timescale)
    return end + jnp.maximum(rate - end, 0) * jnp.clip((length - count) / cooldown, 0, 1)

  return schedule


def _linear_rise(peak, length):
  """From one part of length + 1, as a first step at rate zero would be wasted."""
  return optax.linear_schedule(peak / (length + 1), peak, length)


def _cosine_rise(peak, length):
  """From a 25th of the peak, the start of the one-cycle policy."""
  return optax.cosine_decay_schedule(peak / 25, length, alpha=25.0)


# name -> (rise, fall, share of the steps that the rise takes if nothing is asked for)
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
  """The schedule `name` as a function from update (0 first, may be traced) to learning rate.

  It rises to peak at update `warmup_steps` and falls to end at update `steps`, one past the last, where it stays.
  A warm-up that is as long as the run or longer is cut to steps - 1, so that the last update has the peak.
  Raises UsageError for an unknown name, and for numbers that make no schedule.
  """
  if name not in SCHEDULES:
    close = words.near(name, SCHEDULES)[:1]
    hint = f', did you mean {close[0]!r}?' if close else ';'
    raise UsageError(f'schedule: no {name!r}{hint} choose from {", ".join(SCHEDULES)}')
  problems = [
    f'schedule {name}: {what}'
    for what, wrong in (
      (f'{steps} steps; at least 1 is needed', steps < 1),
      (f'{warmup_steps} warm-up steps; give 0 or more', warmup_steps < 0),
      (f'peak {peak} and end {end}; give 0 <= end <= peak', not 0 <= end <= peak),
    )
    if wrong
  ]
  if problems:
    raise UsageError('\n'.join(problems))
  rise, fall, share = SCHEDULES[name]
  warmup = min(warmup_steps or int(share * steps), steps - 1)
  falling = fall(peak, steps - warmup, end)
  return optax.join_schedules([rise(peak, warmup), falling], [warmup]) if warmup else falling


def steps(duration: str | float, examples: int, batch_size: int) -> int:
  """Updates in a duration: '10 epochs', '5000 steps' or '1e6 examples'; a bare number counts epochs.

  Rounded up, so that a part of a batch is an update and every example of the last epoch is seen; 0 stays 0.
  Raises UsageError for anything else.
  """
  match = re.fullmatch(r'\s*(\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*(epoch|step|example|)s?\s*', str(duration).lower())
  if not match or examples < 1 or batch_size < 1:
    raise UsageError(
      f'duration {duration!r} over {examples} examples in batches of {batch_size}: '
      "give '10 epochs', '5000 steps' or '1e6 examples', and at least one example a batch"
    )
  unit = {'step': 1, 'example': 1 / batch_size, 'epoch': examples / batch_size, '': examples / batch_size}[match[2]]
  return math.ceil(float(match[1]) * unit - 1e-6)  # 0.1 epochs of 30 examples are 3, not 3.0000000000000004
