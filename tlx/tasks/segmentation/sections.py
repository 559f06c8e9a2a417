"""The report of segmentation: cards, classes, confusion by pixels and the worst images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.report import charts, html, read
from tlx.report.facts import FEW
from tlx.tasks.segmentation.metrics import Sums
from tlx.tasks.segmentation.pictures import palette
from tlx.types import Card, Section

PACKAGE = 'tlx.tasks.segmentation'


def cards(result: Mapping[str, Any]) -> list[Card]:
  """The cards: mean IoU (also on test), pixel accuracy, boundary F1 and loss, from result.json."""
  split = f' on {result["split"]}' if result.get('split') else ''
  found = [Card(f'Mean IoU{split}', html.share(result.get('miou')), (f'{html.count(result.get("count"))} images',))]
  if test := result.get('test'):
    seen = f'{html.count(test.get("count"))} images, seen once, at the end'
    found.append(Card('Mean IoU on test', html.share(test.get('miou')), (seen,)))
  weighted = f'frequency-weighted IoU {html.share(result.get("frequency_weighted_iou"))}'
  found.append(Card('Pixel accuracy', html.share(result.get('pixel_accuracy')), (weighted,)))
  found.append(Card('Boundary F1', html.share(result.get('boundary_f1')), ('within 2 pixels',)))
  return [*found, Card('Loss', html.count(result.get('loss')))]


def sections(run: Mapping[str, Any], class_names: Sequence[str]) -> list[Section]:
  """Makes the sections.

  Args:
    run: content of the run folder (`report.read.load`), and its path as 'folder'.
    class_names: for runs whose record has none.

  Returns:
    The sections, in order.
  """
  evaluation = run['evaluation']
  names = read.class_names(run['experiment']['data'], evaluation) or list(class_names)
  matrix = evaluation.get('confusion')
  context = {
    'classes': classes(evaluation, names),
    'matrix': charts.confusion(matrix, names) if matrix is not None and len(names) <= FEW else '',
    'worst': [
      {**m, 'picture': read.picture(run['folder'], m.get('file')), 'truth': read.picture(run['folder'], m.get('truth')),
       'seen': read.picture(run['folder'], m.get('seen'))}
      for m in run['mistakes'] if isinstance(m, Mapping)
    ],
  }  # fmt: skip
  shown = {'Classes': 'Classes', 'Confusion': 'Confusion, by pixels', 'Worst': 'Worst images'}
  return [
    Section(name, html.fragment(PACKAGE, f'{name.lower()}.html.j2', context), title) for name, title in shown.items()
  ]


def classes(evaluation: Mapping[str, np.ndarray], names: Sequence[str]) -> list[dict[str, Any]]:
  """Makes the table of classes: metrics and colour.

  Args:
    evaluation: the arrays of evaluation.npz.
    names: of the classes.

  Returns:
    One dict per class, nan for values of absent classes; [] if arrays are missing.
  """
  known = Sums.__dataclass_fields__
  if not all(name in evaluation for name in known):
    return []
  rows = Sums(**{name: evaluation[name] for name in known}).compute()['per_class']
  colours = ['#{:02x}{:02x}{:02x}'.format(*colour) for colour in palette(len(rows))]
  return [{**row, 'name': name, 'colour': colour} for row, name, colour in zip(rows, names, colours)]
