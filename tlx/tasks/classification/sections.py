"""The report of classification: cards, confusion, calibration, classes and the most confident mistakes.

In every confusion matrix, rows are labels and columns are predictions. The bins of `evaluation.npz` are 15 equal
intervals of confidence, with the number of examples, the sum of confidences and the number of right predictions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.report import charts, html, read
from tlx.report.facts import FEW, wilson
from tlx.types import Card, Section

NAMES = ('Confusion', 'Calibration', 'Classes', 'Mistakes')


def cards(result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]:
  """Makes the cards: accuracy with its 95 % interval (also on test), macro F1 and loss.

  Args:
    result: the content of result.json.
    evaluation: the arrays of evaluation.npz.

  Returns:
    The cards, in order.
  """
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
  """Makes the sections.

  Args:
    run: content of the run folder (`report.read.load`), and its path as 'folder'.
    class_names: for runs whose record has none.

  Returns:
    The sections, in order.
  """
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
  """Support, precision, recall and F1 of each class.

  Args:
    matrix: int [k, k], rows are labels, columns are predictions.
    names: of the classes.

  Returns:
    One dict per class. A value is None if its denominator is 0.

  Examples:
    >>> classes(np.array([[3, 1], [0, 2]]), ['cat', 'dog'])[0]
    {'name': 'cat', 'support': 4, 'precision': 1.0, 'recall': 0.75, 'f1': 0.8571428571428571}
  """
  right, support, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)

  def ratio(a, b):
    return float(a / b) if b else None

  return [
    {'name': name, 'support': int(s), 'precision': ratio(r, p), 'recall': ratio(r, s), 'f1': ratio(2 * r, s + p)}
    for name, r, s, p in zip(names, right, support, predicted, strict=True)
  ]


def confused(matrix: np.ndarray, names: Sequence[str], most: int = 12) -> list[dict[str, Any]]:
  """Finds the pairs of label and prediction with the most mistakes.

  Args:
    matrix: int [k, k], rows are labels, columns are predictions.
    names: of the classes.
    most: maximum number of pairs.

  Returns:
    {'label', 'prediction', 'count', 'share'} of each pair; 'share' is the share of the label's examples.
  """
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
  """{'svg': reliability diagram, 'excess': mean confidence - accuracy}; None without examples."""
  count, confidence, correct = (evaluation.get(f'bin_{name}') for name in ('count', 'confidence', 'correct'))
  if count is None or confidence is None or correct is None or not count.sum():
    return None
  some = np.maximum(count, 1)
  svg = charts.reliability((confidence / some).tolist(), (correct / some).tolist(), (count / count.sum()).tolist())
  return {'svg': svg, 'excess': float((confidence.sum() - correct.sum()) / count.sum())}
