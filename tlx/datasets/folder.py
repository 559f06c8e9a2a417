"""The user's own images in one folder per class: PATH/SPLIT/CLASS/*, PATH/CLASS/SPLIT/* or PATH/CLASS/* alone.

Splits are found by name (train, Training, val, dev, eval, test, ...) and by structure, as `tlx.data.class_folders`
describes. Without a validation folder, 'test' is used for validation. Without both, 20 % of the training images are
held back, stratified and seeded. Files may lie in sub-folders of a class. `info.notes` says how the folder was read and
what was not; images that cannot be decoded are left out and listed in `info.rejected`.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tlx import words
from tlx.data import class_folders, decode, duplicates, file_names, known_layouts, left_out, listing
from tlx.data.class_folders import Classes, Layout
from tlx.data.folders import path_of
from tlx.data.split import Labelled, Subset, class_counts, holdout
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, Example, UsageError

SHARE = 0.2  # share of each class that is held back for validation
FULL_CHECK = 20_000  # images; with more, only headers and end markers are checked, so that the start takes seconds


class FolderSource(Labelled):
  """One split of encoded files. It reads a file when an example is needed."""

  def __init__(self, root: pathlib.Path, paths: Sequence[str], labels: np.ndarray):
    self.root, self.paths, self.labels = root, list(paths), labels

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    path = self.paths[index]
    return Example(decode.read(path), int(self.labels[index]), _below(self.root, path))

  def fingerprint(self) -> str | None:
    return fingerprint(self.root, map(pathlib.Path, self.paths))


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if all three have folders. The class names are sorted.

  Args:
    argument: path of the folder.
    seed: of the split, if images are held back.

  Returns:
    The data set.

  Raises:
    UsageError: it lists all problems, one per line: no such folder, no images, a class that is empty, is the only one,
      or is missing from the training folder; splits that cannot be told apart; another kind of data set.
  """
  root = _root(argument)
  found, layout = index(root)
  classes = tuple(layout.splits['train'])
  findings = _inspect([path for part in layout.splits.values() for paths in part.values() for path in paths])
  rejected = tuple((_below(root, path), f.reason) for path, f in findings.items() if f.reason)
  words.refuse(_unusable(root, layout, findings))
  sources = {split: _source(root, part, classes, findings) for split, part in layout.splits.items()}
  splits, note = _with_validation(sources, seed)
  deep = decode.look([path for path, f in findings.items() if f.grey and not f.reason], seed=seed)
  info = DatasetInfo(
    name=root.name,
    class_names=classes,
    counts={split: class_counts(source.labels, len(classes)) for split, source in splits.items()},
    resolution=tuple(np.median([f.size for f in findings.values() if not f.reason], axis=0).astype(int).tolist()),
    source=f'{root}{note}',
    rejected=rejected,
    notes=(*layout.notes, *_left_out(root, found, layout), *duplicates.across(root, _paths(splits)), *deep.notes),
    grey=deep.scale,
  )
  return Dataset(info, splits)


def index(root: pathlib.Path) -> tuple[listing.Listing, Layout]:
  """Lists the files of a folder and finds its splits and classes, without opening a file.

  Args:
    root: the folder.

  Returns:
    The listing and the layout.

  Raises:
    UsageError: as in `load`.
  """
  found = listing.look(root)
  words.refuse(known_layouts.other_than_classes(root, found))
  layout = class_folders.read(found, os.fspath(root))
  words.refuse(_problems(found, layout))
  return found, layout


def _with_validation(splits: Mapping[str, FolderSource], seed: int) -> tuple[dict[str, Labelled | Subset], str]:
  """Adds a split 'validation' if there is none, and a note that says where its images come from."""
  if 'validation' in splits:
    return dict(splits), ''
  if 'test' in splits:
    chosen = {'train': splits['train'], 'validation': splits['test']}
    return chosen, ' (no validation folder: test is used for validation)'
  kept, held = holdout(splits['train'].labels, share=SHARE, seed=seed)
  if not len(held):
    raise UsageError(
      f'{splits["train"].root}: no class has a second image, so that none can be held back for validation; '
      'next: add images, or a folder of validation images'
    )
  chosen = {'train': Subset(splits['train'], kept), 'validation': Subset(splits['train'], held)}
  return chosen, f' ({SHARE:.0%} of each class held back for validation)'


def _root(argument: str) -> pathlib.Path:
  root = path_of('folder', argument)
  if root.is_file():
    raise UsageError(
      f'{argument} is a file, not a folder; unpack it, or choose a folder that holds one folder per class'
    )
  if not root.is_dir():
    parent = next(p for p in root.parents if p.is_dir())
    wanted = root.relative_to(parent).parts[0]
    siblings = sorted(d.name for d in parent.iterdir() if d.is_dir() and not file_names.is_leftover(d.name))
    close = words.near(wanted, siblings) or siblings[:10]
    hint = f'did you mean {" or ".join(close)}?' if close else 'it has no folders at all'
    raise UsageError(f'no folder {argument}: {parent} has no {wanted}; {hint}')
  return root


def _problems(found: listing.Listing, layout: Layout) -> list[str]:
  train, top = layout.splits['train'], layout.tops['train']
  if not any(train.values()):
    loose = len(found.folders[top].images)
    where = (
      f'{loose} lie directly in it, without a class folder' if loose else f'{len(train)} folders, none with an image'
    )
    return [
      f'no images found in the class folders of {top}: {where}; '
      f'next: make one folder per class: {os.path.join(top, "CLASS", "1.jpg")}',
      *left_out.unread(found.left_out),
    ]
  problems = [
    f'class {name!r} is empty: no image in {os.path.join(layout.tops[split], name)}; add images, or remove the folder'
    for split, classes in layout.splits.items()
    for name, paths in classes.items()
    if not paths
  ]
  if len(train) == 1:
    problems.append(f'only one class, {next(iter(train))!r}, in {top}; add at least one more folder of images')
  for split in set(layout.splits) - {'train'}:
    folder, classes = layout.tops[split], layout.splits[split]
    unknown = sorted(set(classes) - set(train))
    close = {name: words.near(name, train)[:1] for name in unknown}
    problems += [
      f'class {name!r} in {folder} is not in {top}, which has {", ".join(train)}'
      + (f'; did you mean {close[name][0]!r}?' if close[name] else '; add it there, or remove it here')
      for name in unknown
    ]
    if not any(classes.values()):
      problems.append(f'no images found in {folder}; make one folder per class there, or remove the folder')
  return problems


def _left_out(root: pathlib.Path, found: listing.Listing, layout: Layout) -> list[str]:
  """Lines about images outside of the class folders, and about files of other kinds."""
  used = {path for classes in layout.splits.values() for paths in classes.values() for path in paths}
  unused = [path for path in found.images(os.fspath(root)) if path not in used]
  lines = left_out.unread(found.left_out)
  if unused:
    such = ', '.join(sorted({os.path.dirname(_below(root, path)) or '.' for path in unused})[:5])
    lines.append(f'{len(unused):,} images lie in no class of a split and are not used; they are in {such}')
  return lines


def _unusable(root: pathlib.Path, layout: Layout, findings: Mapping[str, decode.Finding]) -> list[str]:
  return [
    f'class {name!r}: none of its {len(paths)} images can be decoded, '
    f'such as {_below(root, paths[0])} ({findings[paths[0]].reason})'
    for classes in layout.splits.values()
    for name, paths in classes.items()
    if all(findings[path].reason for path in paths)
  ]


def _inspect(paths: Sequence[str]) -> dict[str, decode.Finding]:
  full = len(paths) <= FULL_CHECK
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return dict(zip(paths, pool.map(lambda path: decode.inspect(path, full=full), paths), strict=True))


def _source(
  root: pathlib.Path, classes: Classes, class_names: Sequence[str], findings: Mapping[str, decode.Finding]
) -> FolderSource:
  named = [(path, label) for label, name in enumerate(class_names) for path in classes.get(name, ())]
  pairs = [(path, label) for path, label in named if not findings[path].reason]
  return FolderSource(root, [path for path, _ in pairs], np.array([label for _, label in pairs], np.int32))


def _paths(splits: Mapping[str, Labelled | Subset]) -> dict[str, list[str]]:
  """{split: the paths of its images}."""
  return {
    split: [source.source.paths[i] for i in source.indices] if isinstance(source, Subset) else source.paths
    for split, source in splits.items()
  }


def _below(root: pathlib.Path, path: str) -> str:
  return pathlib.Path(path).relative_to(root).as_posix()
