"""Counts and reports the files of a data set that are not read."""

import collections
import os
from collections.abc import Iterable, Mapping

from tlx import words
from tlx.data import decode
from tlx.data.file_names import SYSTEM_FILES

HEIC = ('.heic', '.heif', '.hif')  # Pillow reads them with the package pillow-heif
HIDDEN, IN_RUNS, CLOSED = 'in hidden folders', 'in run folders', 'folders that cannot be opened'
SPECIAL, BARE = 'not a regular file', 'no extension'


def unread(left_out: Mapping[str, int], but: Iterable[str] = ()) -> list[str]:
  """Says what is left out, and how to have it read.

  Args:
    left_out: as in `Listing`.
    but: kinds that the data set reads in another way.

  Returns:
    One line, or none.

  Examples:
    >>> unread({'.txt': 1, 'no extension': 5, '.csv': 1}, but=['.csv'])
    ['6 files are not read: no extension 5, .txt 1']
  """
  counts = {kind: count for kind, count in left_out.items() if kind not in but}
  if not counts:
    return []
  parts = ', '.join(f'{kind} {count:,}' for kind, count in sorted(counts.items(), key=lambda pair: -pair[1]))
  heic = f'; next: {words.install("heic")}, then tlx reads .heic' if any(kind in HEIC for kind in counts) else ''
  total = sum(counts.values())
  return [f'{total:,} {"file is" if total == 1 else "files are"} not read: {parts}{heic}']


def merged(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
  """Adds up several `Listing.left_out`."""
  return dict(sum((collections.Counter(count) for count in counts), collections.Counter()))


def kind(entry: os.DirEntry) -> str:
  """The kind under which a file that is not an image is counted; '' if it is a system's own, which is not counted."""
  name, extension = entry.name.lower(), os.path.splitext(entry.name)[1].lower()
  if name in SYSTEM_FILES or name.startswith('._'):  # macOS stores attributes of NAME in ._NAME
    return ''
  if name.startswith('.'):
    return 'hidden' if extension in decode.extensions() else ''
  if not entry.is_file():
    return SPECIAL
  return extension or BARE
