"""The user's own images with one segmentation mask each: masks:PATH, in one of these layouts.

- PATH/SPLIT/images/* and PATH/SPLIT/masks/*
- PATH/images/SPLIT/* and PATH/masks/SPLIT/*
- PATH/images/* and PATH/masks/*, without splits
- PATH/SPLIT/* with NAME.jpg next to NAME.png or NAME_mask.png; also directly in PATH
- Pascal VOC: JPEGImages, SegmentationClass and ImageSets/Segmentation/*.txt

SPLIT is a name such as train, val, dev or Testing (`tlx.data.split_names.role`). The folder of masks may also be
called annotations or labels.
Without validation images, 'test' is used for validation. Without both, a random 20 % of the training images are held
back for validation; every class stays in training.

PATH/classes.json names the classes (`tlx.data.mask_classes.of_file` describes its forms). Without it, every value
is a class, except 255, which is ignored. Files that cannot be decoded, and images without a labelled pixel, are left
out and listed in `info.rejected`.
"""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tlx import words
from tlx.data import decode, dense_split, duplicates, mask_classes, mask_folders, masks
from tlx.data.folders import folder_of
from tlx.data.mask_classes import Legend
from tlx.data.mask_folders import Pair
from tlx.data.masks import IGNORE
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, DataSource, Example, TlxError, UsageError

FULL_CHECK = 20_000  # images; with more, tlx checks only headers, and counts pixels in a part of the masks
VOC = (  # the classes of Pascal VOC
  'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
  'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip

Splits = Mapping[str, Sequence[Pair]]  # {split: its pairs}


class MaskSource(DataSource):
  """One split of encoded images and masks. It reads a file when an example is needed."""

  def __init__(self, root: pathlib.Path, pairs: Sequence[Pair], sizes: Sequence[tuple[int, int]], legend: Legend):
    self.root, self.pairs, self.sizes, self.legend = root, list(pairs), list(sizes), legend

  def __len__(self) -> int:
    return len(self.pairs)

  def __getitem__(self, index: int) -> Example:
    image = self.pairs[index].image
    return Example(decode.read(image), self.annotation(index), image.relative_to(self.root).as_posix())

  def annotation(self, index: int) -> np.ndarray:
    """Reads the mask uint8 [h, w]: class indices, or IGNORE. Raises TlxError if the file cannot be read."""
    path = self.pairs[index].mask
    try:
      return self.legend.decode(path.read_bytes())
    except TlxError as error:
      raise TlxError(f'{path}: {error}') from error

  def size(self, index: int) -> tuple[int, int]:
    """Height and width of the image, pixels."""
    return self.sizes[index]

  def fingerprint(self) -> str | None:
    whole = fingerprint(self.root, [path for pair in self.pairs for path in pair])
    return whole and hashlib.sha256(f'{whole} {self.legend}'.encode()).hexdigest()


class Facts(NamedTuple):
  """The result of checking one pair."""

  reason: str  # why the image cannot be used; '' if it can
  size: tuple[int, int]  # height and width of the upright image, pixels
  grey: str  # as in decode.Finding
  mask: masks.Found  # the values in the mask


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if there is one.

  Args:
    argument: path of the folder.
    seed: random seed of the split, if images are held back.

  Returns:
    The data set.

  Raises:
    UsageError: it lists all problems, one per line: an image without a mask, a mask without an image, a mask whose size
      differs from its image, values or colours without a class, a class that training lacks, a split without images.
  """
  root = folder_of('masks', argument, 'the images and the masks')
  found = mask_folders.find(root)
  legend, facts = _survey(root, found)
  rejected = {pair: reason for pair, fact in facts.items() if (reason := fact.reason or _empty(fact, legend))}
  splits = {split: [p for p in pairs if p not in rejected] for split, pairs in found.pairs.items()}
  words.refuse(_without_images(splits, rejected))
  counts = {split: legend.counts([facts[pair].mask for pair in pairs]) for split, pairs in splits.items()}
  parts, note = dense_split.with_validation(counts, seed=seed)
  splits = {split: [splits[given][i] for i in rows] for split, (given, rows) in parts.items()}
  counts = {split: counts[given][rows] for split, (given, rows) in parts.items()}
  if all(count.any(axis=1).all() for count in counts.values()):  # false if the masks were counted in part
    names = {split: [pair.mask.relative_to(root).as_posix() for pair in pairs] for split, pairs in splits.items()}
    words.refuse(dense_split.untrained(legend.class_names, counts, names))
  used = [facts[pair] for pairs in splits.values() for pair in pairs]
  deep = decode.look([pair.image for pairs in splits.values() for pair in pairs if facts[pair].grey], seed=seed)
  info = DatasetInfo(
    name=root.name,
    class_names=legend.class_names,
    counts={split: tuple(count.sum(axis=0).tolist()) for split, count in counts.items()},
    resolution=tuple(np.median([fact.size for fact in used], axis=0).astype(int).tolist()),
    source=f'{root}{note}',
    rejected=tuple((pair.image.relative_to(root).as_posix(), why) for pair, why in rejected.items()),
    task='segmentation',
    images={split: len(pairs) for split, pairs in splits.items()},
    grey=deep.scale,
    notes=(
      *found.notes,
      *deep.notes,
      *duplicates.across(root, {split: [pair.image for pair in pairs] for split, pairs in splits.items()}),
    ),
  )
  sources = {s: MaskSource(root, pairs, [facts[p].size for p in pairs], legend) for s, pairs in splits.items()}
  return Dataset(info, sources)


def _survey(root: pathlib.Path, found: mask_folders.Found) -> tuple[Legend, dict[Pair, Facts]]:
  """Checks all files: the legend of the masks, and a result per pair. Raises UsageError with all problems."""
  file = root / mask_classes.FILE
  legend, problems = mask_classes.of_file(file) if file.is_file() else None, list(found.problems)
  pairs = [pair for pairs in found.pairs.values() for pair in pairs]
  facts = _check(pairs, coloured=legend is not None and legend.palette is not None)
  problems += _sizes(root, facts)
  held = {pair.mask.relative_to(root).as_posix(): fact.mask for pair, fact in facts.items() if not fact.reason}
  if legend is None:
    try:
      legend = mask_classes.of_values(masks.pixels(held.values()), VOC if found.voc else ())
    except UsageError as error:
      problems.append(str(error))
  if legend:
    problems += [f'{line}; next: correct the masks or {file}' for line in masks.unknown(held, legend.known())]
  words.refuse(problems)
  return legend, facts


def _check(pairs: Sequence[Pair], *, coloured: bool) -> dict[Pair, Facts]:
  """Checks all images and masks with several threads."""
  every = -(-len(pairs) // FULL_CHECK) if pairs else 1
  found = masks.scan([pair.mask for pair in pairs], coloured=coloured, every=every)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    images = pool.map(lambda pair: decode.inspect(pair.image, full=every == 1), pairs)
    return {pair: _facts(pair, image, mask) for pair, image, mask in zip(pairs, images, found, strict=True)}


def _facts(pair: Pair, image: decode.Finding, mask: masks.Found) -> Facts:
  reason = image.reason or (f'its mask {pair.mask.name}: {mask.reason}' if mask.reason else '')
  return Facts(reason, image.size if image.reason else masks.upright_size(pair.image), image.grey, mask)


def _sizes(root: pathlib.Path, facts: Mapping[Pair, Facts]) -> list[str]:
  """One line for each mask whose size differs from its image."""
  wrong = [(pair, found) for pair, found in facts.items() if not found.reason and found.size != found.mask.size]
  return mask_folders.shortened(
    [
      f'mask {pair.mask.relative_to(root)} has {found.mask.size[0]} x {found.mask.size[1]} pixels (height x width), '
      f'its image {found.size[0]} x {found.size[1]}'
      + (', turned by its EXIF orientation' if found.size == found.mask.size[::-1] else '')
      for pair, found in wrong
    ]
  )


def _empty(found: Facts, legend: Legend) -> str:
  """The reason to leave out an image without a labelled pixel; '' if it has one or was not counted."""
  counted = found.mask.pixels
  return 'all pixels are ignored' if counted and all(legend.index(v) == IGNORE for v in counted) else ''


def _without_images(splits: Splits, rejected: Mapping[Pair, str]) -> list[str]:
  """One line for each split without a usable image."""
  some = next(((pair.image.name, reason) for pair, reason in rejected.items()), None)
  such = f', such as {some[0]} ({some[1]})' if some else ''
  return [
    f'split {split} has no image that can be used; left out: {len(rejected)}{such}'
    for split, pairs in splits.items()
    if not pairs
  ]
