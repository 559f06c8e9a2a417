"""Finds the images and masks of a folder, in the layouts that people use, and pairs each image with its mask."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tlx.data import file_names, left_out, listing, masks
from tlx.data.split_names import ROLES, role, told_apart
from tlx.types import UsageError

IMAGES = ('images', 'image', 'imgs', 'img', 'jpegimages')
MASKS = ('masks', 'mask', 'annotations', 'annotation', 'labels', 'label', 'segmentationclass')
ENDINGS = ('_mask', '-mask', '_masks', '_label', '_labels', '_gt', '_seg')  # a mask's name = its image's + one of these
VOC_LISTS = pathlib.Path('ImageSets', 'Segmentation')
PHOTOGRAPHS = ('.jpg', '.jpeg', '.webp')  # NAME.png is the mask of NAME.jpg in the same folder
LINES = 10  # maximum number of problems of one kind in a message


class Pair(NamedTuple):
  """An image and its mask."""

  image: pathlib.Path
  mask: pathlib.Path


class Found(NamedTuple):
  """The result of `find`."""

  pairs: Mapping[str, Sequence[Pair]]  # {split: its pairs}; only 'train' if the folder has no splits
  problems: Sequence[str]  # one line each, for an error message
  notes: Sequence[str] = ()  # how the folder was read, and what was not
  voc: bool = False  # whether the folder has the layout of Pascal VOC


def find(root: pathlib.Path) -> Found:
  """Finds the pairs of a folder that has one of the layouts in the docstring of `tlx.datasets.masks`.

  Args:
    root: the folder.

  Returns:
    The pairs, the problems, and what is not used.

  Raises:
    UsageError: if the folder has none of these layouts, no split 'train', or two folders for one split.
  """
  if (root / VOC_LISTS).is_dir():
    return _voc(root)
  images, labels = _child(root, IMAGES), _child(root, MASKS)
  if images and labels:
    if not (splits := _splits(images)):
      return _folders(root, {'train': (images, labels)}, _others(root, [images, labels]))
    masks_of = _splits(labels)
    folders = {name: (folder, masks_of.get(name, labels / folder.name)) for name, folder in splits.items()}
    return _folders(root, folders, _others(root, [images, labels]) + _others(images, splits.values()))
  splits, notes = _alike(root, _splits(root))
  if splits:
    return _folders(root, {name: _inside(d) for name, d in splits.items()}, notes + _others(root, splits.values()))
  if any(file_names.is_image(path.name) for path in root.iterdir()):
    return _folders(root, {'train': (root, root)}, _others(root, []))
  raise UsageError(_nothing(root))


def _alike(root: pathlib.Path, splits: Mapping[str, pathlib.Path]) -> tuple[dict[str, pathlib.Path], list[str]]:
  """Adds the folders that hold images and masks too, but whose names tell no split; and a note on what they are for."""
  more = [d for d in _subfolders(root) if d not in splits.values() and _child(d, IMAGES) and _child(d, MASKS)]
  if not more or len(splits) + len(more) < 2:
    return dict(splits), []
  tops, note = told_apart(str(root), {str(d): len(_images(_inside(d)[0])) for d in [*splits.values(), *more]})
  return {split: pathlib.Path(path) for split, path in tops.items()}, [note]


def _inside(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """The folders of a split's images and of its masks; the folder of the split for both if it has neither."""
  images, labels = _child(folder, IMAGES), _child(folder, MASKS)
  return (images or folder / IMAGES[0], labels or folder / MASKS[0]) if images or labels else (folder, folder)


def _nothing(root: pathlib.Path) -> str:
  """The error message for a folder without a known layout."""
  below = [d for d in _subfolders(root) if (d / VOC_LISTS).is_dir() or _splits(d) or _child(d, MASKS)]
  if below:
    return f'{root} has no images and masks, but {below[0]} has; write --data masks:{below[0]}'
  there = ', '.join(d.name for d in _subfolders(root)[:LINES]) or 'no folder'
  return (
    f'{root} has neither train/ nor images/ with masks/ nor {VOC_LISTS}/; there is {there}; '
    f'next: put images in {root / "train" / "images"} and masks of the same names in {root / "train" / "masks"}'
  )


def _voc(root: pathlib.Path) -> Found:
  """Finds the pairs of a folder in the layout of Pascal VOC, whose text files list the images of each split."""
  images, labels, lists = root / 'JPEGImages', root / 'SegmentationClass', root / VOC_LISTS
  names = {path.stem: path.read_text().split() for path in sorted(lists.glob('*.txt'))}
  chosen = {split: names[known] for known in sorted(names) if (split := role(known))}
  if 'train' not in chosen:
    raise UsageError(f'{lists} has no train.txt; there is {", ".join(names) or "no list"}')
  image_of, mask_of = ({path.stem: path for path in _images(folder)} for folder in (images, labels))
  if 'test' in chosen and not any(name in mask_of for name in chosen['test']):
    del chosen['test']  # the masks of VOC's test images are not published
  problems, pairs = [], {}
  for split, wanted in chosen.items():
    for folder, files in ((images, image_of), (labels, mask_of)):
      missing = [f'{name} of {VOC_LISTS / split}.txt has no file in {folder}' for name in wanted if name not in files]
      problems += shortened(missing)
    pairs[split] = [Pair(image_of[name], mask_of[name]) for name in wanted if name in image_of and name in mask_of]
  return Found(pairs, problems, voc=True)


def _folders(
  root: pathlib.Path, folders: Mapping[str, tuple[pathlib.Path, pathlib.Path]], notes: Sequence[str]
) -> Found:
  """Finds the pairs of {split: (folder of images, folder of masks)}."""
  if 'train' not in folders:
    there = ', '.join(images.name for images, _ in folders.values())
    raise UsageError(f'{root} has no train, only {there}; next: add a folder train beside them')
  pairs, problems, counts = {}, [], []
  for split, both in folders.items():
    if missing := [folder for folder in both if not folder.is_dir()]:
      pairs[split] = []
      problems.append(f'there is no folder {missing[0]}; next: add it, or remove the split {split}')
      continue
    images, labels = both
    found = {folder: listing.look(folder) for folder in dict.fromkeys(both)}
    image_files, mask_files = (sorted(map(pathlib.Path, found[folder].images(str(folder)))) for folder in both)
    if images == labels:
      mask_files = _masks_beside_images(image_files)
      image_files = sorted(set(image_files) - set(mask_files))
    pairs[split], wrong = _match(root, images, image_files, labels, mask_files)
    problems += wrong
    counts += [each.left_out for each in found.values()]
  return Found(pairs, problems, [*notes, *left_out.unread(left_out.merged(counts))])


def _match(
  root: pathlib.Path,
  images: pathlib.Path,
  image_files: Sequence[pathlib.Path],
  labels: pathlib.Path,
  mask_files: Sequence[pathlib.Path],
) -> tuple[list[Pair], list[str]]:
  """Pairs files that have the same path below their folders, without the extension and one of the `ENDINGS`."""
  named, problems = {}, []
  show = lambda path: path.relative_to(root).as_posix()
  for path in image_files:
    other = named.setdefault(_key(images, path), path)
    if other is not path:
      problems.append(f'{show(path)} and {show(other)} have the same name; next: rename or remove one, and its mask')
  mask_of, orphans = {}, []
  for path in mask_files:
    key = _key(labels, path)
    key = key if key in named else _without_ending(key)
    if key not in named:
      orphans.append(f'mask {show(path)} has no image in {show(images)}; next: add the image, or remove the mask')
    elif key in mask_of:
      problems.append(f'image {show(named[key])} has two masks, {show(mask_of[key])} and {show(path)}; next: keep one')
    else:
      mask_of[key] = path
  bare = [
    f'image {show(path)} has no mask in {show(labels)}; next: add {labels.relative_to(root) / key}.png, or remove it'
    for key, path in named.items()
    if key not in mask_of
  ]
  if not image_files:
    problems.append(f'there is no image in {images}; next: add images, or remove the folder')
  pairs = [Pair(path, mask_of[key]) for key, path in named.items() if key in mask_of]
  return pairs, shortened(problems) + shortened(bare) + shortened(orphans)


def _masks_beside_images(files: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Tells the masks in a folder that contains images too.

  These are NAME_mask.png, unless it has a mask of its own (NAME_mask_mask.png), and NAME.png beside NAME.jpg.
  """
  photographs = {path.with_suffix('') for path in files if path.suffix.lower() in PHOTOGRAPHS}
  stems = {str(path.with_suffix('')) for path in files}

  def is_mask(path: pathlib.Path) -> bool:
    stem = str(path.with_suffix(''))
    has_ending = _without_ending(stem) != stem and not any(stem + ending in stems for ending in ENDINGS)
    return path.suffix.lower() in masks.EXTENSIONS and (has_ending or path.with_suffix('') in photographs)

  return [path for path in files if is_mask(path)]


def _key(folder: pathlib.Path, path: pathlib.Path) -> str:
  """The path of a file below the folder, with slashes and without the extension; one form of each accent."""
  return file_names.same_name(path.relative_to(folder).with_suffix('').as_posix())


def _without_ending(key: str) -> str:
  return next((key[: -len(ending)] for ending in ENDINGS if key.lower().endswith(ending)), key)


def _splits(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{split: sub-folder} for the sub-folders that are named after a split."""
  found = {}
  for split in ROLES:
    hits = [d for d in _subfolders(folder) if role(d.name) == split]
    if len(hits) > 1:
      there = ', '.join(d.name for d in hits)
      raise UsageError(f'{folder} has {len(hits)} folders for {split}: {there}; next: keep one')
    found |= {split: hits[0]} if hits else {}
  return found


def _child(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
  """The sub-folder with the first of these names that exists, in any case of letters; None if none exists."""
  present = {d.name.lower(): d for d in _subfolders(folder)}
  return next((present[name] for name in names if name in present), None)


def _others(folder: pathlib.Path, used: Iterable[pathlib.Path]) -> list[str]:
  """One line for each sub-folder that the layout does not use."""
  return [f'{d} is a folder that the layout does not use' for d in _subfolders(folder) if d not in set(used)]


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(map(pathlib.Path, listing.look(folder).images(str(folder))))


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(d for d in folder.iterdir() if d.is_dir() and not file_names.is_leftover(d.name))


def shortened(lines: Sequence[str]) -> list[str]:
  """Shortens a list of problems of one kind to the first `LINES`, and says how many follow.

  Args:
    lines: one problem each.

  Returns:
    At most LINES + 1 lines.

  Examples:
    >>> shortened(['no mask'] * 12)[-1]
    'and 2 more like the last line'
  """
  rest = len(lines) - LINES
  return [*lines[:LINES], f'and {rest} more like the last line'] if rest > 0 else list(lines)
