"""Reads a folder of classes: which folders are splits, which are classes, and which images each class has.

Splits are found by name (train, Training, seg_train, val, dev, eval, test, ...) and by structure: two or more folders
that hold folders of the same names are splits. PATH/CLASS/SPLIT works as well as PATH/SPLIT/CLASS.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tlx import words
from tlx.data.file_names import same_name
from tlx.data.listing import Listing
from tlx.data.split_names import ROLES, role, told_apart
from tlx.types import UsageError

Classes = Mapping[str, Sequence[str]]  # {class: its images}


class Layout(NamedTuple):
  """The result of `read`."""

  splits: Mapping[str, Classes]  # {split: its classes}; 'train' is among them
  tops: Mapping[str, str]  # {split: the folder that holds its classes}
  notes: Sequence[str] = ()  # how the folder was read, where it is not evident


def read(listing: Listing, root: str) -> Layout:
  """Finds the splits and classes of a folder.

  Args:
    listing: of the folder, by `tlx.data.listing.look`.
    root: its path.

  Returns:
    The layout. A folder without splits is all 'train'.

  Raises:
    UsageError: if it cannot be known which folder is for training, or if two folders are for the same split.
  """
  return _Reader(listing).read(root)


class _Reader:
  """The folders of a listing, with the questions that `read` asks of them."""

  def __init__(self, listing: Listing):
    self.listing, self.folders = listing, listing.folders

  def read(self, root: str) -> Layout:
    top = self.unwrapped(root)
    notes = [f'the images are in {top}'] if top != root else []
    below = self.folders[top].subfolders
    full = [path for path in below if self.holds(path)]
    roles = {path: role(_name(path)) for path in below}
    if any(roles[path] == 'train' and self.names(path) for path in below) and not self.trains(full, roles):
      found = self.by_name(top, below, roles)
    elif full and {roles[path] for path in full} <= {'validation', 'test'}:
      there = ', '.join(map(_name, full))
      raise UsageError(f'{top} has {there} but no train; next: add {os.path.join(top, "train")}')
    elif self.is_class_first(full):
      found = self.class_first(top, full)
    elif self.alike(full):
      found = self.by_structure(top, full)
    else:
      found = Layout({'train': self.classes(below)}, {'train': top})
    return found._replace(notes=[*notes, *found.notes])

  def images(self, path: str) -> list[str]:
    return self.listing.images(path)

  def holds(self, path: str) -> bool:
    """Whether an image lies in a folder or below it."""
    here = self.folders[path]
    return bool(here.images) or any(map(self.holds, here.subfolders))

  def names(self, path: str) -> set[str]:
    """The names of a folder's sub-folders."""
    return {same_name(_name(sub)) for sub in self.folders[path].subfolders}

  def only(self, top: str) -> str | None:
    """The sub-folder whose own sub-folders hold all images of a folder; None if there is no such one."""
    full = [path for path in self.folders[top].subfolders if self.holds(path)]
    alone = len(full) == 1 and not self.folders[top].images and not self.folders[full[0]].images
    return full[0] if alone else None

  def unwrapped(self, top: str) -> str:
    """The folder of the splits or classes, which may lie in a folder that names none."""
    below = self.only(top)
    return top if below is None or role(_name(below)) else self.unwrapped(below)

  def trains(self, full: Sequence[str], roles: Mapping[str, str | None]) -> bool:
    """Whether 'train' is a class of vehicles, beside 'bus' and 'car'."""
    train = next(path for path in roles if roles[path] == 'train' and self.names(path))
    others = [path for path in full if path != train]
    return len(others) > 1 and not any(roles[path] or self.names(path) & self.names(train) for path in others)

  def by_name(self, top: str, below: Sequence[str], roles: Mapping[str, str | None]) -> Layout:
    """Splits whose names tell which they are, with perhaps one more that only its classes tell."""
    tops = {}
    for split in ROLES:
      found = [path for path in below if roles[path] == split]
      if len(found) > 1:
        raise UsageError(
          f'{top} has {len(found)} folders for {split}: {", ".join(map(_name, found))}; next: keep one, or rename them'
        )
      tops |= {split: found[0]} if found else {}
    train = self.names(self.inner(tops['train']))
    like = [path for path in below if path not in tops.values() and self.holds(path) and self.names(path) & train]
    return self.by_structure(top, [*tops.values(), *like]) if like else self.of_tops(tops, [])

  def of_tops(self, tops: Mapping[str, str], notes: Sequence[str]) -> Layout:
    inner = {split: self.inner(path) for split, path in tops.items()}
    if 'test' in inner and not self.names(inner['test']):
      del inner['test']  # images without classes, as in a competition
    return Layout({split: self.classes(self.folders[path].subfolders) for split, path in inner.items()}, inner, notes)

  def inner(self, top: str) -> str:
    """The folder of a split's classes, which one more folder may hold: seg_train/seg_train/CLASS, val/images/CLASS."""
    below = self.only(top)
    return top if below is None else self.inner(below)

  def is_class_first(self, full: Sequence[str]) -> bool:
    """Whether the folders are classes that hold their splits."""
    roles = [role(name) for path in full for name in self.names(path)]
    return 'train' in roles and None not in roles

  def class_first(self, top: str, full: Sequence[str]) -> Layout:
    """The layout PATH/CLASS/SPLIT."""
    parts = {path: {role(_name(sub)): sub for sub in self.folders[path].subfolders} for path in full}
    words.refuse(
      f'class {_name(path)!r} has no folder train, and others have; next: add {os.path.join(path, "train")}'
      for path in full
      if 'train' not in parts[path]
    )
    splits = {
      split: self.classes([path for path in full if split in parts[path]], split)
      for split in ROLES
      if any(split in parts[path] for path in full)
    }
    return Layout(splits, dict.fromkeys(splits, top), ['each class has folders of its own for the splits'])

  def alike(self, full: Sequence[str]) -> bool:
    """Whether the folders hold folders of the same names, and no images beside these."""
    names = [self.names(path) for path in full]
    if len(full) < 2 or not all(names) or any(self.folders[path].images for path in full):
      return False
    shared = len(set.intersection(*names))
    return shared > 1 and 2 * shared >= min(map(len, names))  # CLASS/images/* shares one name

  def by_structure(self, top: str, alike: Sequence[str]) -> Layout:
    """Splits of which at least one has a name that tells nothing."""
    tops, note = told_apart(top, {path: len(self.images(path)) for path in alike})
    return self.of_tops(tops, [note])

  def classes(self, folders: Iterable[str], split: str | None = None) -> Classes:
    """{class: its images}, of class folders, or of their sub-folders for a split. Names in NFC and NFD meet."""
    found = {}
    for path in folders:
      parts = [sub for sub in self.folders[path].subfolders if role(_name(sub)) == split] if split else [path]
      found.setdefault(same_name(_name(path)), []).extend(parts)
    return {name: sorted(image for part in found[name] for image in self.images(part)) for name in sorted(found)}


def _name(path: str) -> str:
  return os.path.basename(path)
