"""A run folder as one HTML page that needs no network: built from the folder's files alone, whenever it is wanted."""

import os
import pathlib
from typing import Any

from tlx.report import facts, html, read
from tlx.report.folder import write_text
from tlx.types import Task, UsageError


def write_report(run_folder: str | os.PathLike, task: Task) -> pathlib.Path:
  """Writes `report.html` into a run folder, whatever part of the run is there, and returns its path.

  The page has no external resource, and a content policy that lets nothing but its own script run.

  Raises: UsageError where there is no such folder, TlxError where the page cannot be written.
  """
  folder = pathlib.Path(run_folder)
  if not folder.is_dir():
    raise UsageError(f'no run folder at {folder}; give the folder that was --out of tlx finetune')
  path = folder / 'report.html'
  write_text(path, render(context(folder, task)))
  return path


def context(folder: pathlib.Path, task: Task) -> dict[str, Any]:
  """All that the page shows, by section."""
  run = read.load(folder)
  experiment, result, metrics, evaluation = (run[key] for key in ('experiment', 'result', 'metrics', 'evaluation'))
  data, model, environment = (experiment[key] for key in ('data', 'model', 'environment'))
  learning = experiment['learning']
  return {
    'folder': folder.resolve().name,
    'problems': run['problems'],
    'primary': task.primary,
    'primary_in_text': facts.in_text(task.primary),
    'result': result,
    'head': facts.headline(experiment, result),
    'cards': task.cards(result, evaluation) if result else [],
    'sections': task.sections(run | {'folder': folder}),
    'curves': facts.curves(metrics, learning, task),
    'best': facts.best(metrics, task.primary),
    'not_finite': facts.not_finite(metrics),
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
  """The page as HTML: every value is escaped, but for charts and the task's sections, which escape their own text.

  What an unfinished run has not recorded is no error: it prints as nothing.
  """
  return html.render('tlx.report', 'page.html.j2', 'page.js.j2', page)
