"""Segmentation losses against plain NumPy in float64, and their gradients against finite differences of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.tasks.segmentation import losses
from tlx.tasks.segmentation.losses import IGNORE, Loss, labelled, parse
from tlx.types import UsageError

K = 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 6, 5, K)).astype(np.float32) * 2
LABELS = RNG.integers(0, K, (4, 6, 5)).astype(np.uint8)
LABELS[RNG.random(LABELS.shape) < 0.2] = IGNORE
LABELS[1][LABELS[1] == 2] = 0  # image 1 lacks class 2
LABELS[2] = IGNORE
MASK = np.array([True, True, True, False])  # image 2 has no labelled pixel, image 3 is padding
ONES = np.ones(K)
WEIGHTS = (0.5, 2.0, 0.0, 1.5)


@functools.cache
def compiled(name):
  """(logits, labels, mask) -> float [b], gradient of the sum; one program for all tests with these shapes."""

  def run(logits, labels, mask):
    values, back = jax.vjp(lambda x: losses.TERMS[name](x, labels, mask), logits)
    return values, back(jnp.ones_like(values))[0]

  return jax.jit(run)


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(x, y, weights=ONES, smoothing=0.0):
  t = (1 - smoothing) * np.eye(K)[y] + smoothing / K
  return -(t * weights * log_softmax(x)).sum(-1).mean()


def focal(x, y, weights=ONES, gamma=2.0):
  log_p = log_softmax(x)[np.arange(len(y)), y]
  return -(np.array(weights)[y] * (1 - np.exp(log_p)) ** gamma * log_p).mean()


def sigmoid_focal(x, y, weights=ONES, gamma=2.0):
  p = 1 / (1 + np.exp(-x))
  p = np.where(np.eye(K)[y] == 1, p, 1 - p)
  return -(weights * (1 - p) ** gamma * np.log(p)).mean()


def dice(x, y):
  p, t = np.exp(log_softmax(x)), np.eye(K)[y]
  return np.mean([1 - 2 * (p[:, c] * t[:, c]).sum() / (p[:, c] + t[:, c]).sum() for c in np.unique(y)])


def lovasz(x, y):
  """The definition: the errors in descending order, each times what its pixel adds to 1 - IoU."""
  p, values = np.exp(log_softmax(x)), []
  for c in np.unique(y):
    truth = y == c
    errors = np.abs(truth - p[:, c])
    wrong, before, value = np.zeros(len(y), bool), 0.0, 0.0
    for i in np.argsort(-errors):
      wrong[i] = True
      now = wrong.sum() / (truth | wrong).sum()  # 1 - IoU of the prediction that is wrong exactly there
      value, before = value + errors[i] * (now - before), now
    values.append(value)
  return np.mean(values)


FORMULAS = {'ce': cross_entropy, 'focal': focal, 'sigmoid_focal': sigmoid_focal, 'dice': dice, 'lovasz': lovasz}


def expected(name, logits=LOGITS, **options):
  """The formula on the labelled pixels of each real image, in float64."""
  values = []
  for x, y, real in zip(logits.astype(np.float64), LABELS, MASK):
    keep = (y != IGNORE) & real
    values.append(FORMULAS[name](x[keep], y[keep].astype(int), **options) if keep.any() else 0.0)
  return np.array(values)


def test_every_loss_is_tested():
  assert set(FORMULAS) == set(losses.TERMS)


@pytest.mark.parametrize('name', losses.TERMS)
def test_values_equal_the_formula(name):
  actual, _ = compiled(name)(LOGITS, LABELS, MASK)
  assert actual.shape == (4,) and actual.dtype == np.float32
  tolerance = 1e-4 if name == 'lovasz' else 3e-6  # lovasz: below 1 / BUCKETS = 2.4e-4
  np.testing.assert_allclose(actual, expected(name), rtol=tolerance, atol=1e-7)
  assert (actual[2:] == 0).all() and (actual[:2] > 0.05).all()


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('ce', {'weights': WEIGHTS, 'smoothing': 0.1}),
    ('ce', {'smoothing': 0.3}),
    ('focal', {'weights': WEIGHTS, 'gamma': 0.5}),
    ('sigmoid_focal', {'weights': WEIGHTS, 'gamma': 1.0}),
  ],
)
def test_options(name, options):
  actual = jax.jit(functools.partial(losses.TERMS[name], **options))(LOGITS, LABELS, MASK)
  np.testing.assert_allclose(actual, expected(name, **options), rtol=3e-6, atol=1e-7)


def test_focal_without_gamma_is_the_cross_entropy():
  actual = jax.jit(functools.partial(losses.focal, gamma=0.0))(LOGITS, LABELS, MASK)
  np.testing.assert_allclose(actual, expected('ce'), rtol=1e-6)


@pytest.mark.parametrize('name', losses.TERMS)
def test_gradients_equal_finite_differences(name):
  gradient = np.asarray(compiled(name)(LOGITS, LABELS, MASK)[1])
  counts = (LABELS != IGNORE) & MASK[:, None, None]
  assert (gradient[~counts] == 0).all() and (gradient[counts] != 0).any(-1).all()
  step = 1e-5
  for place in zip(*(RNG.integers(0, n, 40) for n in (2, *LOGITS.shape[1:]))):
    moved = [LOGITS.astype(np.float64) for _ in range(2)]
    moved[0][place] += step
    moved[1][place] -= step
    slope = np.subtract(*(expected(name, x).sum() for x in moved)) / (2 * step)
    assert gradient[place] == pytest.approx(slope, rel=1e-3, abs=2e-6), place


@pytest.mark.parametrize('name', losses.TERMS)
@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_what_is_ignored_has_no_influence(name, poison):
  counts = (LABELS != IGNORE) & MASK[:, None, None]
  poisoned = np.where(counts[..., None], LOGITS, np.float32(poison))
  for actual, clean in zip(compiled(name)(poisoned, LABELS, MASK), compiled(name)(LOGITS, LABELS, MASK)):
    np.testing.assert_array_equal(actual, clean)


@pytest.mark.parametrize('name', losses.TERMS)
def test_certain_predictions_have_finite_gradients(name):
  logits = np.broadcast_to(np.array([300, -300, -300, -300], np.float32), LOGITS.shape).copy()
  logits[1] = logits[1, ..., ::-1]
  values, gradient = compiled(name)(logits, np.zeros_like(LABELS), MASK)
  assert np.isfinite(values).all() and np.isfinite(gradient).all()
  assert values[0] == pytest.approx(0, abs=1e-6) and values[1] >= 1


@pytest.mark.parametrize('name', losses.TERMS)
def test_half_precision_logits(name):
  half = jnp.asarray(LOGITS, jnp.bfloat16)
  actual, gradient = compiled(name)(half, LABELS, MASK)
  assert actual.dtype == np.float32 and gradient.dtype == jnp.bfloat16
  np.testing.assert_allclose(actual, compiled(name)(np.asarray(half, np.float32), LABELS, MASK)[0], rtol=1e-6)
  assert np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize('name', losses.TERMS)
def test_one_class(name):
  """Its softmax is 1 everywhere: nothing is left to learn but for the sigmoid."""
  labels = np.where(LABELS == IGNORE, IGNORE, 0).astype(np.uint8)
  values, gradient = compiled(name)(LOGITS[..., :1], labels, MASK)
  assert np.isfinite(gradient).all()
  assert (values[0] > 0) == (name == 'sigmoid_focal') == (np.asarray(gradient) != 0).any()


def test_lovasz_of_many_pixels_is_close_to_the_definition():
  labels = np.kron(RNG.integers(0, K, (1, 4, 4)), np.ones((8, 8), int)).astype(np.uint8)
  for scale, tolerance in ((0, 1e-6), (3, 1e-5), (8, 5e-5)):  # an untrained model, a trained one, a perfect one
    logits = RNG.normal(size=(1, 32, 32, K)) + scale * np.eye(K)[labels]
    actual, _ = compiled('lovasz')(logits.astype(np.float32), labels, np.ones(1, bool))
    exact = lovasz(logits[0].reshape(-1, K), labels[0].reshape(-1))
    assert float(actual[0]) == pytest.approx(exact, abs=tolerance)


def test_labelled():
  actual = labelled(LABELS, MASK)
  assert actual.dtype == np.float32
  np.testing.assert_array_equal(actual, (LABELS != IGNORE).sum((1, 2)) * MASK)


def test_sums():
  loss = parse(' 0.5*ce + 2e-1*lovasz+dice', class_weights=[1, 2, 0, 1], label_smoothing=0.1)
  assert loss.terms == ((0.5, 'ce'), (0.2, 'lovasz'), (1.0, 'dice'))
  assert hash(loss) == hash(parse('0.5*ce+0.2*lovasz+dice', class_weights=(1, 2, 0, 1), label_smoothing=0.1))
  ce = expected('ce', weights=(1, 2, 0, 1), smoothing=0.1)
  actual = jax.jit(loss)(LOGITS, LABELS, MASK)
  np.testing.assert_allclose(actual, 0.5 * ce + 0.2 * expected('lovasz') + expected('dice'), rtol=3e-5)
  assert parse('1e+1*ce').terms == ((10.0, 'ce'),) and parse('ce') == Loss()


def test_wrong_words_are_all_named():
  with pytest.raises(UsageError) as error:
    parse('cross+0*dice+jaccard', label_smoothing=2, focal_gamma=-1, class_weights=(1, -1))
  lines = str(error.value).splitlines()
  assert len(lines) == 8
  assert "there is no 'cross'; there are ce, dice, focal, lovasz, sigmoid_focal" in lines[0]
  words = ('jaccard', "weight of 'dice' is 0", 'class_weights has no effect', 'label_smoothing has no effect')
  for word, line in zip((*words, 'class_weights is', 'label_smoothing is 2', 'focal_gamma is -1'), lines[1:]):
    assert word in line
  for text in ('', 'ce+', 'two*ce', '*ce'):
    with pytest.raises(UsageError):
      parse(text)
