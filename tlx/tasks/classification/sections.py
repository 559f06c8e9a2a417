"""The classifier's part of the report: cards, confusion, calibration, classes and the most confident mistakes.

In every confusion matrix rows are labels and columns predictions. The bins of `evaluation.npz` are sums over the
examples that fall into 15 equal intervals of confidence: how many, of their confidences, of their right answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.report import charts, html, read
from tlx.report.facts import FEW, wilson
from tlx.types import Card, Section

NAMES = ('Confusion', 'Calibration', 'Classes', 'Mistakes')


def cards(result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]:
  """Accuracy with its interval, the same on test, macro F1, loss."""
  count, accuracy, matrix = result.get('count'), result.get('accuracy'), evaluation.get('confusion')
  notes = [f'{charts.number(count)} images'] if count is not None else []
  if accuracy is not None and 0 <= accuracy <= 1 <= (count or 0):
    notes.append('95\u00a0% interval: {} to {}'.format(*map(html.percent, wilson(accuracy, count))))
  if matrix is not None and matrix.sum():
    notes.append(f'commonest class alone: {html.percent(float(matrix.sum(axis=1).max() / matrix.sum()))}')
  split = f' on {result["split"]}' if result.get('split') else ''
  found = [Card(f'Accuracy{split}', html.share(accuracy), tuple(notes))]
  if test := result.get('test'):
    seen = f'{html.count(test.get("count"))} images, seen once, at the end'
    found.append(Card('Accuracy on test', html.share(test.get('accuracy')), (seen,)))
  precision, recall = html.share(result.get('macro_precision')), html.share(result.get('macro_recall'))
  found.append(Card('Macro F1', html.share(result.get('macro_f1')), (f'precision {precision}, recall {recall}',)))
  many = matrix is not None and len(matrix) > 5
  top5 = (f'top-5 accuracy {html.share(result.get("top5_accuracy"))}',) if many else ()
  return [*found, Card('Loss', html.count(result.get('loss')), top5)]


def sections(run: Mapping[str, Any], class_names: Sequence[str]) -> list[Section]:
  """Of a run folder as `report.read.load` gives it, with its `folder`."""
  evaluation, result = run['evaluation'], run['result']
  matrix = evaluation.get('confusion')
  names = read.class_names(run['experiment']['data'], evaluation) or list(class_names)
  few = len(names) <= FEW
  context = {
    'result': result,
    'classes': classes(matrix, names) if matrix is not None else [],
    'confused': confused(matrix, names) if matrix is not None else [],
    'matrix': charts.confusion(matrix, names) if matrix is not None and few else '',
    'picture': charts.confusion_picture(matrix) if matrix is not None and not few else '',
    'few': few,
    'calibration': calibration(evaluation),
    'mistakes': read.mistakes(run['folder'], run['mistakes'], names),
  }
  shown = {'Mistakes': 'Most confident mistakes'}
  return [
    Section(name, html.fragment('tlx.tasks.classification', f'{name.lower()}.html.j2', context), shown.get(name, name))
    for name in NAMES
  ]


def classes(matrix: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
  """Support, precision, recall and F1 of each class; None where a class has no example or was never predicted."""
  right, support, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

  def ratio(a, b):
    return float(a / b) if b else None

  return [
    {'name': name, 'support': int(s), 'precision': ratio(r, p), 'recall': ratio(r, s), 'f1': ratio(2 * r, s + p)}
    for name, r, s, p in zip(names, right, support, predicted, strict=True)
  ]


def confused(matrix: np.ndarray, names: Sequence[str], most: int = 12) -> list[dict[str, Any]]:
  """Pairs of label and prediction that were confused most often."""
  wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
  order = np.argsort(-wrong, axis=None, kind='stable')[:most]
  pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
  return [
    {
      'label': names[i],
      'prediction': names[j],
      'count': int(matrix[i, j]),
      'share': float(matrix[i, j] / matrix[i].sum()),
    }
    for i, j in pairs
  ]


def calibration(evaluation: Mapping) -> dict[str, Any] | None:
  """Reliability diagram, and by how much the mean confidence exceeds the accuracy."""
  count, confidence, correct = (evaluation.get(f'bin_{name}') for name in ('count', 'confidence', 'correct'))
  if count is None or confidence is None or correct is None or not count.sum():
    return None
  some = np.maximum(count, 1)
  svg = charts.reliability((confidence / some).tolist(), (correct / some).tolist(), (count / count.sum()).tolist())
  return {'svg': svg, 'excess': float((confidence.sum() - correct.sum()) / count.sum())}
