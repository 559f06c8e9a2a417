"""Finds images that two splits share, byte by byte: a model is then judged by images that it was trained on."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

START = 4096  # bytes that are compared before whole files are


def across(root: pathlib.Path, splits: Mapping[str, Sequence[str | pathlib.Path]]) -> list[str]:
  """Reports the files of a split that an earlier split has too.

  Files are compared by size, then by their first bytes, then by a hash of all bytes. So most are never read.

  Args:
    root: folder of the data set, for the message.
    splits: {split: its files}; 'train' comes first.

  Returns:
    One line per pair of splits that share files.
  """
  owners = [(split, os.fspath(path)) for split, paths in splits.items() for path in paths]
  groups = [owners]
  for key in (os.path.getsize, _start, _whole):
    groups = [shared for group in groups for shared in _grouped(group, key)]
  pairs = collections.defaultdict(list)
  for group in groups:
    firsts = {}
    for split, path in group:
      firsts.setdefault(split, path)
    for split, path in group:
      if split != group[0][0]:
        pairs[split, group[0][0]].append((path, firsts[group[0][0]]))
  show = lambda path: pathlib.Path(path).relative_to(root).as_posix()
  return [
    f'{len(found):,} {"image" if len(found) == 1 else "images"} of {split} also in {other}, such as '
    f'{show(found[0][0])} = {show(found[0][1])}; next: remove them from one of both, or {split} flatters the model'
    for (split, other), found in pairs.items()
  ]


def _grouped(owners, key) -> list:
  """The groups of equal keys that more than one split has, in the order of the splits."""
  found = collections.defaultdict(list)
  for split, path in owners:
    try:
      found[key(path)].append((split, path))
    except OSError:  # the file is gone; reading it will say so
      continue
  return [group for group in found.values() if len({split for split, _ in group}) > 1]


def _start(path: str) -> bytes:
  with open(path, 'rb') as file:
    return file.read(START)


def _whole(path: str) -> bytes:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'blake2b').digest()
