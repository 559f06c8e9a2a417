"""Reads and writes the files of a run folder. A killed process or a full disk leaves no partial file.

JSON has no NaN and no infinity; both are written as null.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlx import files
from tlx.types import TlxError

AGAIN = 'next: run its `tlx finetune` command again, which writes it anew'


def plain(value: Any) -> Any:
  """Converts a value to types that the json module can write.

  Args:
    value: may contain mappings, sequences, sets, paths, and scalars and arrays of NumPy or JAX.

  Returns:
    dicts, lists, texts and numbers. NaN and infinities become None.

  Examples:
    >>> plain({'loss': np.float32(0.5), 'best': float('nan'), 'sizes': (1, 2)})
    {'loss': 0.5, 'best': None, 'sizes': [1, 2]}
  """
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [plain(item) for item in value]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if hasattr(value, 'tolist'):  # scalars and arrays of NumPy and JAX; bfloat16 becomes float
    return plain(np.asarray(value).tolist())
  return value


@contextlib.contextmanager
def writing(path: str | os.PathLike):
  """Turns an OSError of the block into a TlxError with the path, the cause and advice."""
  try:
    yield
  except OSError as error:
    if error.errno in files.FULL:
      advice = f'{files.FULL[error.errno]}, what was there is untouched; free some space and run the same command again'
    else:
      advice = f'{error.strerror or error}; make the folder writable, or choose another with --out'
    raise TlxError(f'cannot write {os.fspath(path)}: {advice}') from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file atomically: a reader sees the old content or the new, and a failed write leaves the old.

  Args:
    path: of the file; missing folders are created.
    content: of the file.

  Raises:
    TlxError: if the disk is full or the folder is not writable.
  """
  path = pathlib.Path(path)
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
      file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
  """`write_bytes` of a text in UTF-8. Lone surrogates, which undecodable file names contain, become escapes."""
  write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """`write_bytes` of a value as indented JSON. `plain` converts the value first."""
  write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file. Raises TlxError if it is missing or damaged."""
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise TlxError(f'cannot read {os.fspath(path)}: {error.strerror}') from error
  except (ValueError, RecursionError) as error:
    raise TlxError(f'{os.fspath(path)} is no JSON ({error}); {AGAIN}') from error


class MetricsLog:
  """A log with one JSON object per line: {'step': int, 'split': 'train' | 'validation', 'phase': name, metric: number}.

  `append` passes the whole line to the operating system before it returns, so that `kill -9` does not lose it.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the log for appending, and deletes a partial last line of a killed writer. Raises TlxError if it cannot."""
    self.path = pathlib.Path(path)
    with writing(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
    self.truncate()

  def append(self, record: Mapping[str, Any]) -> None:
    """Appends a line. If the disk is full, it removes the partial line and raises TlxError."""
    line = json.dumps(plain(record), allow_nan=False).encode() + b'\n'
    with writing(self.path), open(self.path, 'ab', buffering=0) as file:
      start = file.tell()
      try:
        rest = memoryview(line)
        while rest:
          rest = rest[file.write(rest) :]
      except OSError:
        with contextlib.suppress(OSError):
          file.truncate(start)
        raise

  def truncate(self, step: int | None = None, evaluate: bool = False) -> None:
    """Deletes the lines after a step, and damaged lines. Other lines do not change.

    Args:
      step: last step to keep; None keeps all, and damaged lines before the last one.
      evaluate: whether the evaluation at `step` will run again; its line is then deleted too.
    """
    if not self.path.is_file():
      return
    lines = _lines(self.path.read_bytes())
    early = lambda record: _step(record) < step + (not evaluate or record.get('split') == 'train')
    kept = [line for line, record in lines if step is None or (record is not None and early(record))]
    content = b''.join(kept)
    if len(content) != self.path.stat().st_size:
      write_bytes(self.path, content)

  @staticmethod
  def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All records, oldest first; [] without a file. Raises TlxError if a line before the last is damaged."""
    path = pathlib.Path(path)
    lines = _lines(path.read_bytes()) if path.is_file() else []
    broken = [number for number, (_, record) in enumerate(lines, 1) if record is None]
    if broken:
      raise TlxError(f'{path}: line {broken[0]} is no JSON object; delete that line and run the same command again')
    return [record for _, record in lines]


def _lines(content: bytes) -> list[tuple[bytes, dict | None]]:
  """(line, record) of each line; record is None if damaged. A partial or damaged last line is left out."""
  *whole, _ = content.split(b'\n')  # text after the last newline is a partial line
  lines = [(line + b'\n', _record(line)) for line in whole]
  return lines[:-1] if lines and lines[-1][1] is None else lines


def _record(line: bytes) -> dict | None:
  try:
    record = json.loads(line)
  except ValueError:
    return None
  return record if isinstance(record, dict) else None


def _step(record: Mapping[str, Any]) -> float:
  step = record.get('step')
  return step if isinstance(step, (int, float)) else -math.inf
