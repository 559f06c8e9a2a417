"""Dropout and stochastic depth: rates, scale, and masks that depend on key and example alone."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.nn.stochastic import ChannelDropout, Dropout, DropPath

KEY = jax.random.key(0)
X = 1 + jax.random.uniform(KEY, (64, 7, 8))


def run(layer, x, train=True, key=KEY):
  return layer.apply({}, x, train, rngs={'dropout': key})


@pytest.mark.parametrize('layer', [Dropout(0.5), ChannelDropout(0.5), DropPath(0.5)])
def test_identity_asks_for_no_key(layer):
  assert layer.apply({}, X, False) is X
  assert type(layer)(0.0).apply({}, X, True) is X
  with pytest.raises(Exception, match='dropout'):
    layer.apply({}, X, True)


@pytest.mark.parametrize('rate', [0.2, 0.5])
def test_dropout_rate_and_scale(rate):
  y = np.asarray(run(Dropout(rate), X))
  assert np.mean(y == 0) == pytest.approx(rate, abs=0.03)
  np.testing.assert_allclose(y[y != 0], np.asarray(X)[y != 0] / (1 - rate), rtol=1e-6)


def test_drop_path_takes_whole_examples():
  x = jnp.ones((400, 2, 3))
  y = np.asarray(run(DropPath(0.25), x))
  assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
  assert (y == y[:, :1, :1]).all()
  assert np.mean(y[:, 0, 0] == 0) == pytest.approx(0.25, abs=0.07)


def test_channel_dropout_takes_whole_channels_of_an_example():
  x = jnp.ones((50, 3, 2, 20))
  y = np.asarray(run(ChannelDropout(0.25), x))
  assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
  assert (y == y[:, :1, :1]).all()
  assert np.mean(y[:, 0, 0] == 0) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize('layer', [Dropout(0.5), ChannelDropout(0.5), DropPath(0.5)])
def test_masks_follow_key_and_position(layer):
  y = run(layer, X)
  assert np.array_equal(y, run(layer, X))
  assert np.array_equal(y[:16], run(layer, X[:16]))  # an example's mask does not depend on the batch's size
  assert not np.array_equal(y, run(layer, X, key=jax.random.key(1)))
  assert len({np.asarray(row != 0).tobytes() for row in y}) > 1


@pytest.mark.parametrize('layer', [Dropout(0.5), ChannelDropout(0.5), DropPath(0.5)])
def test_dtype_is_kept(layer):
  y = run(layer, X.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16 and np.array_equal(y == 0, run(layer, X) == 0)


@pytest.mark.parametrize('rate', [1.0, -0.1])
def test_rate_out_of_range(rate):
  with pytest.raises(ValueError, match=f'rate {rate}'):
    run(Dropout(rate), X)


DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tlx.nn.devices import AXIS
from tlx.nn.stochastic import ChannelDropout, Dropout, DropPath
assert jax.device_count() == 4
x = 1 + jax.random.uniform(jax.random.key(0), (16, 5, 3))
placed = jax.device_put(x, NamedSharding(Mesh(jax.devices(), AXIS), P(AXIS)))
for layer in (Dropout(0.5), DropPath(0.5)):
  f = lambda x, key: layer.apply({}, x, True, rngs={'dropout': key})
  one = np.asarray(f(x, jax.random.key(7)))
  assert np.array_equal(one, jax.jit(f)(placed, jax.random.key(7)))
  parts = jax.pmap(f, AXIS, in_axes=(0, None))(x.reshape(4, 4, 5, 3), jax.random.key(7))
  assert np.array_equal(one, parts.reshape(x.shape))
"""


def test_masks_are_the_same_on_four_devices(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  subprocess.run([sys.executable, '-c', DEVICES], check=True, cwd=pathlib.Path(__file__).parents[2])
