"""Files of a run folder: whole or not there at all, whatever is killed and however full the disk is.

JSON has no NaN and no infinity: both are written as null.
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


def plain(value: Any) -> Any:
  """Value as json takes it: NumPy and JAX scalars and arrays become Python's, paths text, NaN and infinities None."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [plain(item) for item in value]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if hasattr(value, 'tolist'):  # NumPy scalars, NumPy arrays and JAX arrays; bfloat16 lists as Python floats
    return plain(np.asarray(value).tolist())
  return value


@contextlib.contextmanager
def writing(path: str | os.PathLike):
  """Turns an OSError of the block into a TlxError: one line with the path, the cause and the next move."""
  try:
    yield
  except OSError as error:
    if error.errno in files.FULL:
      advice = f'{files.FULL[error.errno]}, what was there is untouched; free some space and run the same command again'
    else:
      advice = f'{error.strerror or error}; make the folder writable, or choose another with --out'
    raise TlxError(f'cannot write {os.fspath(path)}: {advice}') from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Replaces a file in one move: a reader sees the old content or the new, and a failed write leaves the old.

  Raises: TlxError where the disk is full or the folder cannot be written.
  """
  path = pathlib.Path(path)
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
      file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
  """`write_bytes` in UTF-8; lone surrogates (undecodable file names) are kept as escapes."""
  write_bytes(path, text.encode('utf-8', 'backslashreplace'))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a value as indented JSON in one move. See `plain` for what is converted, `write_bytes` for the errors."""
  write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """The value in a JSON file. Raises TlxError where it is missing or damaged."""
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise TlxError(f'cannot read {os.fspath(path)}: {error.strerror}') from error
  except ValueError as error:
    raise TlxError(f'{os.fspath(path)} is no JSON ({error}); delete it and run the same command again') from error


class MetricsLog:
  """Appends one JSON object a line: {'step': int, 'split': 'train' | 'validation', 'phase': name, metric: number}.

  A line is handed to the system in full before `append` returns, so that kill -9 loses nothing that was appended.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens the log for appending, without the half line that a killed writer may have left."""
    self.path = pathlib.Path(path)
    with writing(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
    self.truncate()

  def append(self, record: Mapping[str, Any]) -> None:
    """Adds a line. Raises TlxError on a full disk, and takes back what the failed write has left."""
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
    """Drops lines beyond `step` (None: none) and a broken last line; every other line stays byte for byte.

    evaluate: the evaluation at `step` is to come, so that a line of it is dropped too.
    """
    if not self.path.is_file():
      return
    lines = _lines(self.path.read_bytes())
    early = lambda record: _step(record) < step + (not evaluate or record.get('split') == 'train')
    kept = [line for line, record in lines if record is None or step is None or early(record)]
    content = b''.join(kept)
    if len(content) != self.path.stat().st_size:
      write_bytes(self.path, content)

  @staticmethod
  def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All records, oldest first; [] where there is no file. Raises TlxError where a line before the last is damaged."""
    path = pathlib.Path(path)
    lines = _lines(path.read_bytes()) if path.is_file() else []
    broken = [number for number, (_, record) in enumerate(lines, 1) if record is None]
    if broken:
      raise TlxError(f'{path}: line {broken[0]} is no JSON object; delete that line and run the same command again')
    return [record for _, record in lines]


def _lines(content: bytes) -> list[tuple[bytes, dict | None]]:
  """Lines with their records, None for a damaged one; a last line that is unfinished or damaged is left out."""
  *whole, _ = content.split(b'\n')  # what follows the last newline was never finished
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
