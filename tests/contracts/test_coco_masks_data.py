"""`coco_masks:PATH`: layouts, drawing against pycocotools, and one clear line for each thing that is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from tlx.data.masks import IGNORE
from tlx.datasets import coco_masks
from tlx.types import UsageError

pytest.importorskip('hotcoco')
SIZE = (20, 30)
CATEGORIES = [{'id': 7, 'name': 'cat'}, {'id': 3, 'name': 'dog'}]


def box(left, top, right, bottom):
  return [[left, top, right, top, right, bottom, left, bottom]]


def rle(*boxes):
  """Uncompressed: run lengths down the columns, of 0 first."""
  mask = np.zeros(SIZE, np.uint8)
  for left, top, right, bottom in boxes:
    mask[top:bottom, left:right] = 1
  flat = mask.ravel(order='F')
  ends = [*np.flatnonzero(np.diff(flat)) + 1, flat.size]
  return {'size': list(SIZE), 'counts': [0] * int(flat[0]) + np.diff([0, *ends]).tolist()}


OBJECTS = [(7, box(2, 2, 12, 12), 0), (3, box(8, 8, 20, 18), 0), (7, rle((0, 0, 30, 6)), 1)]


def write(path, folder, count=5, objects=OBJECTS, categories=CATEGORIES, prefix='', **fields):
  """A json file whose images all hold the objects (category_id, segmentation, iscrowd); the images in `folder`."""
  folder.mkdir(parents=True, exist_ok=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  images = [{'id': 10 * i, 'file_name': f'{prefix}{i}.png', 'height': SIZE[0], 'width': SIZE[1]} for i in range(count)]
  for i in range(count):
    Image.new('RGB', SIZE[::-1], (i, 0, 0)).save(folder / f'{i}.png')
  annotations = [
    {'id': n, 'image_id': image['id'], 'category_id': category, 'segmentation': shape, 'iscrowd': crowd}
    for image in images
    for n, (category, shape, crowd) in enumerate(objects)
  ]
  content = {'images': images, 'annotations': annotations, 'categories': categories}
  path.write_text(json.dumps(content | fields))
  return path.parent


def load(root, seed=0):
  return coco_masks.load(str(root), seed=seed)


def problems(root):
  with pytest.raises(UsageError) as error:
    load(root)
  return str(error.value).splitlines()


LAYOUTS = {
  'beside folders': lambda root, split: (root / f'{split}.json', root / split, ''),
  'coco': lambda root, split: (root / f'annotations/instances_{split}2017.json', root / f'{split}2017', ''),
  'coco with images': lambda root, split: (root / f'annotations/{split}2017.json', root / f'images/{split}2017', ''),
  'one folder each': lambda root, split: (root / split / '_annotations.coco.json', root / split, ''),
  'paths in names': lambda root, split: (root / f'{split}.json', root / 'images' / split, f'images/{split}/'),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(tmp_path, layout):
  for split, count in {'train': 3, 'val': 2, 'test': 1}.items():
    path, folder, prefix = LAYOUTS[layout](tmp_path, split)
    write(path, folder, count, prefix=prefix)
  (tmp_path / 'annotations').mkdir(exist_ok=True)
  (tmp_path / 'annotations/captions_train2017.json').write_text('{}')
  info, splits = load(tmp_path)
  assert info.images == {'train': 3, 'validation': 2, 'test': 1} and info.task == 'segmentation'
  assert info.class_names == ('background', 'cat', 'dog') and info.resolution == SIZE
  for split, source in splits.items():
    example = source[0]
    assert (tmp_path / example.name).read_bytes() == example.image
    np.testing.assert_array_equal(example.annotation, source.annotation(0))
    counts = np.bincount(example.annotation.ravel(), minlength=256)
    assert info.counts[split] == tuple((len(source) * counts[:3]).tolist()) and source.size(0) == SIZE


def test_later_objects_lie_on_top_and_crowds_below(tmp_path):
  root = write(tmp_path / 'train.json', tmp_path / 'train')
  expected = np.zeros(SIZE, np.uint8)
  expected[:6] = IGNORE
  expected[2:12, 2:12] = 1
  expected[8:18, 8:20] = 2
  info, splits = load(root)
  assert info.images == {'train': 4, 'validation': 1} and 'held back' in info.source
  for source in splits.values():
    np.testing.assert_array_equal(source.annotation(0), expected)


def test_drawing_equals_pycocotools(tmp_path):
  oracle = pytest.importorskip('pycocotools.mask')
  rng = np.random.default_rng(0)
  shapes = [[(rng.random(2 * n) * np.tile(SIZE[::-1], n)).tolist() for n in (3, 7)] for _ in range(4)]
  diagonal = oracle.encode(np.asfortranarray(np.eye(*SIZE, dtype=np.uint8)))
  shapes.append({'size': list(SIZE), 'counts': diagonal['counts'].decode()})
  objects = [(category, shape, 0) for category, shape in zip((3, 3, 7, 7, 7), shapes)]
  root = write(tmp_path / 'train.json', tmp_path, objects=objects)
  expected = np.zeros(SIZE, np.uint8)
  for index, shape in zip((2, 2, 1, 1, 1), shapes):
    encoded = oracle.merge(oracle.frPyObjects(shape, *SIZE)) if isinstance(shape, list) else shape
    expected[oracle.decode(encoded) == 1] = index
  np.testing.assert_array_equal(load(root).splits['train'].annotation(0), expected)


def test_stuff_and_instances_make_one_mask(tmp_path):
  """Stuff lies below; what neither covers is ignored, and classes go by name."""
  stuff = [{'id': 7, 'name': 'grass'}, {'id': 9, 'name': 'cat'}]
  for split in ('train', 'val'):
    write(tmp_path / f'annotations/instances_{split}2017.json', tmp_path / f'{split}2017')
    path, objects = tmp_path / f'annotations/stuff_{split}2017.json', [(7, box(0, 0, 30, 10), 0)]
    write(path, tmp_path / f'{split}2017', objects=objects, categories=stuff)
  info, splits = load(tmp_path)
  assert info.class_names == ('grass', 'cat', 'dog')
  expected = np.full(SIZE, IGNORE)
  expected[:10] = 0
  expected[2:12, 2:12] = 1
  expected[8:18, 8:20] = 2
  np.testing.assert_array_equal(splits['validation'].annotation(0), expected)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
  objects = [*OBJECTS, (7, [], 0), (7, [[1, 1, 2, 2]], 0), (3, None, 0)]
  root = write(tmp_path / 'train.json', tmp_path / 'train', 6, objects)
  content = json.loads((root / 'train.json').read_text())
  content['annotations'].append({'image_id': 0, 'category_id': 7, 'segmentation': {'size': [3, 3], 'counts': [9]}})
  (root / 'train.json').write_text(json.dumps(content))
  (root / 'train/1.png').write_bytes(b'nothing')
  info, _ = load(root)
  reasons = dict(info.rejected)
  assert sum(info.images.values()) == 4
  assert reasons['train.json'] == '18 objects without a polygon or RLE'
  assert 'not an image' in reasons['train/1.png'] and 'cannot be drawn' in reasons['train/0.png']


def test_all_problems_come_at_once(tmp_path):
  for split in ('train', 'val'):
    write(tmp_path / f'{split}.json', tmp_path / split, objects=[*OBJECTS, (99, box(0, 0, 5, 5), 0)])
    (tmp_path / split / '3.png').unlink()
  lines = problems(tmp_path)
  assert len(lines) == 4
  assert 'train.json: 3.png is not in' in lines[0]
  assert lines[1] == 'train.json: 5 objects have a category_id that no category has'


def test_a_class_that_training_lacks(tmp_path):
  for split, objects in (('train', OBJECTS[:1]), ('val', OBJECTS)):
    write(tmp_path / f'{split}.json', tmp_path / split, objects=objects)
  (line,) = problems(tmp_path)
  assert "class 'dog' is in validation" in line and 'not in train' in line


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda root: None, 'no COCO json file'),
    (lambda root: write(root / 'val.json', root), 'no json file of the split train'),
    (lambda root: (root / 'train.json').write_text('{'), 'cannot be read'),
    (lambda root: (root / 'train.json').write_text('[]'), "no list 'images'"),
    (lambda root: write(root / 'train.json', root, images=[{'id': 1}]), '1 of images without id and file_name'),
    (lambda root: write(root / 'train.json', root, objects=[(7, [], 0)]), 'boxes alone are for detection'),
    (lambda root: write(root / 'a.json', root, images=[{'id': 0, 'file_name': '0.png', 'height': 9, 'width': 9}],
                        annotations=[{'image_id': 0, 'category_id': 7, 'segmentation': box(1, 1, 9, 9)}]),
     'has 20 x 30 pixels (height x width), its json file says 9 x 9'),
  ],
)  # fmt: skip
def test_single_problems(tmp_path, make, words):
  make(tmp_path)
  assert any(words in line for line in problems(tmp_path)), problems(tmp_path)


def test_the_fingerprint_follows_images_and_objects(tmp_path):
  write(tmp_path / 'train.json', tmp_path / 'train')
  seen = [load(tmp_path).splits['train'].fingerprint() for _ in range(2)]
  content = json.loads((tmp_path / 'train.json').read_text())
  content['annotations'] = [a for a in content['annotations'] if a['id'] < 2]
  (tmp_path / 'train.json').write_text(json.dumps(content))
  seen.append(load(tmp_path).splits['train'].fingerprint())
  for i in range(5):
    Image.new('RGB', SIZE[::-1], (0, i, 200)).save(tmp_path / f'train/{i}.png')
  seen.append(load(tmp_path).splits['train'].fingerprint())
  assert seen[0] == seen[1] and None not in seen and len(set(seen)) == 3
