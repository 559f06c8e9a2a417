"""The user's own images: PATH/train/CLASS/*, PATH/validation/CLASS/* and PATH/test/CLASS/*, or PATH/CLASS/* alone.

The validation folder may be called validation, val or valid. Without one, 'test' is used for validation. Without both,
20 % of the training images are held back, stratified and seeded. Files may lie in sub-folders of a class. Hidden files
and files with an extension that Pillow does not read are skipped. Images that cannot be decoded are left out and listed
in `info.rejected`.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tlx import words
from tlx.data import decode
from tlx.data.folders import path_of
from tlx.data.split import Labelled, Subset, class_counts, holdout
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, Example, UsageError

SHARE = 0.2  # share of each class that is held back for validation
FOLDERS = {'train': ('train',), 'validation': ('validation', 'val', 'valid'), 'test': ('test',)}
FULL_CHECK = 20_000  # images; with more, only headers and end markers are checked, so that the start takes seconds

Files = Mapping[str, Sequence[pathlib.Path]]  # class name -> its images


class FolderSource(Labelled):
  """One split of encoded files. It reads a file when an example is needed."""

  def __init__(self, root: pathlib.Path, paths: Sequence[pathlib.Path], labels: np.ndarray):
    self.root, self.paths, self.labels = root, list(paths), labels

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> Example:
    path = self.paths[index]
    return Example(path.read_bytes(), int(self.labels[index]), path.relative_to(self.root).as_posix())

  def fingerprint(self) -> str | None:
    return fingerprint(self.root, self.paths)


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if all three have folders. The class names are sorted.

  Args:
    argument: path of the folder.
    seed: of the split, if images are held back.

  Returns:
    The data set.

  Raises:
    UsageError: it lists all problems, one per line: no such folder, no images, a class that is empty, is the only one,
      or is missing from the training folder.
  """
  root = _root(argument)
  words.refuse(_masks(root, argument))
  folders, note = _layout(root)
  files = {split: {d.name: _images(d) for d in _subfolders(folder)} for split, folder in folders.items()}
  class_names = tuple(sorted(files['train']))
  words.refuse(_problems(folders, files))

  findings = _inspect([path for classes in files.values() for paths in classes.values() for path in paths])
  rejected = tuple((path.relative_to(root).as_posix(), f.reason) for path, f in findings.items() if f.reason)
  usable = {s: {c: [p for p in paths if not findings[p].reason] for c, paths in files[s].items()} for s in files}
  words.refuse(_unusable(root, files, findings))

  splits = {split: _source(root, usable[split], class_names) for split in usable}
  if 'validation' not in splits:
    kept, held = holdout(splits['train'].labels, share=SHARE, seed=seed)
    splits = {'train': Subset(splits['train'], kept), 'validation': Subset(splits['train'], held)}
  info = DatasetInfo(
    name=root.name,
    class_names=class_names,
    counts={split: class_counts(source.labels, len(class_names)) for split, source in splits.items()},
    resolution=tuple(np.median([f.size for f in findings.values() if not f.reason], axis=0).astype(int).tolist()),
    source=f'{root}{note}',
    rejected=rejected,
  )
  return Dataset(info, splits)


def _masks(root: pathlib.Path, argument: str) -> list[str]:
  """The line for a folder whose sub-folders hold images and their masks, not classes; [] for any other."""
  for folder in (root, *_subfolders(root)):
    found = {d.name.lower() for d in _subfolders(folder)}
    masks = found & {'masks', 'annotations', 'labels', 'segmentationclass'}
    if masks and found & {'images', 'jpegimages'}:
      return [f'{folder} holds {", ".join(sorted(found))}: images with masks, not classes; use --data masks:{argument}']
  return []


def _root(argument: str) -> pathlib.Path:
  root = path_of('folder', argument)
  if root.is_file():
    raise UsageError(
      f'{argument} is a file, not a folder; unpack it, or choose a folder that holds one folder per class'
    )
  if not root.is_dir():
    parent = next(p for p in root.parents if p.is_dir())
    wanted = root.relative_to(parent).parts[0]
    siblings = [d.name for d in _subfolders(parent)]
    close = words.near(wanted, siblings) or siblings[:10]
    raise UsageError(f'no folder {argument}: {parent} has no {wanted}; {_did_you_mean(close)}')
  return root


def _did_you_mean(names: Sequence[str]) -> str:
  return f'did you mean {" or ".join(names)}?' if names else 'it has no folders at all'


def _layout(root: pathlib.Path) -> tuple[dict[str, pathlib.Path], str]:
  present = {d.name.lower(): d for d in _subfolders(root)}
  found = {}
  for split, names in FOLDERS.items():
    hits = [present[name] for name in names if name in present]
    if len(hits) > 1:
      raise UsageError(f'{root} has {len(hits)} folders for {split}: {", ".join(h.name for h in hits)}; keep one')
    found |= {split: hits[0]} if hits else {}
  other = len(present) - len(found)
  if 'train' not in found or (
    other and not _subfolders(found['train'])
  ):  # 'train' may be a class, next to 'bus' and 'car'
    if found and not other and 'train' not in found:
      raise UsageError(
        f'{root} has {", ".join(d.name for d in found.values())} but no train; add {root / "train"}'
      )
    return {'train': root}, f' ({SHARE:.0%} of each class held back for validation)'
  if 'validation' in found:
    return found, ''
  if 'test' in found:
    return {
      'train': found['train'],
      'validation': found['test'],
    }, ' (no validation folder: test is used for validation)'
  return found, f' ({SHARE:.0%} of each class held back for validation)'


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(d for d in folder.iterdir() if d.is_dir() and not _hidden(d.name))


def _hidden(name: str) -> bool:
  return name.startswith('.') or name == '__MACOSX'


def _is_image(name: str) -> bool:
  return not _hidden(name) and os.path.splitext(name)[1].lower() in decode.extensions()


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
  found, seen = [], set()
  for current, folders, names in os.walk(folder, followlinks=True):
    real = os.path.realpath(current)
    folders[:] = [] if real in seen else sorted(d for d in folders if not _hidden(d))
    if real not in seen:
      found += [pathlib.Path(current, name) for name in names if _is_image(name)]
    seen.add(real)
  return sorted(found)


def _problems(folders: Mapping[str, pathlib.Path], files: Mapping[str, Files]) -> list[str]:
  train = files['train']
  if not any(train.values()):
    folder = folders['train']
    loose = sum(_is_image(path.name) for path in folder.iterdir() if path.is_file())
    where = (
      f'{loose} lie directly in it, without a class folder' if loose else f'{len(train)} folders, none with an image'
    )
    return [
      f'no images found in the class folders of {folder}: {where}; make one folder per class: {folder / "CLASS/1.jpg"}'
    ]
  problems = [
    f'class {name!r} is empty: no image in {folders[split] / name}; add images, or remove the folder'
    for split in files
    for name, paths in files[split].items()
    if not paths
  ]
  if len(train) == 1:
    problems.append(
      f'only one class, {next(iter(train))!r}, in {folders["train"]}; add at least one more folder of images'
    )
  for split in set(files) - {'train'}:
    unknown = sorted(set(files[split]) - set(train))
    close = {name: words.near(name, train)[:1] for name in unknown}
    problems += [
      f'class {name!r} in {folders[split]} is not in {folders["train"]}, which has {", ".join(train)}'
      + (f'; did you mean {close[name][0]!r}?' if close[name] else '; add it there, or remove it here')
      for name in unknown
    ]
    if not any(files[split].values()):
      problems.append(f'no images found in {folders[split]}; make one folder per class there, or remove the folder')
  return problems


def _unusable(
  root: pathlib.Path, files: Mapping[str, Files], findings: Mapping[pathlib.Path, decode.Finding]
) -> list[str]:
  return [
    f'class {name!r}: none of its {len(paths)} images can be decoded, '
    f'such as {paths[0].relative_to(root)} ({findings[paths[0]].reason})'
    for classes in files.values()
    for name, paths in classes.items()
    if all(findings[path].reason for path in paths)
  ]


def _inspect(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, decode.Finding]:
  full = len(paths) <= FULL_CHECK
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return dict(zip(paths, pool.map(lambda path: decode.inspect(path, full=full), paths), strict=True))


def _source(root: pathlib.Path, classes: Files, class_names: Sequence[str]) -> FolderSource:
  pairs = [(path, label) for label, name in enumerate(class_names) for path in classes.get(name, ())]
  return FolderSource(root, [path for path, _ in pairs], np.array([label for _, label in pairs], np.int32))
