"""The classification task's losses against plain NumPy, and PyTorch's where it defines the same thing (parity)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import task as classifier

from tlx.tasks.classification.task import balanced_weights
from tlx.types import UsageError

LOGITS = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32) * 3
LABELS = np.random.default_rng(1).integers(0, 5, 16)
WEIGHTS = (0.5, 1.0, 2.0, 0.0, 1.5)


def log_softmax(x):
  x = x.astype(np.float64)
  return x - x.max(1, keepdims=True) - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))


def losses(task, logits=LOGITS, labels=LABELS):
  return np.asarray(task.losses(jnp.asarray(logits), task.targets(jnp.asarray(labels))))


def test_targets_are_smoothed_and_sum_to_one():
  targets = np.asarray(classifier(5, label_smoothing=0.1).targets(LABELS))
  assert targets.dtype == np.float32
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(targets, 0.9 * np.eye(5)[LABELS] + 0.02, atol=1e-7)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_losses_equal_the_formula(smoothing, gamma, weights):
  log_p, t = log_softmax(LOGITS), (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5
  expected = -(t * (1 - np.exp(log_p)) ** gamma * log_p).sum(1) * (t @ np.array(weights or np.ones(5)))
  actual = losses(classifier(5, label_smoothing=smoothing, focal_gamma=gamma, class_weights=weights))
  assert actual.shape == (16,)
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


def test_half_precision_logits_give_float32_losses():
  half = jnp.asarray(LOGITS, jnp.bfloat16)
  actual = losses(classifier(5), half)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, losses(classifier(5), half.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
def test_gradients_are_finite_where_the_answer_is_certain(gamma):
  task = classifier(3, focal_gamma=gamma)
  logits = jnp.array([[300.0, 0, 0], [0, 300.0, 0], [-300.0, 300, 300]])
  gradient = jax.grad(lambda x: task.losses(x, task.targets(jnp.zeros(3, int))).sum())(logits)
  assert np.isfinite(gradient).all()
  assert abs(gradient[1, 0]) > 0.9  # certain and wrong still learns


def test_metrics_use_the_plain_loss():
  task = classifier(5, label_smoothing=0.3, focal_gamma=2, class_weights=WEIGHTS)
  mask = np.arange(16) < 10
  target = {'label': np.where(mask, LABELS, -1)}
  result = jax.jit(task.evaluate)(LOGITS, target, mask)[0].compute()
  expected = -log_softmax(LOGITS)[np.arange(16), LABELS][:10].mean()
  assert result['loss'] == pytest.approx(expected, rel=1e-5)
  assert result['count'] == 10


def test_balanced_weights():
  sklearn = pytest.importorskip('sklearn.utils.class_weight')
  labels = np.repeat([0, 1, 3], [10, 30, 5])
  weights = balanced_weights((10, 30, 0, 5))
  np.testing.assert_allclose(
    [weights[c] for c in (0, 1, 3)], sklearn.compute_class_weight('balanced', classes=np.array([0, 1, 3]), y=labels)
  )
  assert weights[2] == 0
  assert np.array(weights)[labels].mean() == pytest.approx(1)
  assert balanced_weights((0, 0)) == (0.0, 0.0)


def test_wrong_options_are_all_named():
  with pytest.raises(UsageError) as caught:
    classifier(3, label_smoothing=2, focal_gamma=-1, class_weights=(1, 2))
  assert len(str(caught.value).splitlines()) == 3
  assert hash(classifier(2, class_weights=[1, 2])) == hash(classifier(2, class_weights=(1.0, 2.0)))


@pytest.mark.parity
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_equals_pytorch(smoothing):
  torch = pytest.importorskip('torch')
  reference = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction='none')
  expected = reference(torch.tensor(LOGITS), torch.tensor(LABELS)).numpy()
  np.testing.assert_allclose(losses(classifier(5, label_smoothing=smoothing)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_class_weights_equal_pytorch_up_to_its_divisor():
  torch = pytest.importorskip('torch')
  task, weight = classifier(5, class_weights=WEIGHTS), torch.tensor(WEIGHTS)
  reference = torch.nn.CrossEntropyLoss(weight=weight, reduction='none')
  expected = reference(torch.tensor(LOGITS), torch.tensor(LABELS)).numpy()
  np.testing.assert_allclose(losses(task), expected, rtol=1e-5, atol=1e-6)
  mean = torch.nn.CrossEntropyLoss(weight=weight)(torch.tensor(LOGITS), torch.tensor(LABELS)).item()
  assert losses(task).sum() / np.array(WEIGHTS)[LABELS].sum() == pytest.approx(mean, rel=1e-5)
