"""Writes TensorBoard event files without TensorFlow.

It uses tensorboardX's records and messages, but not its SummaryWriter. That writes in a thread with a bounded queue: if
a full disk ends the thread, the training loop waits for the queue for ever.
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
  """Writes the scalars of a run to a new event file. The data of a call is on disk when the call returns."""

  def __init__(self, folder: str | os.PathLike, purge_step: int | None = None):
    """Opens a new event file.

    Args:
      folder: created if missing; it may contain the event files from before a resume.
      purge_step: after a resume, the first step to write again; TensorBoard drops older records of it and later steps.

    Raises:
      TlxError: if the folder is not writable.
    """
    with _without_torch():  # so that `import tlx` imports neither
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
    """Writes scalars.

    Args:
      step: number of the step.
      values: {tag: number}; None is left out, NaN and infinities are written.

    Raises:
      TlxError: if the disk is full.
    """
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
  """Hides torch from tensorboardX, which imports it if installed (1 s) but does not need it for scalars."""
  hidden = {} if 'torch' in sys.modules else {'torch': None}
  sys.modules.update(hidden)
  try:
    yield
  finally:
    for name in hidden:
      sys.modules.pop(name, None)


def _new_path(folder: pathlib.Path) -> pathlib.Path:
  """A file name that sorts after the existing ones, because TensorBoard reads files in the order of their names."""
  present = {path.name for path in folder.glob('events.out.tfevents.*')}
  last = max((name.split('.')[3] for name in present), default='')
  seconds = max(f'{int(time.time()):010d}', last)
  names = (f'events.out.tfevents.{seconds}.{number:04d}' for number in itertools.count())
  return folder / next(name for name in names if name not in present)


def _float32(number: float) -> float:
  """Replaces numbers too large for float32 by infinity, because protobuf rejects them."""
  largest = 3.4028234663852886e38
  return math.copysign(math.inf, number) if largest < abs(number) < math.inf else number
