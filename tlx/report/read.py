"""Reads a run folder for the report. Missing, damaged or partial files do not raise an error."""

import base64
import io
import math
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlx.report.folder import MetricsLog, plain, read_json
from tlx.types import TlxError

_MISTAKES, _PICTURE_BYTES = 48, 40_000
_KINDS = {b'\x89PNG': 'png', b'\xff\xd8\xff': 'jpeg', b'RIFF': 'webp'}


def load(folder: pathlib.Path, result: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Reads all files of a run folder.

  Args:
    folder: of the run.
    result: takes the place of result.json, if it is not written yet.

  Returns:
    {'experiment', 'result', 'metrics', 'mistakes', 'evaluation', 'problems'}. A missing or damaged file gives {} or
    []; 'problems' has one line for each damaged file.
  """
  problems: list[str] = []

  def attempt(name, read, empty):
    try:
      value = read(folder / name) if (folder / name).exists() else empty
    except (TlxError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
      problems.append(str(error) if isinstance(error, TlxError) else f'{name} cannot be read: {error}')
      return empty
    if not isinstance(value, type(empty)):
      problems.append(f'{name} holds a {type(value).__name__}, not a {type(empty).__name__}')
      return empty
    return value

  names = (
    ('experiment.json', read_json, {}),
    ('result.json', read_json, {}),
    ('metrics.jsonl', MetricsLog.read, []),
    ('mistakes.json', read_json, []),
    ('evaluation.npz', _arrays, {}),
  )
  run = {name.partition('.')[0]: attempt(name, read, empty) for name, read, empty in names}
  found = plain(result) if result else run['result']
  tidy = {key: value for key, value in found.items() if key == 'split' and isinstance(value, str)}
  tidy |= _numbers(found) | {'test': _numbers(_mapping(found, 'test'))} if found else {}
  return run | {'result': tidy, 'experiment': _tidy(run['experiment']), 'problems': problems}


def mistakes(folder: pathlib.Path, records: Sequence, names: Sequence[str]) -> list[dict[str, Any]]:
  """Reads the most confident mistakes.

  Args:
    folder: of the run.
    records: of mistakes.json.
    names: of the classes.

  Returns:
    The records with class names, and with 'picture' and 'heat' as data URLs; None if a picture is missing.
  """

  def called(value):
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else str(value)

  shown = [record for record in records if isinstance(record, Mapping)][:_MISTAKES]
  return [
    dict(
      record,
      label=called(record.get('label')),
      prediction=called(record.get('prediction')),
      picture=picture(folder, record.get('file')),
      heat=picture(folder, record.get('heat')),  # runs of older versions have none
    )
    for record in shown
  ]


def class_names(data: Mapping, evaluation: Mapping) -> list[str]:
  """Names the evaluated classes.

  Args:
    data: the 'data' part of experiment.json.
    evaluation: the arrays of evaluation.npz; the confusion matrix gives the number of classes.

  Returns:
    The names; a class without a name is called 'class 3', for example.
  """
  names = data.get('class_names', [])
  count = len(evaluation['confusion']) if 'confusion' in evaluation else len(names)
  return [*names, *(f'class {i}' for i in range(len(names), count))][:count]


def _mapping(value: Mapping, key: str) -> Mapping:
  return value[key] if isinstance(value.get(key), Mapping) else {}


def _mappings(value: Mapping, key: str) -> list[Mapping]:
  return [item for item in _list(value, key) if isinstance(item, Mapping)]


def _tidy(experiment: Mapping) -> dict[str, Any]:
  """Replaces fields of experiment.json that have an unexpected type by empty ones."""
  data = _mapping(experiment, 'data')
  counts = {split: values for split, values in _mapping(data, 'counts').items() if _all(values, int)}
  rejected = [pair for pair in _list(data, 'rejected') if isinstance(pair, list) and len(pair) == 2]
  fields = {
    'class_names': [str(name) for name in _list(data, 'class_names')],
    'counts': counts,
    'rejected': rejected,
    'notes': [str(note) for note in _list(data, 'notes')],
    'resolution': _list(data, 'resolution'),
  }
  learning = [dict(phase, rows=_mappings(phase, 'rows')) for phase in _mappings(experiment, 'learning')]
  flat = {key: _mapping(experiment, key) for key in ('experiment', 'model', 'environment', 'defaults')}
  return {**experiment, **flat, 'data': {**data, **fields} if data else {}, 'learning': learning}


def _numbers(value: Mapping) -> dict[str, float]:
  return {key: number for key, number in value.items() if isinstance(number, (int, float)) and math.isfinite(number)}


def _list(value: Mapping, key: str) -> list:
  return value[key] if isinstance(value.get(key), list) else []


def _all(values: Any, kind: type) -> bool:
  return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path, allow_pickle=False) as file:
    arrays = {name: file[name] for name in file.files}
  matrix = arrays.get('confusion')
  if matrix is not None and (matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size):
    raise ValueError(f'confusion has the shape {matrix.shape}, not [classes, classes]')
  return arrays


def picture(folder: pathlib.Path, name: Any) -> str | None:
  """Reads a picture as a data URL. A large picture is made smaller.

  Args:
    folder: of the run.
    name: file name, relative to the folder or to its 'mistakes'.

  Returns:
    The URL; None unless it is a picture inside the run folder.
  """
  name = name if isinstance(name, str) else ''
  candidates = [folder / 'mistakes' / name, folder / name]
  path = next((p for p in candidates if name and p.is_file() and p.resolve().is_relative_to(folder.resolve())), None)
  content = path.read_bytes() if path else b''
  kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), None)
  if kind and len(content) > _PICTURE_BYTES:
    content, kind = _smaller(content), 'jpeg'
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}' if kind and content else None


def _smaller(content: bytes) -> bytes:
  from PIL import Image

  try:
    image = Image.open(io.BytesIO(content)).convert('RGB')
    image.thumbnail((192, 192))
    small = io.BytesIO()
    image.save(small, 'JPEG', quality=85)
  except (OSError, ValueError, Image.DecompressionBombError):
    return b''
  return small.getvalue()
