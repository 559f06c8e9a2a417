"""COCO json files as segmentation masks: coco_masks:PATH draws the objects of each image into one mask.

PATH holds json files and images as `tlx.data.coco_files.find` describes: train.json and val.json with train/ and val/,
COCO's own annotations/instances_train2017.json with train2017/, or train/_annotations.coco.json next to the images.
Without validation images, 'test' is used for validation. Without both, 20 % of the images are held back.

Objects are polygons or RLE (run-length encoding). tlx draws them in the order of the file, later ones on top, and draws
those of stuff files first (stuff: regions such as sky). Pixels of a crowd are ignored, unless another object covers
them. Pixels without an object have class 0, 'background'. If there is a stuff file, which should cover every pixel,
they are ignored instead.
"""

import concurrent.futures
import hashlib
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tlx import words
from tlx.data import coco_files, decode, dense_split, duplicates, left_out, listing
from tlx.data.folders import folder_of
from tlx.data.mask_folders import shortened
from tlx.data.masks import IGNORE, upright_size
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, DataSource, Example, TlxError, UsageError

FULL_CHECK = 20_000  # images; with more, tlx checks only headers, and counts pixels in a part of the masks

Content = Mapping[str, Any]  # content of a json file
Files = Mapping[str, Sequence[tuple[pathlib.Path, Content]]]  # {split: its json files}


class Thing(NamedTuple):
  """One object of an image, to draw."""

  index: int  # class index, IGNORE for a crowd
  shape: Any  # list of polygons [x1, y1, x2, y2, ...], or RLE {'size': [h, w], 'counts': list or text}


class Photo(NamedTuple):
  """One image and its objects."""

  path: pathlib.Path
  size: tuple[int, int]  # height and width, pixels
  things: list[Thing]


class Facts(NamedTuple):
  """The result of checking one image."""

  problem: str  # what the user must correct; '' if nothing is wrong
  reason: str  # why the image cannot be used; '' if it can
  counts: np.ndarray | None = None  # int64 [k], pixels of each class; zeros if they were not counted
  grey: str = ''  # as in decode.Finding


class CocoSource(DataSource):
  """One split of encoded images. It draws a mask when an example is needed."""

  def __init__(self, root: pathlib.Path, photos: Sequence[Photo], uncovered: int):
    self.root, self.photos, self.uncovered = root, list(photos), uncovered

  def __len__(self) -> int:
    return len(self.photos)

  def __getitem__(self, index: int) -> Example:
    path = self.photos[index].path
    return Example(decode.read(path), self.annotation(index), path.relative_to(self.root).as_posix())

  def annotation(self, index: int) -> np.ndarray:
    """Draws the mask uint8 [h, w]: class indices, or IGNORE. Raises TlxError if an object cannot be drawn."""
    return draw(self.photos[index], self.uncovered)

  def size(self, index: int) -> tuple[int, int]:
    """Height and width of the image, pixels."""
    return self.photos[index].size

  def fingerprint(self) -> str | None:
    whole = fingerprint(self.root, [photo.path for photo in self.photos])
    things = [photo.things for photo in self.photos]
    return whole and hashlib.sha256(f'{whole} {self.uncovered} {things}'.encode()).hexdigest()


def draw(photo: Photo, uncovered: int) -> np.ndarray:
  """Draws the mask of an image: crowds first, then the other objects in order. It fills polygons as pycocotools does.

  Args:
    photo: the image and its objects.
    uncovered: class index of pixels without an object.

  Returns:
    uint8 [h, w].

  Raises:
    TlxError: if an object cannot be drawn.
  """
  coco = _hotcoco()
  mask = np.full(photo.size, uncovered, np.uint8)
  for thing in sorted(photo.things, key=lambda thing: thing.index != IGNORE):
    try:
      rle = coco.frPyObjects(thing.shape, *photo.size)
      mask[coco.decode(coco.merge(rle) if isinstance(rle, list) else rle).astype(bool)] = thing.index
    except (TypeError, ValueError, KeyError, IndexError) as error:
      raise TlxError(f'an object of {photo.path.name} cannot be drawn: {error}') from error
  return mask


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if there is one.

  Args:
    argument: path of the folder.
    seed: random seed of the split, if images are held back.

  Returns:
    The data set.

  Raises:
    UsageError: it lists all problems, one per line: a missing image, an image whose size differs from its json file, an
      object of an unknown class or image, no object with a mask, a class that training lacks, a split without images.
      Also if the package hotcoco is not installed.
  """
  root = folder_of('coco_masks', argument, 'the json files and the images')
  _hotcoco()
  files = {split: [(p, coco_files.read(p)) for p in paths] for split, paths in coco_files.find(root).items()}
  class_names, uncovered = _class_names(files)
  photos, rejected = _photos(root, files, class_names)
  facts = _check([photo for found in photos.values() for photo in found], uncovered, len(class_names))
  words.refuse(shortened([fact.problem for fact in facts.values() if fact.problem]))
  rejected += [(path.relative_to(root).as_posix(), fact.reason) for path, fact in facts.items() if fact.reason]
  photos = {split: [p for p in found if not facts[p.path].reason] for split, found in photos.items()}
  words.refuse([f'split {s} has no image that can be used; left out: {rejected[:3]}' for s in photos if not photos[s]])
  counts = {split: np.stack([facts[photo.path].counts for photo in found]) for split, found in photos.items()}
  parts, note = dense_split.with_validation(counts, seed=seed)
  photos = {split: [photos[given][i] for i in rows] for split, (given, rows) in parts.items()}
  counts = {split: counts[given][rows] for split, (given, rows) in parts.items()}
  if all(count.any(axis=1).all() for count in counts.values()):  # false if the masks were counted in part
    names = {split: [photo.path.name for photo in found] for split, found in photos.items()}
    words.refuse(dense_split.untrained(class_names, counts, names))
  sizes = [photo.size for found in photos.values() for photo in found]
  deep = decode.look([p.path for found in photos.values() for p in found if facts[p.path].grey], seed=seed)
  info = DatasetInfo(
    name=root.name,
    class_names=class_names,
    counts={split: tuple(count.sum(axis=0).tolist()) for split, count in counts.items()},
    resolution=tuple(np.median(sizes, axis=0).astype(int).tolist()),
    source=f'{root}{note}',
    rejected=tuple(rejected),
    task='segmentation',
    images={split: len(found) for split, found in photos.items()},
    grey=deep.scale,
    notes=(
      *deep.notes,
      *left_out.unread(listing.look(root).left_out, but=('.json',)),
      *duplicates.across(root, {split: [photo.path for photo in found] for split, found in photos.items()}),
    ),
  )
  return Dataset(info, {split: CocoSource(root, found, uncovered) for split, found in photos.items()})


def _hotcoco() -> Any:
  """The module that draws polygons and RLE. Raises UsageError if it is not installed."""
  try:
    from hotcoco import mask
  except ImportError as error:
    raise UsageError(f"data set 'coco_masks' needs hotcoco; run: {words.install('coco')}") from error
  return mask


def _class_names(files: Files) -> tuple[tuple[str, ...], int]:
  """The class names, which join the files because ids differ, and the class index of pixels without an object."""
  items = [item for found in files.values() for item in found]
  stuff = any('stuff' in path.stem for path, _ in items)
  names = list(dict.fromkeys(str(category['name']) for _, content in items for category in content['categories']))
  names = names if stuff else ['background', *(name for name in names if name != 'background')]
  if not 0 < len(names) <= IGNORE:
    raise UsageError(f'the json files have {len(names)} classes; there can be 1 to {IGNORE}')
  return tuple(names), IGNORE if stuff else 0


def _photos(
  root: pathlib.Path, files: Files, class_names: Sequence[str]
) -> tuple[dict[str, list[Photo]], list[tuple[str, str]]]:
  """The images of each split with the objects of all its json files, and what is left out as (file, reason)."""
  photos, problems, rejected = {}, [], []
  for split, items in files.items():
    found = {}
    for path, content in items:
      name, images = path.relative_to(root).as_posix(), content['images']
      places = dict(zip((i['id'] for i in images), coco_files.locate(root, path, images), strict=True))
      lost = [i['file_name'] for i in images if places[i['id']] is None]
      problems += shortened([f'{name}: {file} is not in {root}; next: add it, or remove its entry' for file in lost])
      for image in images:
        if place := places[image['id']]:
          found.setdefault(place, Photo(place, (image.get('height'), image.get('width')), []))
      things, wrong = _things(content, class_names, places)
      for place, thing in things:
        found[place].things.append(thing)
      bare = wrong.pop('bare', 0)
      rejected += [(name, f'{bare} objects without a polygon or RLE')] if bare else []
      problems += [f'{name}: {count} objects have {what}' for what, count in wrong.items()]
    photos[split] = list(found.values())
  if not any(photo.things for found in photos.values() for photo in found):
    problems.append(f'no object in the json files of {root} has a polygon or RLE; boxes alone are for detection')
  words.refuse(problems)
  return photos, rejected


def _things(
  content: Content, class_names: Sequence[str], places: Mapping[Any, pathlib.Path | None]
) -> tuple[list[tuple[pathlib.Path, Thing]], Counter]:
  """(image, object) pairs in the order of the file, and the number of objects that are left out, by reason."""
  index = {category['id']: class_names.index(str(category['name'])) for category in content['categories']}
  things, wrong = [], Counter()
  for annotation in content['annotations']:
    image, category = annotation.get('image_id'), annotation.get('category_id')
    shape = _shape(annotation.get('segmentation'))
    if image not in places or category not in index:
      wrong['an image_id that no image has' if image not in places else 'a category_id that no category has'] += 1
    elif not shape:
      wrong['bare'] += 1
    elif places[image]:
      things.append((places[image], Thing(IGNORE if annotation.get('iscrowd') else index[category], shape)))
  return things, wrong


def _shape(segmentation: Any) -> Any:
  """Polygons of three points or more, or RLE; None for anything else."""
  if isinstance(segmentation, dict):
    return segmentation if {'size', 'counts'} <= set(segmentation) else None
  polygons = segmentation if isinstance(segmentation, list) else []
  return [polygon for polygon in polygons if isinstance(polygon, list) and len(polygon) >= 6] or None


def _check(photos: Sequence[Photo], uncovered: int, classes: int) -> dict[pathlib.Path, Facts]:
  """Checks all images with several threads."""
  every = -(-len(photos) // FULL_CHECK) if photos else 1
  look = lambda item: _look(item[1], uncovered, classes, full=every == 1, count=item[0] % every == 0)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return dict(zip((photo.path for photo in photos), pool.map(look, enumerate(photos)), strict=True))


def _look(photo: Photo, uncovered: int, classes: int, *, full: bool, count: bool) -> Facts:
  """Checks one image: whether it can be decoded, has the stated size, and has pixels of a class."""
  found = decode.inspect(photo.path, full=full)
  if found.reason:
    return Facts('', found.reason)
  size = upright_size(photo.path)
  if size != photo.size:
    stated = ' x '.join(map(str, photo.size))
    return Facts(f'{photo.path} has {size[0]} x {size[1]} pixels (height x width), its json file says {stated}', '')
  if not count:
    return Facts('', '', np.zeros(classes, np.int64), found.grey)
  try:
    counts = np.bincount(draw(photo, uncovered).ravel(), minlength=IGNORE + 1)[:classes]
  except TlxError as error:
    return Facts('', str(error))
  return Facts('', '' if counts.any() else 'all pixels are ignored', counts, found.grey)
