"""Lists the images below a folder, and counts what is left out. Every entrance of tlx uses this one rule."""

import collections
import os
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tlx import words
from tlx.data import decode
from tlx.types import TlxError

# Folders that systems, network storage and notebooks leave behind. They hold copies, or nothing of the user's.
LEFTOVERS = frozenset({
  '__macosx', '@eadir', '#recycle', '@recycle', '@recently-snapshot', '#snapshot', '~snapshot', '$recycle.bin',
  'system volume information', 'lost+found', '__pycache__', 'found.000',
})  # fmt: skip
SYSTEM_FILES = frozenset({'thumbs.db', 'ehthumbs.db', 'desktop.ini', '.ds_store', 'icon\r', '.gitkeep', '.gitignore'})
RUN, RUN_PARTS = 'experiment.json', frozenset({'checkpoints', 'metrics.jsonl', 'model', 'result.json'})
HEIC = ('.heic', '.heif', '.hif')  # Pillow reads them with the package pillow-heif
HIDDEN, IN_RUNS, CLOSED = 'in hidden folders', 'in run folders', 'folders that cannot be opened'
SPECIAL, BARE = 'not a regular file', 'no extension'


class Folder(NamedTuple):
  """The content of one folder. Both lists are sorted."""

  subfolders: list[str]
  images: list[str]  # those that lie directly in it


class Listing(NamedTuple):
  """The result of `look`."""

  folders: Mapping[str, Folder]  # {path: content} of the folder and of all below it
  left_out: Mapping[str, int]  # {kind of file, or place: number of files}

  def images(self, folder: str) -> list[str]:
    """The images in one of the folders and below it, sorted by folder."""
    here = self.folders[folder]
    return here.images + [image for below in here.subfolders for image in self.images(below)]


def look(folder: str | os.PathLike) -> Listing:
  """Lists a folder and all folders below it. It follows links, except those that lead back up.

  It leaves out hidden folders, leftovers of systems, and run folders of tlx, whose reports hold pictures.

  Args:
    folder: the folder.

  Returns:
    The images by folder, and the number of files that are left out by kind: an extension such as '.heic', or a constant
    of this module.

  Raises:
    OSError: if a folder cannot be read.
  """
  top = os.fspath(folder)
  folders, left_out = {}, collections.Counter()
  waiting, holders = [(top, '', frozenset())], set()
  while waiting:
    path, place, above = waiting.pop()
    if (real := os.path.realpath(path)) in above:
      continue
    try:
      below, images, others = _sorted_out(path)
    except OSError as error:
      if path == top:
        raise TlxError(f'{path}: {error.strerror or error}') from error
      left_out[CLOSED] += 1
      continue
    if not place and path != top and _is_run(others, below):
      place, holders = IN_RUNS, holders | {os.path.dirname(path)}
    inside = [(sub, place or (HIDDEN if is_leftover(os.path.basename(sub)) else '')) for sub in below]
    waiting += [(sub, where, above | {real}) for sub, where in inside]
    if place:
      left_out[place] += len(images)
    else:
      left_out.update(filter(None, map(_kind, others)))
      folders[path] = Folder([sub for sub, where in inside if not where], images)
  return Listing(_tidy(folders, holders), left_out)


def _tidy(folders: Mapping[str, Folder], holders: set[str]) -> dict[str, Folder]:
  """Drops the folders that were not entered, and those that hold nothing but runs."""
  kept = dict(folders)
  for path in sorted(folders, key=len, reverse=True):
    below = [sub for sub in kept[path].subfolders if sub in kept]
    kept[path] = Folder(below, kept[path].images)
    if path in holders and not below and not kept[path].images:
      del kept[path]
  return {path: kept[path] for path in folders if path in kept}


def is_image(name: str) -> bool:
  """Whether a file of this name is an image in a format that tlx reads.

  >>> is_image('cat.JPG'), is_image('._cat.jpg'), is_image('notes.txt')
  (True, False, False)
  """
  return not name.startswith('.') and os.path.splitext(name)[1].lower() in decode.extensions()


def is_leftover(name: str) -> bool:
  """Whether a folder of this name is hidden, or left behind by a system or a notebook.

  >>> is_leftover('.ipynb_checkpoints'), is_leftover('@eaDir'), is_leftover('cats')
  (True, True, False)
  """
  return name.startswith('.') or name.lower() in LEFTOVERS


def same_name(name: str) -> str:
  """The one form of a name that systems write in two: macOS splits 'é' into a letter and an accent (NFD).

  >>> same_name('cafe\\u0301') == 'caf\\u00e9'
  True
  """
  return unicodedata.normalize('NFC', name)


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


def _sorted_out(folder: str) -> tuple[list[str], list[str], list[os.DirEntry]]:
  """The sub-folders and the images of a folder, both sorted, and the other entries."""
  below, images, others, known = [], [], [], decode.extensions()
  with os.scandir(folder) as entries:
    for entry in entries:  # a data set may have millions
      name = entry.name
      if name[name.rfind('.') :].lower() in known and name[0] != '.' and entry.is_file():
        images.append(entry.path)
      elif entry.is_dir():
        below.append(entry.path)
      else:
        others.append(entry)
  return sorted(below), sorted(images), others


def _is_run(others: Iterable[os.DirEntry], below: Iterable[str]) -> bool:
  """Whether a folder of these entries is a run of tlx."""
  names = {entry.name for entry in others}
  return RUN in names and not RUN_PARTS.isdisjoint(names.union(map(os.path.basename, below)))


def _kind(entry: os.DirEntry) -> str:
  """The kind under which a file that is no image is left out; '' for files that nobody misses."""
  name, extension = entry.name.lower(), os.path.splitext(entry.name)[1].lower()
  if name in SYSTEM_FILES or name.startswith('._'):  # macOS stores attributes of NAME in ._NAME
    return ''
  if name.startswith('.'):
    return 'hidden' if extension in decode.extensions() else ''
  if not entry.is_file():
    return SPECIAL
  return extension or BARE
