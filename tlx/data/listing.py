"""Lists the images below a folder, and counts what is left out. Every entrance of tlx uses this one rule."""

import collections
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tlx.data import decode, left_out
from tlx.data.file_names import is_leftover
from tlx.types import TlxError

RUN, RUN_PARTS = 'experiment.json', frozenset({'checkpoints', 'metrics.jsonl', 'model', 'result.json'})


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
    of `tlx.data.left_out`.

  Raises:
    TlxError: if the folder itself cannot be read. Of those below it, the ones that cannot be opened are counted.
  """
  top = os.fspath(folder)
  folders, counts = {}, collections.Counter()
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
      counts[left_out.CLOSED] += 1
      continue
    if not place and path != top and _is_run(others, below):
      place, holders = left_out.IN_RUNS, holders | {os.path.dirname(path)}
    inside = [(sub, place or (left_out.HIDDEN if is_leftover(os.path.basename(sub)) else '')) for sub in below]
    waiting += [(sub, where, above | {real}) for sub, where in inside]
    if not place:
      counts.update(filter(None, map(left_out.kind, others)))
      folders[path] = Folder([sub for sub, where in inside if not where], images)
    elif images:
      counts[place] += len(images)
  return Listing(_tidy(folders, holders - {top}), counts)


def _tidy(folders: Mapping[str, Folder], holders: set[str]) -> dict[str, Folder]:
  """Drops the folders that were not entered, and those that hold nothing but runs."""
  kept = dict(folders)
  for path in sorted(folders, key=len, reverse=True):
    below = [sub for sub in kept[path].subfolders if sub in kept]
    kept[path] = Folder(below, kept[path].images)
    if path in holders and not below and not kept[path].images:
      del kept[path]
  return {path: kept[path] for path in folders if path in kept}


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
