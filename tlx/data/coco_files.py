"""COCO json files of a folder: which split each describes, and where the images lie."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tlx.data.mask_folders import SPLITS
from tlx.types import UsageError

OTHER = ('captions', 'person_keypoints', 'image_info', 'panoptic', 'classes')  # files of COCO for other tasks
FIELDS = {'images': ('id', 'file_name'), 'annotations': (), 'categories': ('id', 'name')}  # that a record must have


def find(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Split -> its json files, those of stuff first; only 'train' where one file holds all images.

  A file is found in the folder itself, in its folder annotations and in those of the splits, and its split by the words
  of its name or of its folder: instances_train2017.json, val.json, test/_annotations.coco.json.

  Raises: UsageError where there is no file, none for training, or several of unknown splits.
  """
  folders = [root, root / 'annotations', *(d for d in sorted(root.iterdir()) if d.is_dir() and split_of(d.name))]
  files = [path for folder in folders for path in sorted(folder.glob('*.json')) if not path.name.startswith(OTHER)]
  if not files:
    raise UsageError(f'no COCO json file in {root} or {root / "annotations"}; next: add {root / "train.json"}')
  splits = {}
  for path in files:
    split = split_of(path.stem) or (split_of(path.parent.name) if path.parent != root else None)
    splits.setdefault(split, []).append(path)
  unknown = splits.pop(None, [])
  if not splits and len(unknown) == 1:
    return {'train': unknown}
  if 'train' not in splits:
    there = ', '.join(path.relative_to(root).as_posix() for path in files)
    raise UsageError(f'{root} has no json file of the split train, only {there}; next: rename one to train.json')
  order = lambda path: ('stuff' not in path.stem, path.name)
  return {split: sorted(splits[split], key=order) for split in SPLITS if split in splits}


def split_of(name: str) -> str | None:
  """'instances_val2017' -> 'validation'; None for a name without such a word."""
  words = re.findall('[a-z]+', name.lower())
  return next((split for split, names in SPLITS.items() if set(names) & set(words)), None)


def read(path: pathlib.Path) -> dict[str, Any]:
  """The content of a file. Raises UsageError where it is not COCO's."""
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UsageError(f'{path} cannot be read: {error}') from error
  lists = content if isinstance(content, dict) else {}
  problems = [f'no list {key!r}' for key in FIELDS if not isinstance(lists.get(key), list)]
  for key, fields in FIELDS.items() if not problems else ():
    wrong = sum(not isinstance(each, dict) or not set(fields) <= set(each) for each in lists[key])
    problems += [f'{wrong} of {key} without {" and ".join(fields) or "fields"}'] if wrong else []
  if problems:
    raise UsageError(f'{path} is not a COCO file: {"; ".join(problems)}')
  return content


def locate(root: pathlib.Path, path: pathlib.Path, images: Sequence[Mapping[str, Any]]) -> list[pathlib.Path | None]:
  """Where each image of a json file lies, None for one that is nowhere.

  Tried in order: the folder of the json file; that of its name, its year included (train2017), in the folder and in
  images; images; the folder itself. A file name with a path in it is also tried without.
  """
  words = [path.stem, *re.findall('[a-z]+[0-9]*', path.stem.lower())]
  folders = [path.parent, *(base / word for word in words for base in (root, root / 'images')), root / 'images', root]
  folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
  found = []
  for image in images:
    name = pathlib.PurePosixPath(str(image['file_name']).replace('\\', '/'))
    places = (folder / each for folder in folders for each in dict.fromkeys((str(name), name.name)))
    found.append(next((place for place in places if place.is_file()), None))
  return found
