"""The report of multi-label classification: cards, a table of tags and the images with the most wrong tags."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.report import folder, html, read, thumbnail
from tlx.tasks.multilabel import metrics
from tlx.types import Card, DataSource, Section

WORST = 24  # number of images in the report
PACKAGE = 'tlx.tasks.multilabel'


def cards(result: Mapping[str, Any]) -> list[Card]:
  """The cards: mean average precision (also on test), F1, exact matches and loss, from result.json."""
  split = f' on {result["split"]}' if result.get('split') else ''
  found = [Card(f'mAP{split}', html.share(result.get('map')), (f'{html.count(result.get("count"))} images',))]
  if test := result.get('test'):
    seen = f'{html.count(test.get("count"))} images, seen once, at the end'
    found.append(Card('mAP on test', html.share(test.get('map')), (seen,)))
  micro = f'of all decisions together {html.share(result.get("micro_f1"))}'
  found.append(Card('Macro F1', html.share(result.get('macro_f1')), (micro,)))
  right = f'{html.share(result.get("hamming"))} of the single tags'
  found.append(Card('All tags right', html.share(result.get('exact_match')), (right,)))
  return [*found, Card('Loss', html.count(result.get('loss')))]


def sections(run: Mapping[str, Any], class_names: Sequence[str], threshold: float) -> list[Section]:
  """Makes the sections.

  Args:
    run: content of the run folder (`report.read.load`), and its path as 'folder'.
    class_names: for runs whose record has none.
    threshold: minimum probability of a predicted tag.

  Returns:
    The sections, in order.
  """
  evaluation = run['evaluation']
  tags, probabilities = evaluation.get('tags'), evaluation.get('probability')
  rows = metrics.compute(tags.astype(bool), probabilities, threshold)['per_class'] if tags is not None else []
  names = [str(name) for name in run['experiment']['data'].get('class_names', ())] or list(class_names)
  context = {
    'tags': [{**row, 'name': name} for row, name in zip(rows, names)],
    'threshold': threshold,
    'worst': [
      {**m, 'picture': read.picture(run['folder'], m.get('file'))} for m in run['mistakes'] if isinstance(m, Mapping)
    ],
  }
  shown = {'Tags': 'Tags', 'Worst': 'Images with the most wrong tags'}
  return [
    Section(name, html.fragment(PACKAGE, f'{name.lower()}.html.j2', context), title) for name, title in shown.items()
  ]


def write_worst(
  out: Path, records: Mapping[str, np.ndarray], source: DataSource, names: Sequence[str], threshold: float
) -> None:
  """Writes the worst images to OUT/mistakes.json, and a thumbnail of each to OUT/mistakes/.

  Args:
    out: the run folder.
    records: of the evaluation.
    source: the split.
    names: of the tags.
    threshold: minimum probability of a predicted tag. Of the images with a wrong tag, the highest loss comes first.
  """
  truth, probabilities = records['tags'].astype(bool), records['probability'].astype(np.float64)
  own = np.clip(np.where(truth, probabilities, 1 - probabilities), 1e-7, 1)
  wrong = np.flatnonzero(((probabilities >= threshold) != truth).any(axis=1))
  chosen = wrong[np.argsort(np.log(own).mean(axis=1)[wrong], kind='stable')][:WORST]
  found = []
  for rank, row in enumerate(chosen):
    example = source[int(records['index'][row])]
    file, given = f'mistakes/{rank:02d}.jpg', probabilities[row] >= threshold
    folder.write_bytes(out / file, thumbnail.of(example.image))
    missed = [names[c] for c in np.flatnonzero(truth[row] & ~given)]
    false = [names[c] for c in np.flatnonzero(given & ~truth[row])]
    found.append({'file': file, 'name': example.name, 'missed': missed, 'false': false})
  folder.write_json(out / 'mistakes.json', found)
