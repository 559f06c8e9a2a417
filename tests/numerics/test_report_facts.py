"""Numbers and charts of the report, each against a value that something else gives."""

import base64
import io

import numpy as np
import PIL.Image
import pytest

from tlx.report import charts, facts, html
from tlx.tasks.classification import sections


def test_class_numbers_match_scikit_learn():
  metrics = pytest.importorskip('sklearn.metrics')
  rng = np.random.default_rng(1)
  labels, predictions = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
  rows = sections.classes(metrics.confusion_matrix(labels, predictions), list('abcde'))
  expected = metrics.precision_recall_fscore_support(labels, predictions)
  for key, values in zip(('precision', 'recall', 'f1', 'support'), expected, strict=True):
    np.testing.assert_allclose([row[key] for row in rows], values, rtol=1e-12)
  absent = sections.classes(np.array([[2, 0, 0], [1, 0, 0], [0, 0, 0]]), list('abc'))
  assert absent[1]['precision'] is None and absent[1]['recall'] == 0 and absent[2]['f1'] is None


def test_confused_pairs_are_counted_once_and_sorted():
  pairs = sections.confused(np.array([[5, 1, 0], [3, 9, 0], [0, 0, 7]]), list('abc'))
  assert [(p['label'], p['prediction'], p['count']) for p in pairs] == [('b', 'a', 3), ('a', 'b', 1)]
  assert pairs[0]['share'] == 0.25


def test_wilson_interval():
  low, high = facts.wilson(0.9, 100)
  assert (round(low, 4), round(high, 4)) == (
    0.8256,
    0.9448,
  )  # scipy.stats.binomtest(90, 100).proportion_ci(method='wilson')
  assert facts.wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_calibration_speaks_of_the_excess():
  count, confidence, correct = np.zeros(15), np.zeros(15), np.zeros(15)
  count[14], confidence[14], correct[14] = 10, 9.5, 7
  shown = sections.calibration({'bin_count': count, 'bin_confidence': confidence, 'bin_correct': correct})
  assert shown['excess'] == pytest.approx(0.25) and 'accuracy 70.0%' in shown['svg']


def test_phase_borders_from_the_plan_or_the_log():
  log = [{'step': 5, 'phase': 'a'}, {'step': 10, 'phase': 'a'}, {'step': 15, 'phase': 'b'}]
  assert facts.phase_borders(log, []) == [(5, 'a'), (15, 'b')]
  assert facts.phase_borders(log, [{'name': 'a', 'steps': 12}, {'name': 'b', 'steps': 8}]) == [(0, 'a'), (12, 'b')]


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 97, [20, 40, 60, 80]), (-0.011, 0.011, [-0.01, -0.005, 0, 0.005, 0.01])],
)
def test_ticks_are_round(low, high, expected):
  assert charts.ticks(low, high) == pytest.approx(expected)


def test_long_curves_are_thinned_and_keep_their_end():
  x, y = charts.thin(range(100_001), np.linspace(0, 1, 100_001).tolist())
  assert len(x) <= charts.MOST_POINTS and (x[-1], y[-1]) == (100_000, 1.0)
  np.testing.assert_allclose(np.asarray(x) / 100_000, y, atol=1e-9)


@pytest.mark.parametrize(
  ('value', 'shown'),
  [
    (1234567, '1,234,567'),
    (0.00012345, '0.0001234'),
    (1e-7, '1e-7'),
    (98765.4, '98,765'),
    (None, '–'),
    (float('nan'), '–'),
  ],
)
def test_numbers_for_people(value, shown):
  assert charts.number(value) == shown


def test_percent_never_rounds_to_certainty():
  assert [html.percent(v) for v in (0, 1, 0.99999, 0.00001, 0.5)] == [
    f'{v}\u00a0%' for v in ('0', '100', '99.9', '0.1', '50.0')
  ]
  assert [html.duration(v) for v in (0.04, 12.3, 134.2, 7260)] == ['0.0 s', '12 s', '2 min 14 s', '2 h 1 min']


def test_the_picture_of_a_large_confusion_shows_hits_and_misses():
  matrix = np.diag(np.full(680, 9))
  matrix[0, 500] = 1
  address = charts.confusion_picture(matrix)
  pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(address.partition(',')[2]))))
  assert pixels.shape[:2] == (680, 680)
  assert tuple(pixels[400, 400]) == (64, 128, 191, 255)
  assert tuple(pixels[0, 500, :3]) == (217, 119, 66) and 0 < pixels[0, 500, 3] < 128
  assert pixels[300, 500, 3] == 0
