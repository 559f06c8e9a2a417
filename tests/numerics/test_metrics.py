"""Metrics against scikit-learn and by hand; merging and padding change nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tlx.evaluate.exact import merge
from tlx.tasks.classification import metrics


def random_sums(seed=0, count=300, classes=7, absent=()):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(count, classes)).astype(np.float32) * 2
  labels = rng.choice([c for c in range(classes) if c not in absent], size=count).astype(np.int32)
  logits[:, list(absent)] -= 100  # neither in the truth nor predicted
  losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
  return logits, labels, np.ones(count, bool), losses


def assert_same(a, b, tolerance=1e-6):
  assert a.keys() == b.keys()
  for name in a:
    if name == 'per_class':
      for x, y in zip(a[name], b[name], strict=True):
        assert x == pytest.approx(y, abs=tolerance)
    else:
      assert a[name] == pytest.approx(b[name], abs=tolerance), name


@pytest.mark.parametrize('absent', [(), (2,), (0, 6)])
def test_equals_scikit_learn(absent):
  sklearn = pytest.importorskip('sklearn.metrics')
  logits, labels, mask, losses = random_sums(absent=absent)
  result = metrics.Sums.of(logits, labels, mask, losses).compute()
  predictions = logits.argmax(axis=1)
  for average in ('macro', None):
    expected = sklearn.precision_recall_fscore_support(
      labels, predictions, average=average, labels=range(7), zero_division=0
    )
    for i, name in enumerate(('precision', 'recall', 'f1', 'support')):
      if average is None:
        np.testing.assert_allclose([row[name] for row in result['per_class']], expected[i], atol=1e-12)
      elif name != 'support':
        assert result[f'macro_{name}'] == pytest.approx(expected[i], abs=1e-12)
  assert result['accuracy'] == pytest.approx(sklearn.accuracy_score(labels, predictions))
  expected = sklearn.top_k_accuracy_score(labels, logits, k=5, labels=range(7))
  assert result['top5_accuracy'] == pytest.approx(expected)
  assert result['loss'] == pytest.approx(losses.astype(np.float64).mean(), rel=1e-5)
  assert result['count'] == 300
  confusion = metrics.Sums.of(logits, labels, mask, losses).confusion
  np.testing.assert_array_equal(confusion, sklearn.confusion_matrix(labels, predictions, labels=range(7)))


def test_calibration_error_is_the_definition():
  logits, labels, mask, losses = random_sums(seed=1, count=500)
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  confidence, correct = p.max(1), p.argmax(1) == labels
  error = 0.0
  for i in range(15):
    inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
    if inside.any():
      error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
  result = metrics.Sums.of(logits, labels, mask, losses).compute()
  assert error > 0.05
  assert result['calibration_error'] == pytest.approx(error, abs=1e-6)


def test_merging_and_padding_change_nothing():
  logits, labels, mask, losses = random_sums()
  whole = jax.device_get(metrics.Sums.of(logits, labels, mask, losses))
  parts = None
  for start in range(0, 300, 128):
    batch = [x[start : start + 128] for x in (logits, labels, mask, losses)]
    missing = 128 - len(batch[0])
    pads = (np.nan, -1, False, np.nan)
    batch = [
      np.concatenate([x, np.full((missing, *x.shape[1:]), v, x.dtype)]) for x, v in zip(batch, pads, strict=True)
    ]
    part = jax.device_get(jax.jit(metrics.Sums.of)(*batch))
    parts = part if parts is None else merge(parts, part)
  assert parts.loss.dtype == np.float64
  assert_same(whole.compute(), parts.compute())
  stacked = jax.tree.map(lambda x: x.reshape(2, 150, *x.shape[1:]), (logits, labels, mask, losses))
  summed = jax.vmap(lambda *b: jax.lax.psum(metrics.Sums.of(*b), 'd'), axis_name='d')(*stacked)
  assert_same(whole.compute(), jax.tree.map(lambda x: x[0], summed).compute())


def test_no_example_gives_zeros_not_nan():
  empty = metrics.Sums.of(jnp.ones((4, 3)), jnp.zeros(4, int), jnp.zeros(4, bool), jnp.ones(4)).compute()
  assert empty.pop('per_class') == [{'precision': 0, 'recall': 0, 'f1': 0, 'support': 0}] * 3
  assert set(empty.values()) == {0}
  assert not any(math.isnan(value) for value in empty.values())


def test_fewer_than_five_classes_and_half_precision():
  logits, labels = jnp.array([[0.0, 3], [2, 1], [0, 1]], jnp.bfloat16), jnp.array([1, 0, 0])
  result = metrics.Sums.of(logits, labels, jnp.ones(3, bool), jnp.ones(3)).compute()
  assert result['accuracy'] == pytest.approx(2 / 3)
  assert result['top5_accuracy'] == 1
