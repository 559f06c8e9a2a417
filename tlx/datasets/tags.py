"""The user's own images with any number of tags each: tags:PATH.

PATH holds images, in folders of any structure, and tags.csv or tags.json:

- tags.csv with the first line `file,tags` and lines such as `cats/1.jpg,cat;indoors`: semicolons separate the tags of
  an image. Or with the first line `file,cat,dog,indoors` and lines such as `cats/1.jpg,1,0,1`. A column `split` may
  hold train, validation or test.
- tags.json: {"cats/1.jpg": ["cat", "indoors"], ...} or [{"file": ..., "tags": [...], "split": ...}, ...].

Without splits, a random 20 % of the images are held back for validation; every tag stays in training. If there is a
split test but no validation, 'test' is used for validation. Images that cannot be decoded, images without an entry, and
entries without an image are left out and listed in `info.rejected`.
"""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tlx import words
from tlx.data import decode, dense_split, duplicates, file_names, left_out, listing
from tlx.data.folders import folder_of
from tlx.data.split_names import ROLES, role
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, DataSource, Example, UsageError

FILES = ('tags.csv', 'tags.json')


class Entry(NamedTuple):
  """One line of the table."""

  file: str  # path below PATH, with slashes
  tags: tuple[str, ...]
  split: str | None = None  # None = the table does not say


class TagSource(DataSource):
  """One split of encoded images, and the ids of their tags. It reads a file when an example is needed."""

  def __init__(self, root: pathlib.Path, paths: Sequence[pathlib.Path], tags: Sequence[Sequence[int]]):
    self.root, self.paths, self.tags = root, list(paths), [list(ids) for ids in tags]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    path = self.paths[index]
    return Example(decode.read(path), self.tags[index], path.relative_to(self.root).as_posix())

  def annotation(self, index: int) -> list[int]:
    """The ids of the tags of an image, in ascending order."""
    return self.tags[index]

  def fingerprint(self) -> str | None:
    whole = fingerprint(self.root, self.paths)
    return whole and hashlib.sha256(f'{whole} {self.tags}'.encode()).hexdigest()


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if there is one. The tag names are sorted.

  Args:
    argument: path of the folder.
    seed: random seed of the split, if images are held back.

  Returns:
    The data set.

  Raises:
    UsageError: it lists the problems, one per line: no such folder, no table, a table that cannot be read, an unknown
      split, no image with a tag, a tag that training lacks, a split without images, an image without a split.
  """
  root = folder_of('tags', argument, f'the images and {" or ".join(FILES)}')
  there = listing.look(root)
  images = [pathlib.Path(path).relative_to(root).as_posix() for path in there.images(str(root))]
  stored = {file_names.same_name(file): file for file in images}  # the table may write an accent in another form
  entries = [e._replace(file=stored.get(file_names.same_name(e.file), e.file)) for e in _entries(root)]
  findings = {e.file: decode.inspect(root / e.file) for e in entries if (root / e.file).is_file()}
  usable = [e for e in entries if e.file in findings and not findings[e.file].reason]
  names = tuple(sorted({tag for e in usable for tag in e.tags}))
  if not names:
    raise UsageError(f'{root}: no image has a tag; fill in {" or ".join(FILES)}')
  place = {name: i for i, name in enumerate(names)}
  hot = np.zeros((len(usable), len(names)), np.int64)
  for row, e in zip(hot, usable):
    row[[place[tag] for tag in e.tags]] = 1
  parts, note = _parts(usable, hot, seed)
  words.refuse(_problems(parts, hot, names, usable))
  sources = {
    split: TagSource(root, [root / usable[i].file for i in rows], [np.flatnonzero(hot[i]).tolist() for i in rows])
    for split, rows in parts.items()
  }
  deep = decode.look([root / e.file for e in usable if findings[e.file].grey], seed=seed)
  info = DatasetInfo(
    name=root.name,
    class_names=names,
    counts={split: tuple(hot[rows].sum(axis=0).tolist()) for split, rows in parts.items()},
    resolution=tuple(np.median([findings[e.file].size for e in usable], axis=0).astype(int).tolist()),
    source=f'{root}{note}',
    rejected=_left_out(entries, sorted(images), findings),
    task='multilabel',
    images={split: len(rows) for split, rows in parts.items()},
    grey=deep.scale,
    notes=(
      *deep.notes,
      *left_out.unread(there.left_out, but=('.csv', '.json')),
      *duplicates.across(root, {split: source.paths for split, source in sources.items()}),
    ),
  )
  return Dataset(info, sources)


def _entries(root: pathlib.Path) -> list[Entry]:
  """Reads the table. Raises UsageError with all problems of the table."""
  there = [root / name for name in FILES if (root / name).is_file()]
  if len(there) != 1:
    raise UsageError(f'{root} has {len(there)} of {" and ".join(FILES)}; provide one of them')
  content, read = there[0].read_bytes(), _of_csv if there[0].suffix == '.csv' else _of_json
  try:
    entries = read(content.decode('utf-8-sig'))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UsageError(f'{there[0]} cannot be read: {error}; see the forms in `tlx/datasets/tags.py`') from None
  problems = [f'{there[0]}: {file} stands in it twice' for file in _twice([e.file for e in entries])]
  known = lambda e: e.split is None or role(e.split)
  problems += [
    f'{there[0]}: {e.file} has the split {e.split!r}{words.suggest(e.split, ROLES)}' for e in entries if not known(e)
  ]
  words.refuse(problems)
  return [e._replace(split=e.split and role(e.split)) for e in entries]


def _of_csv(text: str) -> list[Entry]:
  """Reads the text of a tags.csv. Raises ValueError without a column 'file'."""
  rows = list(csv.DictReader(io.StringIO(text)))
  columns = list(rows[0]) if rows else []
  if 'file' not in columns:
    raise ValueError(f'its first line has no column "file"; it has {", ".join(map(str, columns)) or "nothing"}')
  hot = [name for name in columns if name not in ('file', 'split', 'tags')]

  def tags(row: Mapping[str, str]) -> tuple[str, ...]:
    listed = [tag.strip() for tag in (row.get('tags') or '').split(';')]
    return (*filter(None, listed), *(name for name in hot if (row[name] or '0').strip() not in ('0', '0.0', 'False')))

  split = lambda row: (row.get('split') or '').strip() or None
  return [Entry(row['file'].strip().replace('\\', '/'), tags(row), split(row)) for row in rows]


def _of_json(text: str) -> list[Entry]:
  """Reads the text of a tags.json."""
  content = json.loads(text)
  rows = [{'file': file, 'tags': tags} for file, tags in content.items()] if isinstance(content, dict) else content
  return [Entry(str(row['file']).replace('\\', '/'), tuple(map(str, row['tags'])), row.get('split')) for row in rows]


def _parts(entries: Sequence[Entry], hot: np.ndarray, seed: int) -> tuple[dict[str, np.ndarray], str]:
  """{split: positions in `entries`}, and a note on where the validation images come from."""
  named = {split: np.flatnonzero([e.split == split for e in entries]) for split in ('train', 'validation', 'test')}
  if not any(e.split for e in entries):
    kept, held = dense_split.holdout(hot, share=dense_split.SHARE, seed=seed)
    return {'train': kept, 'validation': held}, dense_split.HELD_BACK
  found = {split: rows for split, rows in named.items() if len(rows)}
  if 'validation' not in found and 'test' in found:
    return {'train': named['train'], 'validation': found['test']}, dense_split.FROM_TEST
  return {'train': named['train'], 'validation': named['validation'], **found}, ''


def _problems(
  parts: Mapping[str, np.ndarray], hot: np.ndarray, names: Sequence[str], entries: Sequence[Entry]
) -> list[str]:
  """One line for each problem of the splits."""
  problems = [f'the split {split} has no image; next: give it some' for split, rows in parts.items() if not len(rows)]
  lacks = np.flatnonzero(hot.sum(axis=0) * (hot[parts['train']].sum(axis=0) == 0))
  problems += [f'no training image has the tag {names[c]!r}; next: move one there, or remove the tag' for c in lacks]
  missing = [e.file for e in entries if e.split is None and any(other.split for other in entries)]
  return problems + [f'{file} has no split and others have; next: give it one' for file in missing[:10]]


def _left_out(entries: Sequence[Entry], images: Iterable[str], findings: Mapping) -> tuple[tuple[str, str], ...]:
  """(file, reason) for every entry that cannot be used and for every image without an entry."""
  gone = [(e.file, findings[e.file].reason if e.file in findings else 'no such file') for e in entries]
  known = {e.file for e in entries}
  unknown = [(file, 'it has no tags') for file in images if file not in known]
  return (*((file, why) for file, why in gone if why), *unknown)


def _twice(files: Sequence[str]) -> list[str]:
  """The files that occur more than once, sorted."""
  return sorted({file for file in files if files.count(file) > 1}) if len(set(files)) < len(files) else []
