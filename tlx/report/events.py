"""TensorBoard event files, written without TensorFlow.

The records and messages are tensorboardX's; its SummaryWriter is not used, because it writes from a thread behind a
bounded queue: once a full disk has ended that thread, the training loop waits for ever on the queue.
"""

import contextlib
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping

from tlx.report.folder import writing


class EventWriter:
  """Scalars of one run for TensorBoard, in a new file of a folder; every call is on disk when it returns."""

  def __init__(self, folder: str | os.PathLike, purge_step: int | None = None):
    """Opens a new event file.

    Args:
      folder: made when missing; may hold the files of the attempts before a resume.
      purge_step: on resume, the first step to be written again: TensorBoard forgets that step and all after it.

    Raises: TlxError where the folder cannot be written.
    """
    with _without_torch():  # `import tlx` does without both
      from tensorboardX import RecordWriter
      from tensorboardX.proto import event_pb2

    self._event = event_pb2.Event
    folder = pathlib.Path(folder)
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self.path = _new_path(folder)
      self._records = RecordWriter(str(self.path.absolute()))
    self._write(file_version='brain.Event:2')
    if purge_step is not None:
      self._write(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes {tag: number} at a step; None is left out, NaN and infinities are kept. Raises TlxError on a full disk."""
    numbers = {tag: float(value) for tag, value in values.items() if value is not None}
    summary = {'value': [{'tag': tag, 'simple_value': _float32(number)} for tag, number in numbers.items()]}
    if numbers:
      self._write(step=int(step), summary=summary)

  def close(self) -> None:
    """Closes the file; a second call does nothing."""
    if self._records is not None:
      records, self._records = self._records, None
      with writing(self.path):
        records.close()

  def _write(self, **fields) -> None:
    with writing(self.path):
      self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
      self._records.flush()


@contextlib.contextmanager
def _without_torch():
  """tensorboardX imports torch wherever that is installed, for a second, and writes scalars as well without it."""
  hidden = {} if 'torch' in sys.modules else {'torch': None}
  sys.modules.update(hidden)
  try:
    yield
  finally:
    for name in hidden:
      sys.modules.pop(name, None)


def _new_path(folder: pathlib.Path) -> pathlib.Path:
  """A name that sorts after the files that are there: TensorBoard reads them in the order of their names."""
  present = {path.name for path in folder.glob('events.out.tfevents.*')}
  last = max((name.split('.')[3] for name in present), default='')
  seconds = max(f'{int(time.time()):010d}', last)
  names = (f'events.out.tfevents.{seconds}.{number:04d}' for number in itertools.count())
  return folder / next(name for name in names if name not in present)


def _float32(number: float) -> float:
  """The nearest number that the float32 field holds; protobuf refuses what overflows it."""
  largest = 3.4028234663852886e38
  return math.copysign(math.inf, number) if largest < abs(number) < math.inf else number
