"""Images that cannot be read while a run goes on: named, counted, and an error once the data set is gone."""

import logging
import os
import pathlib
import threading
import weakref

from tlx.types import DataSource, TlxError

log = logging.getLogger(__name__)

IN_A_ROW = 32  # images; so many failures one after the other mean that the data are gone
MISSING, DAMAGED = 1 / 4, 1 / 2  # larger shares of a split, of lost files or of all failures, mean the same
SHOWN = 5  # maximum number of names in a message

NEXT = 'next: bring the data back, and run the same command again'

_known: 'weakref.WeakKeyDictionary[DataSource, Unreadable]' = weakref.WeakKeyDictionary()


class Unreadable:
  """The images of one split that could not be read. Several threads may use it."""

  def __init__(self, size: int):
    self.size, self.names = size, {}  # {position: name}
    self.missing, self.streak = set(), set()  # positions: whose file is gone; that failed since the last success
    self._lock = threading.Lock()

  def read(self) -> None:
    """Notes that an image was read."""
    self.streak.clear()

  def failed(self, index: int, name: str | None, error: Exception) -> None:
    """Notes that an image was not read, and warns of it once.

    Args:
      index: its position in the split.
      name: its name, if it is known.
      error: the reason.

    Raises:
      TlxError: if its folder is gone, or too many images cannot be read.
    """
    path = getattr(error, 'filename', None)
    name = name or (os.fspath(path) if isinstance(path, str | os.PathLike) else f'image {index}')
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or 'not enough memory'
    with self._lock:
      new = index not in self.names
      self.names[index] = name
      self.streak.add(index)
      if isinstance(error, FileNotFoundError):
        self.missing.add(index)
      count, missing, row = len(self.names), len(self.missing), len(self.streak)
    if isinstance(error, FileNotFoundError) and path and not pathlib.Path(path).parent.exists():
      raise TlxError(f'{pathlib.Path(path).parent} is gone while it is in use ({name}: {reason}); {NEXT}') from error
    too_many = missing > max(1, MISSING * self.size) or count > max(1, DAMAGED * self.size)
    if too_many or row >= min(IN_A_ROW, max(self.size, 2)):
      gone = f'{count} of {self.size} images cannot be read any more, such as {name}: {reason}'
      raise TlxError(f'{gone}; {NEXT}') from error
    if new:
      log.warning('%s cannot be read and is left out (%d of %d images): %s', name, count, self.size, reason)


def of(source: DataSource) -> Unreadable:
  """The unreadable images of a split; the same object for every pass over it."""
  try:
    return _known.setdefault(source, Unreadable(len(source)))
  except TypeError:  # the source is not hashable, or cannot be referred to weakly
    return Unreadable(len(source))


def summary(source: DataSource) -> str:
  """A line that counts and names the images of a split that could not be read; '' if all could."""
  found = of(source)
  names = list(found.names.values())
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  shown = ', '.join(names[:SHOWN])
  return f'{len(names)} of {found.size} images could not be read and did not count: {shown}{more}' if names else ''
