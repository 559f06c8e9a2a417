"""`masks:PATH`: every layout and file format that people have, and one clear line for each thing that is wrong."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tlx.data import masks as mask_files
from tlx.data.masks import IGNORE
from tlx.datasets import masks
from tlx.types import TlxError, UsageError

SIZE = (12, 16)
RED, GREEN, WHITE = (200, 0, 0), (0, 200, 0), (255, 255, 255)


def photograph(path, size=SIZE, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(path, **options)


def mask(path, *values, size=SIZE, mode=None, **options):
  """Stripes of the values, or of colours."""
  path.parent.mkdir(parents=True, exist_ok=True)
  stripes = np.array(values)[np.arange(size[1]) * len(values) // size[1]]
  pixels = np.broadcast_to(stripes, (size[0], *stripes.shape))
  pixels = pixels.astype(np.uint16 if pixels.max() > 255 else np.uint8)
  image = Image.fromarray(np.ascontiguousarray(pixels))
  if mode == 'P':
    image.putpalette([*range(255, -1, -1)] * 3)  # colours that say nothing of the indices
  elif mode:
    image = image.convert(mode)
  image.save(path, **options)


def write(root, pairs):
  """{image: (mask, values)} -> the root with these files."""
  for image, (label, values) in pairs.items():
    photograph(root / image)
    mask(root / label, *values)
  return root


def classes(root, content):
  (root / 'classes.json').write_text(json.dumps(content))
  return root


def flat(root, count=5, values=(0, 1, 2)):
  return write(root, {f'images/{i}.jpg': (f'masks/{i}.png', values) for i in range(count)})


def load(root, seed=0):
  return masks.load(str(root), seed=seed)


def problems(root):
  with pytest.raises(UsageError) as error:
    load(root)
  return str(error.value).splitlines()


LAYOUTS = {
  'split/images': lambda split, name, suffix: (f'{split}/images/{name}.jpg', f'{split}/masks/{name}{suffix}.png'),
  'split/annotations': lambda split, name, suffix: (f'{split}/Images/{name}.png', f'{split}/Annotations/{name}.png'),
  'images/split': lambda split, name, suffix: (f'images/{split}/{name}.jpg', f'labels/{split}/{name}{suffix}.png'),
  'sub-folders': lambda split, name, suffix: (f'images/{split}/b/{name}.jpg', f'masks/{split}/b/{name}{suffix}.png'),
  'side by side': lambda split, name, suffix: (f'{split}/{name}.jpg', f'{split}/{name}{suffix}.png'),
}


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('validation', ['val', 'valid'])
@pytest.mark.parametrize('suffix', ['', '_mask'])
def test_layouts_with_splits(tmp_path, layout, validation, suffix):
  place = LAYOUTS[layout]
  counts = {'train': 3, validation: 2, 'test': 1}
  names = [(split, f'{split}{i}') for split, count in counts.items() for i in range(count)]
  write(tmp_path, {(pair := place(*name, suffix))[0]: (pair[1], (0, 1)) for name in names})
  info, splits = load(tmp_path)
  assert info.task == 'segmentation' and info.class_names == ('class 0', 'class 1')
  assert info.images == {'train': 3, 'validation': 2, 'test': 1} and info.resolution == SIZE and not info.rejected
  half = SIZE[0] * SIZE[1] // 2
  assert info.counts == {split: (count * half, count * half) for split, count in info.images.items()}
  for split, source in splits.items():
    assert len(source) == info.images[split] and source.labels is None
    example = source[0]
    assert isinstance(example.image, bytes) and (tmp_path / example.name).read_bytes() == example.image
    assert source.size(0) == SIZE == Image.open(io.BytesIO(example.image)).size[::-1]
    for annotation in (example.annotation, source.annotation(0)):
      assert annotation.dtype == np.uint8
      np.testing.assert_array_equal(annotation, np.repeat([0, 1], 8)[None].repeat(12, 0))


def test_png_photographs_with_masks_beside_them(tmp_path):
  write(tmp_path, {f'{s}/{i}.png': (f'{s}/{i}_mask.png', (0, 1)) for s in ('train', 'val') for i in range(2)})
  write(tmp_path, {'train/a_label.png': ('train/a_label_mask.png', (0, 1))})  # an image in spite of its name
  assert load(tmp_path).info.images == {'train': 3, 'validation': 2}
  (tmp_path / 'val/0.png').unlink()
  assert problems(tmp_path) == ['mask val/0_mask.png has no image in val; next: add the image, or remove the mask']


def test_a_fifth_is_held_back_where_there_are_no_splits(tmp_path):
  flat(tmp_path, 10)
  mask(tmp_path / 'masks/3.png', 0, 7)  # the only image with this class has to stay in training
  for seed in range(6):
    info, splits = load(tmp_path, seed)
    names = {split: {source[i].name for i in range(len(source))} for split, source in splits.items()}
    assert info.images == {'train': 8, 'validation': 2} and 'held back' in info.source
    assert len(names['train'] | names['validation']) == 10 and 'images/3.jpg' in names['train']
  assert names != {split: {s[i].name for i in range(len(s))} for split, s in load(tmp_path, 0).splits.items()}
  assert load(write(tmp_path / 'loose', {f'{i}.jpg': (f'{i}.png', (0, 1)) for i in range(5)})).info.images['train'] == 4


def test_test_stands_in_for_validation_and_says_so(tmp_path):
  write(tmp_path, {f'{s}/images/a.jpg': (f'{s}/masks/a.png', (0, 1)) for s in ('train', 'test')})
  info = load(tmp_path).info
  assert info.images == {'train': 1, 'validation': 1} and 'test is used for validation' in info.source


def test_pascal_voc(tmp_path):
  for name in ('2007_1', '2007_2', '2008_1', 'unlisted'):
    photograph(tmp_path / f'JPEGImages/{name}.jpg')
    mask(tmp_path / f'SegmentationClass/{name}.png', 0, 12, 255, mode='P')
  photograph(tmp_path / 'JPEGImages/secret.jpg')
  lists = tmp_path / 'ImageSets/Segmentation'
  lists.mkdir(parents=True)
  for split, names in {'train': '2007_1\n2007_2\n', 'val': '2008_1\n', 'trainval': 'x', 'test': 'secret\n'}.items():
    (lists / f'{split}.txt').write_text(names)
  info, splits = load(tmp_path)
  assert len(info.class_names) == 21 and info.class_names[12] == 'dog'
  assert info.images == {'train': 2, 'validation': 1}  # the masks of the test images are not published
  np.testing.assert_array_equal(splits['train'].annotation(0)[0, [0, 8, 15]], [0, 12, IGNORE])
  (lists / 'val.txt').write_text('2008_1\nmissing\n')
  assert [line.split(' of ')[0] for line in problems(tmp_path)] == ['missing', 'missing']


@pytest.mark.parametrize(
  'content',
  [
    ['sky', 'road', 'tree'],
    {'road': 1, 'sky': 0, 'tree': 2},
    {'classes': ['sky', 'road', 'tree'], 'ignore_index': 255},
    {'classes': {'tree': 2, 'sky': 0, 'road': 1}, 'ignore': [255, 254]},
  ],
)
def test_forms_of_classes_json(tmp_path, content):
  info, splits = load(classes(flat(tmp_path, values=(0, 1, 2, 255)), content))
  assert info.class_names == ('sky', 'road', 'tree')
  np.testing.assert_array_equal(splits['train'].annotation(0)[0, ::4], [0, 1, 2, IGNORE])
  assert info.counts['train'] == (4 * 48,) * 3


def test_values_need_not_be_consecutive(tmp_path):
  flat(tmp_path, values=(0, 255, 7))
  info, splits = load(classes(tmp_path, {'classes': {'background': 0, 'cell': 255}, 'ignore': 7}))
  assert info.class_names == ('background', 'cell')
  np.testing.assert_array_equal(splits['train'].annotation(0)[0, ::6], [0, 1, IGNORE])
  (tmp_path / 'classes.json').unlink()
  assert load(tmp_path).info.class_names == ('class 0', 'class 7')


PALETTE = {'classes': ['red', 'green'], 'palette': {'red': list(RED), 'green': '#00c800', 'ignore': list(WHITE)}}


@pytest.mark.parametrize('content', [PALETTE, {'palette': PALETTE['palette']}])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'adaptive'])
def test_colours(tmp_path, content, mode):
  flat(tmp_path)
  for path in (tmp_path / 'masks').iterdir():
    mask(path, GREEN, RED, WHITE, mode=None if mode == 'adaptive' else mode)
    if mode == 'adaptive':  # as a program that shrinks PNG files leaves them: the indices mean nothing
      Image.open(path).quantize(8).save(path)
  info, splits = load(classes(tmp_path, content))
  assert info.class_names == ('red', 'green')
  np.testing.assert_array_equal(splits['train'].annotation(0)[0, ::6], [1, 0, IGNORE])


@pytest.mark.parametrize(
  ('mode', 'values', 'suffix'),
  [('P', (0, 3), 'png'), ('RGB', (0, 3), 'png'), ('1', (0, 255), 'png'), (None, (0, 300), 'png'), ('L', (0, 1), 'gif')],
)
def test_files_of_numbers(tmp_path, mode, values, suffix):
  """Indices of a palette, grey as RGB, one bit, 16 bits, and GIF."""
  for i in range(5):
    photograph(tmp_path / f'images/{i}.jpg')
    mask(tmp_path / f'masks/{i}.{suffix}', *values, mode=mode)
  info, splits = load(tmp_path)
  assert info.class_names == ('class 0', f'class {1 if mode == "1" else values[1]}')
  np.testing.assert_array_equal(splits['train'].annotation(0)[0, ::8], [0, 1])


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
  flat(tmp_path, 8)
  mask(tmp_path / 'masks/0.png', 255)
  (tmp_path / 'images/1.jpg').write_bytes(b'nothing')
  (tmp_path / 'masks/2.png').write_bytes((tmp_path / 'masks/2.png').read_bytes()[:60])
  (tmp_path / 'images/9.xyz').write_bytes(b'x')
  (tmp_path / 'old').mkdir()
  info, _ = load(tmp_path)
  reasons = dict(info.rejected)
  assert sum(info.images.values()) == 5
  assert reasons['images/0.jpg'] == 'all pixels are ignored'
  assert 'not an image' in reasons['images/1.jpg'] and '2.png' in reasons['images/2.jpg']
  assert info.notes[0].endswith('old is a folder that the layout does not use') and '.xyz 1' in info.notes[1]


def test_the_orientation_of_a_photograph_counts(tmp_path):
  turned = Image.Exif()
  turned[0x0112] = 6
  flat(tmp_path)
  photograph(tmp_path / 'images/0.jpg', exif=turned)
  assert 'turned by its EXIF orientation' in problems(tmp_path)[0]
  mask(tmp_path / 'masks/0.png', 0, 1, 2, size=SIZE[::-1])
  info, splits = load(tmp_path)
  sizes = [source.size(i) for source in splits.values() for i in range(len(source))]
  assert sorted(sizes) == [SIZE] * 4 + [SIZE[::-1]] and sum(info.images.values()) == 5


def test_all_problems_come_at_once(tmp_path):
  for split in ('train', 'val'):
    write(tmp_path, {f'{split}/images/{i}.jpg': (f'{split}/masks/{i}.png', (0, 1)) for i in range(6)})
  photograph(tmp_path / 'train/images/bare.jpg')
  mask(tmp_path / 'val/masks/orphan.png', 0)
  mask(tmp_path / 'train/masks/0.png', 0, 1, size=(10, 16))
  for i in range(1, 6):
    mask(tmp_path / f'val/masks/{i}.png', 0, 9)
  mask(tmp_path / 'train/masks/1.png', GREEN, RED)
  photograph(tmp_path / 'train/images/2.png')
  lines = problems(classes(tmp_path, ['a', 'b', 'c']))
  words = [
    'have the same name', 'image train/images/bare.jpg has no mask', 'mask val/masks/orphan.png has no image',
    'train/masks/0.png has 10 x 16 pixels (height x width), its image 12 x 16',
    'value 9 has no class: 5 files, such as val/masks/1.png, val/masks/2.png, val/masks/3.png',
    'colour [0, 200, 0] has no class: train/masks/1.png', 'colour [200, 0, 0] has no class: train/masks/1.png',
  ]  # fmt: skip
  assert len(lines) == len(words)
  for line, word in zip(lines, words):
    assert word in line


def test_many_problems_of_one_kind_are_shortened(tmp_path):
  flat(tmp_path, 30)
  for i in range(25):
    (tmp_path / f'masks/{i}.png').unlink()
  lines = problems(tmp_path)
  assert len(lines) == 11 and lines[-1] == 'and 15 more like the last line'


def test_a_class_that_training_lacks(tmp_path):
  write(tmp_path, {f'{s}/images/a.jpg': (f'{s}/masks/a.png', (0, 1)) for s in ('train', 'val')})
  mask(tmp_path / 'val/masks/a.png', 0, 2)
  (line,) = problems(classes(tmp_path, ['sky', 'road', 'tree']))
  assert "class 'tree' is in validation (val/masks/a.png) and not in train" in line


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda root: flat(root, values=(0, 255)), '0 and 255 only'),
    (lambda root: mask(flat(root) / 'masks/0.png', GREEN, RED), 'hold 2 colours'),
    (lambda root: write(root, {'val/a.jpg': ('val/a.png', (0, 1))}), 'has no train, only val'),
    (lambda root: photograph(root / 'train/images/a.jpg'), 'there is no folder'),
    (lambda root: photograph(root / 'pets/dog/a.jpg'), 'neither train/ nor images/'),
    (lambda root: flat(root / 'inner'), 'write --data masks:'),
    (lambda root: flat(root, count=1), 'cannot be split'),
    (lambda root: flat(root, values=(255,)), '255 only'),
    (lambda root: [(root / s / 'images').mkdir(parents=True) for s in ('train', 'val')], 'there is no folder'),
    (lambda root: flat(root) and mask(root / 'masks/0_mask.png', 0), 'has two masks, masks/0.png and masks/0_mask.png'),
    (lambda root: [(root / 'train').mkdir(), (root / 'Training').mkdir()], 'has 2 folders for train: Training, train'),
  ],
)
def test_single_problems(tmp_path, make, words):
  make(tmp_path)
  assert any(words in line for line in problems(tmp_path)), problems(tmp_path)


def test_lossy_masks_are_left_out_with_the_reason(tmp_path):
  write(tmp_path, {f'images/{i}.jpg': (f'masks/{i}.jpg', (0, 1)) for i in range(3)})
  (line,) = problems(tmp_path)
  assert 'no image that can be used' in line and 'JPEG' in line and 'next: save masks as PNG' in line


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('{', 'cannot be read'),
    (3, 'neither a list nor an object'),
    ([], 'it has 0 classes'),
    (['a', 'b', 'a'], "class 'a' is there twice"),
    ({'a': 0, 'b': 0}, "classes 'a' and 'b' have the same value 0"),
    ({'a': 0, 'b': 'c'}, 'neither a list of names nor names with whole numbers'),
    ({'classes': ['a'], 'license': 'MIT'}, "unknown key 'license'; there are classes"),
    ({'classes': ['a'], 'ignore': 0}, "value 0 is ignored and class 'a'"),
    ({'classes': ['a'], 'ignore': 'x'}, '"ignore" is "x"'),
    ({'classes': ['a', 'b'], 'palette': [[0, 0, 0]]}, '1 colours for 2 classes'),
    ({'classes': ['a'], 'palette': {'a': [0, 0, 300]}}, "colour of 'a' is [0, 0, 300]"),
    ({'classes': ['a'], 'palette': {'a': 'no colour'}}, 'colour of \'a\' is "no colour"'),
    ({'classes': ['a'], 'palette': {'x': '#000000'}}, "'x', which is not a class"),
    ({'classes': ['a', 'b'], 'palette': {'a': '#000000', 'b': [0, 0, 0]}}, 'the colour [0, 0, 0] twice'),
    ({'classes': ['a', 'b'], 'palette': {'a': '#000000'}}, "lacks class 'b'"),
  ],
)
def test_problems_of_classes_json(tmp_path, content, words):
  flat(tmp_path)
  (tmp_path / 'classes.json').write_text(content if content == '{' else json.dumps(content))
  assert any(words in line for line in problems(tmp_path)), problems(tmp_path)


def test_an_argument_that_is_no_folder(tmp_path):
  (tmp_path / 'file').touch()
  for argument, words in {'': 'needs a path', tmp_path / 'file': 'is a file', tmp_path / 'x': 'does not exist'}.items():
    with pytest.raises(UsageError, match=words):
      masks.load(str(argument), seed=0)


def test_the_fingerprint_follows_images_masks_and_classes(tmp_path):
  root = classes(flat(tmp_path), ['a', 'b', 'c'])
  seen = [load(root).splits['train'].fingerprint()]
  assert seen == [load(root).splits['train'].fingerprint()]
  for change in (
    lambda: [mask(path, 0, 2) for path in (root / 'masks').iterdir()],
    lambda: [photograph(path) or path.touch() for path in (root / 'images').iterdir()],
    lambda: classes(root, ['a', 'c', 'b']),
  ):
    change()
    seen.append(load(root).splits['train'].fingerprint())
  assert None not in seen and len(set(seen)) == 4


def test_a_mask_that_changed_later_names_its_file(tmp_path):
  source = load(flat(tmp_path)).splits['train']
  mask(source.pairs[0].mask, 0, 9)
  with pytest.raises(TlxError, match=r'masks.*png: value 9 has no class'):
    source.annotation(0)


def test_many_masks_are_counted_in_part(tmp_path, monkeypatch):
  monkeypatch.setattr(masks, 'FULL_CHECK', 5)
  info, splits = load(flat(tmp_path, 10))
  assert info.images == {'train': 8, 'validation': 2}
  assert sum(sum(counts) for counts in info.counts.values()) == 5 * SIZE[0] * SIZE[1]
  assert all(source.size(0) == SIZE for source in splits.values())


def test_scan_counts_values(tmp_path):
  mask(tmp_path / 'a.png', 0, 1)
  mask(tmp_path / 'b.png', 1, 500)
  mask(tmp_path / 'c.png', RED, GREEN)
  (tmp_path / 'd.png').touch()
  found = mask_files.scan([tmp_path / f'{name}.png' for name in 'abcd'])
  assert [each.size for each in found] == [SIZE] * 3 + [(0, 0)] and found[3].reason
  assert mask_files.pixels(found) == {0: 96, 1: 192, 500: 96, GREEN: 96, RED: 96}
  lines = mask_files.unknown(dict(zip('abcd', found)), [0, 500, RED])
  assert lines == ['value 1 has no class: a, b', 'colour [0, 200, 0] has no class: c']
  assert mask_files.read((tmp_path / 'b.png').read_bytes()).dtype == np.uint16


@pytest.mark.parametrize('split', ['', 'train/'])
def test_as_a_folder_of_classes_it_is_named_for_what_it_is(tmp_path, split):
  from tlx.datasets import folder

  write(tmp_path, {f'{split}images/{i}.jpg': (f'{split}masks/{i}.png', (0, 1)) for i in range(3)})
  with pytest.raises(UsageError, match=r'holds images, masks: images with masks, not classes; use --data masks:'):
    folder.load(str(tmp_path), seed=0)
