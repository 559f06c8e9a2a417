"""Builds the report of a run as one HTML page, from the files of the run folder only."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tlx.report import facts, html, read
from tlx.report.folder import write_text
from tlx.types import Task, UsageError


def write_report(
  run_folder: str | os.PathLike, task: Task, result: Mapping[str, Any] | None = None
) -> pathlib.Path:
  """Writes `report.html` into a run folder. The run may be unfinished.

  The page has no external resources, and its content policy permits only its own script.

  Args:
    run_folder: of the run.
    task: of the run.
    result: the content of result.json, if it is not written yet.

  Returns:
    The path of the page.

  Raises:
    UsageError: if the folder does not exist.
    TlxError: if the page cannot be written.
  """
  folder = pathlib.Path(run_folder)
  if not folder.is_dir():
    raise UsageError(f'no run folder at {folder}; give the folder that was --out of tlx finetune')
  path = folder / 'report.html'
  write_text(path, render(context(folder, task, result)))
  return path


def context(folder: pathlib.Path, task: Task, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Collects the values that the page's template shows.

  Args:
    folder: of the run.
    task: of the run.
    result: the content of result.json, if it is not written yet.

  Returns:
    {name: value} for the template.
  """
  run = read.load(folder, result)
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
  """Renders the page as HTML. Values that an unfinished run has not recorded print nothing.

  All values are escaped, except charts and the task's sections, which escape their own text.
  """
  return html.render('tlx.report', 'page.html.j2', 'page.js.j2', page)
