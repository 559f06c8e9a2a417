"""A run folder as one HTML page that needs no network: built from the folder's files alone, whenever it is wanted."""

import math
import os
import pathlib
from typing import Any

from tlx.report import charts, facts, html, read
from tlx.report.folder import write_text
from tlx.types import UsageError


def write_report(run_folder: str | os.PathLike) -> pathlib.Path:
  """Writes `report.html` into a run folder, whatever part of the run is there, and returns its path.

  The page has no external resource, and a content policy that lets nothing but its own script run.

  Raises: UsageError where there is no such folder, TlxError where the page cannot be written.
  """
  folder = pathlib.Path(run_folder)
  if not folder.is_dir():
    raise UsageError(f'no run folder at {folder}; give the folder that was --out of tlx finetune')
  path = folder / 'report.html'
  write_text(path, render(context(folder)))
  return path


def context(folder: pathlib.Path) -> dict[str, Any]:
  """All that the page shows, by section."""
  run = read.load(folder)
  experiment, result, metrics, evaluation = (run[key] for key in ('experiment', 'result', 'metrics', 'evaluation'))
  data, model, environment = (experiment[key] for key in ('data', 'model', 'environment'))
  learning, matrix = experiment['learning'], evaluation.get('confusion')
  names = read.class_names(data, evaluation)
  return {
    'folder': folder.resolve().name,
    'problems': run['problems'],
    'result': result,
    'head': facts.headline(experiment, result, evaluation),
    'curves': facts.curves(metrics, learning),
    'best': facts.best(metrics),
    'not_finite': facts.not_finite(metrics),
    'classes': facts.classes(matrix, names) if matrix is not None else [],
    'confused': facts.confused(matrix, names) if matrix is not None else [],
    'matrix': charts.confusion(matrix, names) if matrix is not None and len(names) <= facts.FEW else '',
    'picture': charts.confusion_picture(matrix) if len(names) > facts.FEW and matrix is not None else '',
    'few': len(names) <= facts.FEW,
    'calibration': facts.calibration(evaluation),
    'mistakes': read.mistakes(folder, run['mistakes'], names),
    'learning': learning,
    'data': data,
    'data_facts': facts.data_facts(data),
    'model': model,
    'speed': facts.speed_curve(metrics, learning),
    'environment': environment,
    'options': facts.options(experiment),
    'command': experiment.get('command'),
  }


def render(page: dict[str, Any]) -> str:
  """The page as HTML: every value is escaped, but for the charts, which escape their own text.

  What an unfinished run has not recorded is no error: it prints as nothing.
  """
  numbers = {'number': charts.number, 'percent': percent, 'duration': duration}
  filters = {name: _or_dash(show) for name, show in numbers.items()} | {'text': text, 'short': charts.short}
  return html.render('tlx.report', 'page.html.j2', 'page.js.j2', page, filters)


def percent(share: float, digits: int = 1) -> str:
  """A share as per cent; never rounded up to 100 % or down to 0 %."""
  if share in (0, 1):
    return f'{share * 100:.0f}\u00a0%'
  smallest = 10.0**-digits
  shown = min(max(share * 100, smallest), 100 - smallest) if 0 < share < 1 else share * 100
  return f'{shown:.{digits}f}\u00a0%'


def duration(seconds: float) -> str:
  """Seconds in the two units that people would use."""
  if seconds < 60:
    return f'{seconds:.1f} s' if seconds < 9.95 else f'{seconds:.0f} s'
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60:,} h {minutes % 60} min'


def text(value: Any) -> str:
  """A value of a JSON file for people."""
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, (int, float)):
    return f'{value:.6g}' if isinstance(value, float) else str(value)
  if isinstance(value, (list, tuple)):
    return ', '.join(map(text, value)) or 'none'
  if isinstance(value, dict):
    return ', '.join(f'{key} {text(item)}' for key, item in value.items()) or 'none'
  return 'none' if value is None else str(value)


def _or_dash(show):
  """The filter for numbers alone: a dash for what a damaged or unfinished run left out."""

  def safe(value, *more):
    return show(value, *more) if isinstance(value, (int, float)) and math.isfinite(value) else '–'

  return safe
