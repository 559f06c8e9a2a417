"""Segmentation metrics against plain NumPy, pixel by pixel, and against hotcoco (mmsegmentation's protocol)."""

import jax
import numpy as np
import pytest

from tlx.tasks.segmentation.losses import IGNORE
from tlx.tasks.segmentation.metrics import TOLERANCE, Sums

K = 6  # class 4 is only predicted, class 5 is nowhere
RNG = np.random.default_rng(0)
OF = jax.jit(Sums.of)
MEANS = ('miou', 'pixel_accuracy', 'mean_accuracy', 'frequency_weighted_iou')


def blocks(classes, images=3):
  """Class maps [images, 24, 32] of 4 x 4 blocks with rough edges."""
  maps = np.kron(RNG.integers(0, classes, (images, 6, 8)), np.ones((4, 4), int))
  return np.where(RNG.random(maps.shape) < 0.05, RNG.integers(0, classes, maps.shape), maps)


TRUTH = blocks(4)
PREDICTED = np.where(RNG.random(TRUTH.shape) < 0.8, TRUTH, blocks(5))
LOGITS = (RNG.normal(size=(*TRUTH.shape, K)) + 20 * np.eye(K)[PREDICTED]).astype(np.float32)
LABELS = np.where(RNG.random(TRUTH.shape) < 0.1, IGNORE, TRUTH).astype(np.uint8)
MASK = np.array([True, True, False])


def boundary_f1(truths, predictions):
  """The definition in loops: {class: F1}."""

  def edges(labels):
    height, width = labels.shape
    for r, c in np.argwhere(labels != IGNORE):
      near = [(r + i, c + j) for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))]
      near = [labels[i, j] for i, j in near if 0 <= i < height and 0 <= j < width]
      if any(x not in (labels[r, c], IGNORE) for x in near):
        yield r, c, labels[r, c]

  found = np.zeros((2, 2, K))  # [truth or prediction, all or confirmed, class]
  for pair in zip(truths, predictions):
    marks = [list(edges(labels)) for labels in pair]
    for i, (own, other) in enumerate((marks, marks[::-1])):
      for r, c, label in own:
        hit = any(x == label and max(abs(a - r), abs(b - c)) <= TOLERANCE for a, b, x in other)
        found[i, :, label] += 1, hit
  shares = [found[i, 1] / np.where(found[i, 0], found[i, 0], 1) for i in range(2)]
  return {c: 2 * r * p / (r + p) if r + p else 0.0 for c, (r, p) in enumerate(zip(*shares)) if found[:, 0, c].any()}


def test_everything_equals_numpy():
  sums = OF(LOGITS, LABELS, MASK)
  assert {x.dtype.name for x in jax.tree.leaves(sums)} == {'int32', 'float32'}
  keep = (LABELS != IGNORE) & MASK[:, None, None]
  truth, predicted = LABELS[keep], PREDICTED[keep]
  confusion = np.zeros((K, K), int)
  np.add.at(confusion, (truth, predicted), 1)
  np.testing.assert_array_equal(sums.confusion, confusion)

  result = sums.compute()
  classes = range(5)
  ious = [((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum() for c in classes]
  accuracies = [(predicted[truth == c] == c).mean() for c in range(4)]
  logits = LOGITS[keep].astype(np.float64)
  losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(truth)), truth]
  assert result['miou'] == pytest.approx(np.mean(ious))
  assert result['pixel_accuracy'] == pytest.approx((truth == predicted).mean())
  assert result['mean_accuracy'] == pytest.approx(np.mean(accuracies))
  assert result['frequency_weighted_iou'] == pytest.approx(sum(ious[c] * (truth == c).mean() for c in classes))
  assert result['loss'] == pytest.approx(losses.mean(), rel=1e-5)
  assert result['count'] == 2
  for c, row in enumerate(result['per_class']):
    expected = {
      'iou': ious[c] if c < 5 else np.nan,
      'accuracy': accuracies[c] if c < 4 else np.nan,
      'precision': (truth[predicted == c] == c).mean() if c < 5 else np.nan,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert row['support'] == (truth == c).sum()


def test_boundary_f1_equals_its_definition():
  result = OF(LOGITS, LABELS, MASK).compute()
  predicted = np.where(LABELS == IGNORE, IGNORE, PREDICTED)
  expected = boundary_f1(LABELS[MASK], predicted[MASK])
  assert set(expected) == set(range(5))
  for c, row in enumerate(result['per_class']):
    assert row['boundary_f1'] == pytest.approx(expected.get(c, np.nan), nan_ok=True)
  assert result['boundary_f1'] == pytest.approx(np.mean(list(expected.values())))
  assert 0.1 < result['boundary_f1'] < 0.95


@pytest.mark.parametrize(('moved', 'expected'), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_a_boundary_may_be_off_by_the_tolerance(moved, expected):
  truth, predicted = (np.arange(32)[None, None].repeat(24, 1) >= 16 + move for move in (0, moved))
  result = OF(np.eye(K, dtype=np.float32)[predicted.astype(int)], truth.astype(np.uint8), np.ones(1, bool)).compute()
  assert [row['boundary_f1'] for row in result['per_class'][:2]] == [expected, expected]


def test_equals_hotcoco():
  semantic = pytest.importorskip('hotcoco.semantic')
  reference = semantic.SemanticEval(K)
  reference.update(LABELS[MASK], PREDICTED[MASK])
  expected, result = reference.results(), OF(LOGITS, LABELS, MASK).compute()
  for ours, theirs in zip(MEANS, ('mIoU', 'aAcc', 'mAcc', 'fwIoU')):
    assert result[ours] == pytest.approx(expected[theirs], abs=1e-12)
  for ours, theirs in zip(result['per_class'], expected['per_class']):
    for name, other in (('iou', 'IoU'), ('accuracy', 'Acc')):
      assert np.nan_to_num(ours[name], nan=-1) == pytest.approx(theirs[other], abs=1e-12)
    assert ours['support'] == theirs['gt_area']


def test_sums_of_batches_add_up():
  whole = OF(LOGITS, LABELS, np.ones(3, bool))
  parts = [OF(LOGITS[i : i + 1], LABELS[i : i + 1], np.ones(1, bool)) for i in range(3)]
  merged = jax.tree.map(lambda *x: sum(np.asarray(each, np.float64) for each in x), *parts)
  for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(whole)):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_counts_beyond_int32():
  sums = jax.device_get(OF(LOGITS, LABELS, MASK))
  result = sums.replace(confusion=np.full((K, K), 3 * (2**31 - 1), np.int64)).compute()
  assert result['per_class'][0]['support'] == 3 * K * (2**31 - 1)
  assert result['per_class'][0]['iou'] == pytest.approx(1 / (2 * K - 1))


@pytest.mark.parametrize('poison', [np.nan, np.inf])
def test_what_is_ignored_has_no_influence(poison):
  keep = (LABELS != IGNORE) & MASK[:, None, None]
  poisoned = np.where(keep[..., None], LOGITS, np.float32(poison))
  for a, b in zip(jax.tree.leaves(OF(poisoned, LABELS, MASK)), jax.tree.leaves(OF(LOGITS, LABELS, MASK))):
    np.testing.assert_array_equal(a, b)


def test_nothing_labelled_is_nan_and_not_zero():
  result = OF(LOGITS, np.full_like(LABELS, IGNORE), MASK).compute()
  assert result['count'] == 2
  assert all(np.isnan(result[name]) for name in (*MEANS, 'boundary_f1', 'loss'))
  assert all(np.isnan(row['iou']) and row['support'] == 0 for row in result['per_class'])
