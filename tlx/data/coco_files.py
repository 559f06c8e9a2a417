"""Finds the COCO json files of a folder, the split that each describes, and the images that they name.

The format: https://cocodataset.org/#format-data.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tlx.data.split_names import ROLES, role
from tlx.types import UsageError

# The names of COCO's files for other tasks begin with these words.
OTHER = ('captions', 'person_keypoints', 'image_info', 'panoptic', 'classes')
# The lists that a file must have, and the fields that each record of a list must have.
FIELDS = {'images': ('id', 'file_name'), 'annotations': (), 'categories': ('id', 'name')}


def find(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Finds the json files of each split.

  It looks in the folder itself, in its sub-folder annotations, and in its sub-folders that are named after a split. The
  words in a file's name, or else in its sub-folder's name, tell the split: instances_train2017.json, val.json,
  test/_annotations.coco.json.

  Args:
    root: the folder.

  Returns:
    {split: its json files}, files of stuff (regions such as sky) first. If there is only
    one file and no word tells its split, the split is 'train'.

  Raises:
    UsageError: if there is no file, or no file of the split 'train'.
  """
  folders = [root, root / 'annotations', *(d for d in sorted(root.iterdir()) if d.is_dir() and role(d.name))]
  files = [path for folder in folders for path in sorted(folder.glob('*.json')) if not path.name.startswith(OTHER)]
  if not files:
    raise UsageError(f'no COCO json file in {root} or {root / "annotations"}; next: add {root / "train.json"}')
  splits = {}
  for path in files:
    split = role(path.stem) or (role(path.parent.name) if path.parent != root else None)
    splits.setdefault(split, []).append(path)
  unknown = splits.pop(None, [])
  if not splits and len(unknown) == 1:
    return {'train': unknown}
  if 'train' not in splits:
    there = ', '.join(path.relative_to(root).as_posix() for path in files)
    raise UsageError(f'{root} has no json file of the split train, only {there}; next: rename one to train.json')
  order = lambda path: ('stuff' not in path.stem, path.name)
  return {split: sorted(splits[split], key=order) for split in ROLES if split in splits}


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads a json file and checks that it has COCO's form.

  Args:
    path: path of the file.

  Returns:
    The content: a dict with the lists 'images', 'annotations' and 'categories', and perhaps others.

  Raises:
    UsageError: if the file cannot be read, or lacks a list or a field of `FIELDS`.
  """
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
  """Finds the file of each image that a json file names.

  It tries these folders in order: the folder of the json file; folders that are named like the json file or like a word
  of its name (train2017), in `root` and in root/images; root/images; `root`. In each folder it tries the stated file
  name with its folders, then without them.

  Args:
    root: folder of the data set.
    path: path of the json file.
    images: the json file's records of images, each with a 'file_name'.

  Returns:
    The path of each image; None for an image that no folder has.
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
