"""Tells whether a run's data are those that it began with. A copy of the data in another place counts as the same.

experiment.json keeps the class names, the number of images of each class, and three hashes of each split: of the files'
names below the data folder (with the annotations), of their sizes and of their contents. Times and the folder's own
path do not count, so a run may go on after its data were copied to another machine. A file that was written again with
the same bytes is the same file.
"""

import concurrent.futures
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlx import files
from tlx.report import folder
from tlx.types import Dataset

FULL = 20_000  # files; of more, evenly spread ones are read, so that the start of a run takes seconds
WHOLE = 2**22  # bytes; of a larger file, PARTS parts are read
PARTS, PART = 16, 2**16
SHOWN = 5  # maximum number of names in a message


def describe(data: Dataset) -> dict[str, Any]:
  """Makes the part 'data' of experiment.json.

  Args:
    data: the data set.

  Returns:
    The facts of `data.info` as JSON values, and 'fingerprint': {split: {'names', 'sizes', 'contents'}} with hashes, or
    None where the data set has none.
  """
  return folder.plain({**data.info._asdict(), 'fingerprint': _fingerprints(data)})


def _fingerprints(data: Dataset) -> dict[str, dict[str, str | None]]:
  read = functools.lru_cache(maxsize=None)(_digest)  # the splits may share their files

  def contents(paths: Sequence[Path]) -> Iterable[str]:
    every = -(-len(paths) // FULL) or 1
    with concurrent.futures.ThreadPoolExecutor() as pool:
      digests = dict(zip(range(0, len(paths), every), pool.map(read, paths[::every])))
    return [digests.get(i, '') for i in range(len(paths))]

  facts: dict[str, files.Fact] = {
    'names': lambda paths: [''] * len(paths),
    'sizes': lambda paths: [path.stat().st_size for path in paths],
    'contents': contents,
  }
  found: dict[str, dict[str, str | None]] = {split: {} for split in data.splits}
  for name, fact in facts.items():
    with files.portable(fact):
      for split, source in data.splits.items():
        found[split][name] = source.fingerprint()
  return found


def _digest(path: Path) -> str:
  size, digest = path.stat().st_size, hashlib.sha256()
  with path.open('rb') as file:
    if size <= WHOLE:
      digest.update(file.read())
    else:
      for i in range(PARTS):
        file.seek((size - PART) * i // (PARTS - 1))
        digest.update(file.read(PART))
  return digest.hexdigest()


def empty(data: Dataset) -> list[str]:
  """A line for each split without images, which a run cannot use."""
  return [
    f'data set {data.info.name}: its split {split} is empty; next: add images to it, or more to every class'
    for split, source in data.splits.items()
    if not len(source)
  ]


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """What differs between the data that a run began with and those of now.

  Args:
    there: 'data' in experiment.json. Runs of older versions have no 'fingerprint'; then only classes and counts count.
    here: `describe` of now.

  Returns:
    One text for each difference, such as 'class cat is gone'; [] if the data are the same.
  """
  old, new = there.get('class_names') or [], here['class_names']
  gone, added = _missing(old, new), _missing(new, old)
  found = [f'{_classes(gone)} gone'] if gone else []
  found += [f'{_classes(added)} new'] if added else []
  if not found and old != new:
    found.append('the classes have another order')
  found += _counts(there, here)
  marks, now = there.get('fingerprint') or {}, here['fingerprint']
  if not found:
    whats = {'names': 'names or annotations', 'sizes': 'sizes', 'contents': 'contents'}
    for split in now:
      kinds = [kind for kind in whats if (marks.get(split) or {}).get(kind, now[split][kind]) != now[split][kind]]
      found += [f'{split}: other {whats[kinds[0]]} of files'] if kinds else []
  return found


def same(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
  """Whether hashes prove that two data sets are the same, wherever they lie."""
  marks = there.get('fingerprint') or {}
  proven = all((marks.get(split) or {}).get('contents') for split in here['fingerprint'])
  return proven and not changes(there, here)


def _counts(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """The splits and classes whose number of images (in masks: pixels) differs."""
  found = []
  old, new = there.get('counts') or {}, here['counts']
  for split in dict.fromkeys((*old, *new)):
    if (split in old) != (split in new):
      found.append(f'split {split} is {"gone" if split in old else "new"}')
      continue
    pairs = [dict(zip(side['class_names'], side['counts'][split])) for side in (there, here)]
    differ = [name for name in pairs[1] if name in pairs[0] and pairs[0][name] != pairs[1][name]]
    if differ or sum(old[split]) != sum(new[split]):
      each = ', '.join(f'{name} {pairs[0][name]:,} there, {pairs[1][name]:,} here' for name in differ[:SHOWN])
      more = f' and {len(differ) - SHOWN} more classes' if len(differ) > SHOWN else ''
      found.append(f'{split}: {sum(old[split]):,} there, {sum(new[split]):,} here{f" ({each}{more})" if each else ""}')
  return found


def _missing(names: Sequence[str], others: Sequence[str]) -> list[str]:
  others = set(others)
  return [name for name in names if name not in others]


def _classes(names: Sequence[str]) -> str:
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  one = len(names) == 1
  return f'{"class" if one else "classes"} {", ".join(names[:SHOWN])}{more} {"is" if one else "are"}'
