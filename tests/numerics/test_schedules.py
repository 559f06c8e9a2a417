"""Schedules: end points, shapes against closed forms, durations, and what a misspelt name says."""

import math

import jax
import numpy as np
import pytest

from tlx import schedules
from tlx.types import UsageError


def values(name, steps, warmup=0, end=0.0, peak=0.5):
  return np.array(jax.vmap(schedules.make(name, peak, steps, warmup, end))(np.arange(steps + 1)))


@pytest.mark.parametrize('name', schedules.SCHEDULES)
@pytest.mark.parametrize(('steps', 'warmup'), [(1, 0), (1, 5), (2, 2), (3, 1), (10, 10), (100, 0), (100, 20), (7, 100)])
def test_rises_to_the_peak_and_never_rises_again(name, steps, warmup):
  rates = values(name, steps, warmup, end=0.01)
  assert np.isfinite(rates).all()
  top = schedules.steps(f'{warmup} steps', 1, 1)
  top = min(top or (int(0.3 * steps) if name == 'one_cycle' else 0), steps - 1)
  assert rates[top] == pytest.approx(0.5, rel=1e-6) == rates.max()
  assert (np.diff(rates[: top + 1]) > 0).all()
  assert (np.diff(rates[top:]) <= 1e-8).all()
  assert rates[0] > 0
  if name not in ('constant', 'step'):
    assert rates[-1] == pytest.approx(0.01, abs=1e-7)


def test_closed_forms():
  t = np.arange(101)
  np.testing.assert_allclose(values('cosine', 100), 0.25 * (1 + np.cos(np.pi * t / 100)), atol=1e-7)
  np.testing.assert_allclose(values('cosine', 100, end=0.1), 0.1 + 0.4 * (1 + np.cos(np.pi * t / 100)) / 2, atol=1e-7)
  np.testing.assert_allclose(values('linear', 100, end=0.1), 0.5 - 0.4 * t / 100, atol=1e-7)
  np.testing.assert_allclose(values('polynomial', 100), 0.5 * (1 - t / 100) ** 2, atol=1e-7)
  np.testing.assert_allclose(values('constant', 100), np.full(101, 0.5))
  thirds = values('step', 99)[[0, 32, 33, 65, 66, 98]]
  np.testing.assert_allclose(thirds, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6)
  np.testing.assert_allclose(values('rsqrt', 100)[:81], 0.5 / np.sqrt(1 + t[:81] / 10), rtol=1e-6)
  np.testing.assert_allclose(values('linear', 100, 20)[:21], 0.5 * (t[:21] + 1) / 21, rtol=1e-6)
  cycle = values('one_cycle', 100, 20)
  np.testing.assert_allclose(cycle[:21], 0.02 + 0.48 * (1 - np.cos(np.pi * t[:21] / 20)) / 2, atol=1e-6)
  assert np.argmax(values('one_cycle', 100)) == 30


def test_a_misspelt_name_is_told_the_right_one():
  with pytest.raises(UsageError, match=r"no 'cosin', did you mean 'cosine'\? choose from cosine, linear"):
    schedules.make('cosin', 0.1, 10)
  with pytest.raises(UsageError, match='choose from'):
    schedules.make('zzz', 0.1, 10)
  with pytest.raises(UsageError) as caught:
    schedules.make('cosine', 0.1, 0, -1, end=0.2)
  assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
  ('duration', 'expected'),
  [
    *(('10 epochs', 157), (10, 157), ('1 epoch', 16), (0.5, 8), ('0 epochs', 0), ('0.1 epochs', 2), (1.0, 16)),
    *(('500 steps', 500), ('500steps', 500), ('1e3 examples', 16), ('64 examples', 1), ('65 examples', 2)),
  ],
)
def test_durations(duration, expected):
  assert schedules.steps(duration, 1000, 64) == expected


def test_durations_do_not_round_up_by_float_error():
  assert schedules.steps('0.1 epochs', 30, 1) == 3
  assert all(schedules.steps(n, 1000 * 7, 7) == 1000 * n for n in range(1, 200))


@pytest.mark.parametrize('duration', ['ten epochs', '-3 epochs', '3 days', '', math.inf, math.nan])
def test_a_wrong_duration_says_what_is_possible(duration):
  with pytest.raises(UsageError, match="give '10 epochs'"):
    schedules.steps(duration, 1000, 64)
