"""What a run comes to, put into numbers, tables and charts: one function for each part of the page.

The parts that depend on the task are in its folder of `tlx/tasks`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.report import charts
from tlx.types import Task

FEW = 30  # classes that are shown one by one; more are summed up
_REJECTED = 50
TITLES = {'miou': 'mIoU', 'map': 'mAP', 'macro_f1': 'Macro F1'}


def headline(experiment: Mapping, result: Mapping) -> dict[str, Any]:
  """What was trained on what, and how much of it learned."""
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
  """95 % interval of a share of `count` trials (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953)."""
  z = 1.96
  middle, room = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
  return (middle - room) / (1 + z * z / count), (middle + room) / (1 + z * z / count)


def curves(metrics: Sequence[Mapping], phases: Sequence[Mapping], task: Task) -> list[dict[str, Any]]:
  """Charts of loss, the task's metrics, learning rate and gradient norm, each where it was logged, with phase borders.

  Of the metrics: the primary one, and those that training logs too.
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
  """'pixel_accuracy' -> 'Pixel accuracy', 'miou' -> 'mIoU'."""
  return TITLES.get(metric, in_text(metric).capitalize())


def in_text(metric: str) -> str:
  """'pixel_accuracy' -> 'pixel accuracy', 'miou' -> 'mIoU'."""
  return TITLES.get(metric, metric.replace('_', ' '))


def phase_borders(metrics: Sequence[Mapping], phases: Sequence[Mapping]) -> list[tuple[float, str]]:
  """(first step, name) of each phase: from the plan where there is one, else from where the log changes its name."""
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
  """Best value of the primary metric on validation, its step and the last value; None where nothing was validated."""
  steps, values = _series(metrics, primary, ('validation',)).get('validation', ((), ()))
  return (max(values), steps[int(np.argmax(values))], values[-1]) if values else None


def data_facts(data: Mapping) -> dict[str, Any]:
  """Sizes of the splits, balance of the classes and the files that were left out."""
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
    'rejected': rejected[:_REJECTED],
    'rejected_count': len(rejected),
  }


def speed_curve(metrics: Sequence[Mapping], phases: Sequence[Mapping]) -> dict[str, Any] | None:
  """Chart of images a second over the steps."""
  series = _series(metrics, 'images_per_second', ('train',))
  return _chart('Images a second', series, borders=phase_borders(metrics, phases)) if series else None


def options(experiment: Mapping) -> list[tuple[str, Any, str]]:
  """(option, value, how it was chosen) for every option, nested ones joined by dots."""
  reasons, flat = experiment['defaults'], _flat(experiment['experiment'])
  return [(name, value, str(reasons.get(name, ''))) for name, value in flat.items()]


def not_finite(metrics: Sequence[Mapping]) -> int:
  """Number of training lines whose loss was NaN or infinite."""
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
  """Largest over smallest positive value, warm-up aside: of values above a thousandth of the largest."""
  values = np.concatenate([np.zeros(1), *(np.asarray(y, float) for _, y in series.values())])
  values = values[values > values.max() * 1e-3]
  return float(values.max() / values.min()) if values.size else 1.0


def _chart(title: str, series: Mapping, **how) -> dict[str, Any]:
  last = [(name, y[-1]) for name, (_, y) in series.items()]
  return {'title': title, 'svg': charts.lines(title, series, **how), 'last': last, **how}
