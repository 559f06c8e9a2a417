"""Computes the numbers, tables and charts of the report from a run's records, one function for each part.

The parts that depend on the task are in its folder of `tlx/tasks`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.report import charts
from tlx.types import Task

FEW = 30  # maximum number of classes that are shown one by one
_REJECTED = 50  # maximum number of rejected files to list
TITLES = {'miou': 'mIoU', 'map': 'mAP', 'macro_f1': 'Macro F1'}


def headline(experiment: Mapping, result: Mapping) -> dict[str, Any]:
  """The headline: model, data set, strategy, and the share of parameters that learned.

  Args:
    experiment: the content of experiment.json.
    result: that of result.json; {} for an unfinished run.

  Returns:
    {'model', 'data', 'strategy', 'share', 'learned', 'total'}; None if unknown.
  """
  options, data, model = (experiment[key] for key in ('experiment', 'data', 'model'))
  learned, total = result.get('trainable_parameters'), result.get('parameters') or model.get('parameters')
  return {
    'model': options.get('model') or model.get('variant') or 'a model',
    'data': data.get('name') or options.get('data') or 'unnamed data',
    'strategy': options.get('strategy'),
    'share': learned / total if learned is not None and total and _finite(total) else None,
    'learned': learned,
    'total': total,
  }


def wilson(share: float, count: int) -> tuple[float, float]:
  """The 95 % confidence interval of a share (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953).

  Args:
    share: of successes, in [0, 1].
    count: number of trials, above 0.

  Returns:
    (low, high).

  Examples:
    >>> low, high = wilson(0.9, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
  """
  z = 1.96
  middle, room = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
  return (middle - room) / (1 + z * z / count), (middle + room) / (1 + z * z / count)


def curves(metrics: Sequence[Mapping], phases: Sequence[Mapping], task: Task) -> list[dict[str, Any]]:
  """Draws the charts of loss, metrics, learning rate and gradient norm, as far as they were logged.

  The metrics are the task's primary one, and others that training logs too.

  Args:
    metrics: records of metrics.jsonl.
    phases: the 'learning' part of experiment.json.
    task: of the run.

  Returns:
    One dict per chart: 'title', 'svg', 'last' (the last value of each series), and options of the chart.
  """
  logged = {name for line in metrics if line.get('split') == 'train' for name in line}
  shown = [name for name in task.percents if name == task.primary or name in logged]
  borders = phase_borders(metrics, phases)
  rates = _series(metrics, 'learning_rate', ('train',))
  norms = _series(metrics, 'grad_norm', ('train',))
  wanted = (
    ('Loss', _series(metrics, 'loss'), {}),
    *((title(name), _series(metrics, name), {'percent': True}) for name in shown),
    ('Learning rate', rates, {'log': len(borders) > 1 and _spread(rates) > 20}),
    ('Gradient norm', norms, {'log': _spread(norms) > 30}),
  )
  return [_chart(title, series, borders=borders, **how) for title, series, how in wanted if series]


def title(metric: str) -> str:
  """A metric's name as a title.

  >>> title('pixel_accuracy'), title('miou')
  ('Pixel accuracy', 'mIoU')
  """
  return TITLES.get(metric, in_text(metric).capitalize())


def in_text(metric: str) -> str:
  """A metric's name inside a sentence.

  >>> in_text('pixel_accuracy'), in_text('miou')
  ('pixel accuracy', 'mIoU')
  """
  return TITLES.get(metric, metric.replace('_', ' '))


def phase_borders(metrics: Sequence[Mapping], phases: Sequence[Mapping]) -> list[tuple[float, str]]:
  """Finds the first step of each phase.

  Args:
    metrics: records of metrics.jsonl.
    phases: the 'learning' part of experiment.json; [] if it is missing.

  Returns:
    (first step, name) of each phase; without `phases`, from the steps at which the logged phase changes.
  """
  steps = [phase.get('steps') for phase in phases]
  if phases and all(isinstance(count, int) for count in steps):
    starts = np.cumsum([0, *steps[:-1]]).tolist()
    return [(start, str(phase.get('name', ''))) for start, phase in zip(starts, phases, strict=True)]
  borders: list[tuple[float, str]] = []
  for line in metrics:
    name, step = line.get('phase'), line.get('step')
    if isinstance(name, str) and _finite(step) and (not borders or borders[-1][1] != name):
      borders.append((step, name))
  return borders


def best(metrics: Sequence[Mapping], primary: str) -> tuple[float, int, float] | None:
  """Finds the best value of a metric on validation.

  Args:
    metrics: records of metrics.jsonl.
    primary: name of the metric.

  Returns:
    (best value, its step, last value); None without a validation.
  """
  steps, values = _series(metrics, primary, ('validation',)).get('validation', ((), ()))
  return (max(values), steps[int(np.argmax(values))], values[-1]) if values else None


def data_facts(data: Mapping) -> dict[str, Any]:
  """Sizes of the splits, examples of each class, and rejected files, from the 'data' part of experiment.json."""
  names, counts, images = data.get('class_names', []), data.get('counts', {}), data.get('images') or {}
  most = max((max(values, default=0) for values in counts.values()), default=0) or 1
  train = counts.get('train') or next(iter(counts.values()), [])
  rows = [
    (name, [(values[i], values[i] / most) if i < len(values) else (0, 0) for values in counts.values()])
    for i, name in enumerate(names)
  ]
  many = len(names) > FEW and any(train)
  rejected = data.get('rejected', [])
  extremes = (int(np.argmax(train)), int(np.argmin(train))) if many and len(train) == len(names) else ()
  return {
    'sizes': {split: images.get(split, sum(values)) for split, values in counts.items()},
    'rows': [] if many else rows,
    'profile': charts.profile(train) if many else '',
    'extremes': [(names[i], train[i]) for i in extremes],
    'notes': data.get('notes', []),
    'rejected': rejected[:_REJECTED],
    'rejected_count': len(rejected),
  }


def speed_curve(metrics: Sequence[Mapping], phases: Sequence[Mapping]) -> dict[str, Any] | None:
  """Draws the chart of images per second; None if no speed was logged."""
  series = _series(metrics, 'images_per_second', ('train',))
  return _chart('Images a second', series, borders=phase_borders(metrics, phases)) if series else None


def options(experiment: Mapping) -> list[tuple[str, Any, str]]:
  """(option, value, reason) of every option; the names of nested options are joined by dots."""
  reasons, flat = experiment['defaults'], _flat(experiment['experiment'])
  return [(name, value, str(reasons.get(name, ''))) for name, value in flat.items()]


def not_finite(metrics: Sequence[Mapping]) -> int:
  """Number of training records whose loss is NaN or infinite."""
  return sum(line.get('split') == 'train' and 'loss' in line and not _finite(line['loss']) for line in metrics)


def _flat(value: Mapping, prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, item in value.items():
    flat |= _flat(item, f'{prefix}{key}.') if isinstance(item, Mapping) and item else {f'{prefix}{key}': item}
  return flat


def _finite(value: Any) -> bool:
  return isinstance(value, (int, float)) and math.isfinite(value)


def _series(metrics: Sequence[Mapping], key: str, splits: Sequence[str] = ('train', 'validation')):
  series = {}
  for split in splits:
    lines = [m for m in metrics if m.get('split') == split and _finite(m.get(key)) and _finite(m.get('step'))]
    points = [(line['step'], line[key]) for line in lines]
    if points:
      series[split] = tuple(map(list, zip(*sorted(points, key=lambda p: p[0]), strict=True)))
  return series


def _spread(series: Mapping) -> float:
  """Largest / smallest value, of those above 1e-3 of the largest, so that the warm-up does not count."""
  values = np.concatenate([np.zeros(1), *(np.asarray(y, float) for _, y in series.values())])
  values = values[values > values.max() * 1e-3]
  return float(values.max() / values.min()) if values.size else 1.0


def _chart(title: str, series: Mapping, **how) -> dict[str, Any]:
  last = [(name, y[-1]) for name, (_, y) in series.items()]
  return {'title': title, 'svg': charts.lines(title, series, **how), 'last': last, **how}
