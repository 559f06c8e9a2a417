"""BatchNorm: its statistics, its dtypes, and that devices sharing a batch see all of it."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment
from flax import errors

from tlx.nn.norm import BatchNorm

KEY = jax.random.key(0)
X = 3 + 2 * jax.random.normal(KEY, (4, 5, 6, 3))


def start(train=False):
  return BatchNorm().init(KEY, X, train)


def test_train_normalises_and_moves_statistics_by_the_unbiased_variance():
  y, moved = BatchNorm().apply(start(), X, True, mutable='batch_stats')
  np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-4)
  stats = moved['batch_stats']
  np.testing.assert_allclose(stats['mean'], 0.1 * np.mean(X, (0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(stats['var'], 0.9 + 0.1 * np.var(X, (0, 1, 2), ddof=1), rtol=1e-5)


@pytest.mark.parametrize('train', [False, True])
def test_initial_statistics_are_untouched_by_init(train):
  stats = start(train)['batch_stats']
  assert not stats['mean'].any() and (stats['var'] == 1).all()


def test_eval_leaves_statistics_bitwise_alone():
  variables = BatchNorm().apply(start(), X, True, mutable=['params', 'batch_stats'])[1]
  variables = {'params': start()['params'], 'batch_stats': variables['batch_stats']}
  y, after = BatchNorm().apply(variables, X, False, mutable='batch_stats')
  for name, value in variables['batch_stats'].items():
    assert np.array_equal(after['batch_stats'][name], value)
  stats = variables['batch_stats']
  np.testing.assert_allclose(y, (X - stats['mean']) / np.sqrt(stats['var'] + 1e-5), rtol=1e-5, atol=1e-5)


def test_train_with_frozen_statistics_is_refused():
  with pytest.raises(errors.ModifyScopeVariableError):
    BatchNorm().apply(start(), X, True)


@pytest.mark.parametrize('train', [False, True])
def test_bfloat16_input_keeps_float32_statistics(train):
  y, after = BatchNorm().apply(start(), X.astype(jnp.bfloat16), train, mutable='batch_stats')
  exact, _ = BatchNorm().apply(start(), X, train, mutable='batch_stats')
  assert y.dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves(after)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.04)


def test_a_large_mean_keeps_its_variance():
  y, _ = BatchNorm().apply(start(), X + 3000, True, mutable='batch_stats')
  np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)


def test_one_value_per_channel():
  y, moved = BatchNorm().apply(start(), X[:1, :1, :1], True, mutable='batch_stats')
  assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves((y, moved)))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tlx.nn.devices import AXIS, device_count, example_positions, mean_over_devices
from tlx.nn.norm import BatchNorm
assert jax.device_count() == 4
x = 3 + jax.random.normal(jax.random.key(0), (8, 5, 5, 3)) * jnp.arange(1.0, 9)[:, None, None, None]
weight = jax.random.normal(jax.random.key(1), x.shape)
variables = BatchNorm().init(jax.random.key(0), x, False)

def step(params, x, weight):
  def loss(params, x):
    y, moved = BatchNorm().apply({**variables, 'params': params}, x, True, mutable='batch_stats')
    return (y * weight).mean(), (y, moved)
  (by_params, by_x), (y, moved) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
  return y, moved, mean_over_devices(by_params), by_x

params = variables['params']
y, moved, by_params, by_x = jax.jit(step)(params, x, weight)

def close(a, b):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), a, b)

split = lambda a: a.reshape(4, 2, *a.shape[1:])
parts = jax.pmap(step, AXIS, in_axes=(None, 0, 0))(params, split(x), split(weight))
close(parts[0].reshape(x.shape), y)
close(parts[3].reshape(x.shape) / 4, by_x)  # each device's loss is the mean over its own quarter
for i in range(4):
  close(jax.tree.map(lambda a: a[i], parts[1:3]), (moved, by_params))

mesh = Mesh(jax.devices(), AXIS)
place = lambda a: jax.device_put(a, NamedSharding(mesh, P(AXIS)))
close(jax.jit(step)(params, place(x), place(weight)), (y, moved, by_params, by_x))
assert jax.jit(step)(params, place(x), place(weight))[0].sharding.spec[0] == AXIS

def apply(x):
  return BatchNorm().apply(variables, x, True, mutable='batch_stats')
close(jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=P(AXIS), out_specs=(P(AXIS), P())))(x), (y, moved))

positions = jax.pmap(lambda x: example_positions(x.shape[0]), AXIS)(split(x))
assert positions.reshape(-1).tolist() == example_positions(8).tolist() == list(range(8))
assert positions.dtype == example_positions(8).dtype == jnp.int32
assert device_count() == 1 and mean_over_devices(x) is x
assert jax.pmap(lambda x: x * 0 + device_count(), AXIS)(jnp.zeros(4)).tolist() == [4.0] * 4
assert jax.pmap(lambda x: mean_over_devices(x), 'other')(jnp.arange(4.0)).tolist() == [0.0, 1.0, 2.0, 3.0]
"""


def test_four_devices_see_the_whole_batch():
  subprocess.run([sys.executable, '-c', DEVICES], check=True, env=environment(4))
