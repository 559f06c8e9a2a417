"""Recognises data sets of other kinds than the one that the user names, so that the message can say what to type."""

import os
import pathlib

from tlx.data.listing import Listing
from tlx.data.split_names import role

IMAGES = {'images', 'image', 'imgs', 'img', 'jpegimages'}
MASKS = {'masks', 'mask', 'annotations', 'annotation', 'labels', 'label', 'segmentationclass', 'trimaps'}
START = 65536  # bytes of a json file that are looked at
DETECTION = 'tlx does not train detectors'


def other_than_classes(root: pathlib.Path, found: Listing) -> list[str]:
  """Tells a folder of boxes, masks or tags from one of classes.

  Args:
    root: the folder.
    found: its listing.

  Returns:
    The problem, one line; [] if the folder may hold classes.
  """
  below = found.folders[os.fspath(root)].subfolders
  splits = [path for path in below if found.folders[path].subfolders or role(os.path.basename(path))]
  for folder in [os.fspath(root), *splits]:  # not every class folder: they hold most of the files
    if line := _of(pathlib.Path(folder), root):
      return [line]
  return []


def _of(folder: pathlib.Path, root: pathlib.Path) -> str:
  """The line for a folder with the signs of another kind; '' for any other."""
  entries = {entry.name.lower(): entry for entry in os.scandir(folder)}
  files = {name for name, entry in entries.items() if not entry.is_dir()}
  below = {name for name, entry in entries.items() if entry.is_dir()}
  inside = lambda name: _extensions(entries[name].path)
  notes = [*folder.glob('*.json'), *(folder / 'annotations').glob('*.json')]
  if any(path.name.endswith('.coco.json') or _is_coco(path) for path in notes):
    return f'{folder} is a COCO data set: its json files describe objects, not classes; use --data coco_masks:{root}'
  if 'jpegimages' in below and 'annotations' in below and 'segmentationclass' not in below:
    return f'{folder} is a Pascal VOC data set of boxes (Annotations/*.xml), not of classes; {DETECTION}'
  if 'labels' in below and '.txt' in inside('labels'):
    return f'{folder} is a YOLO data set of boxes (labels/*.txt), not of classes; {DETECTION}'
  if below & MASKS and below & IMAGES:
    return f'{folder} holds {", ".join(sorted(below))}: images with masks, not classes; use --data masks:{root}'
  if files & {'tags.csv', 'tags.json'}:
    return f'{folder} has {", ".join(sorted(files & {"tags.csv", "tags.json"}))}: use --data tags:{root}'
  return ''


def _extensions(folder: str) -> set[str]:
  """The extensions of the files in a folder and in its sub-folders for splits."""
  found = set()
  for entry in os.scandir(folder):
    if not entry.is_dir():
      found.add(os.path.splitext(entry.name)[1].lower())
    elif role(entry.name):
      found |= _extensions(entry.path)
  return found


def _is_coco(path: pathlib.Path) -> bool:
  """Whether a json file begins as one of COCO does."""
  with path.open('rb') as file:
    start = file.read(START)
  return b'"categories"' in start or b'"annotations"' in start or (b'"images"' in start and b'"file_name"' in start)
