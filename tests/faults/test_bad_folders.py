"""`folder:PATH`: every layout that people have, and one clear line for each thing that is wrong with it."""

import numpy as np
import pytest
from conftest import noise

from tlx.datasets import folder
from tlx.types import UsageError


@pytest.fixture
def make(tmp_path):
  return lambda **counts: noise(tmp_path / 'pets', {name.replace('__', '/'): count for name, count in counts.items()})


def problems(path):
  with pytest.raises(UsageError) as error:
    folder.load(str(path), seed=0)
  return str(error.value).splitlines()


@pytest.mark.parametrize('name', ['validation', 'val', 'valid', 'Val'])
def test_split_folders(make, name):
  root = make(train__dog=3, train__cat=2, **{f'{name}__cat': 1, f'{name}__dog': 2}, test__cat=1)
  info, splits = folder.load(str(root), seed=0)
  assert info.class_names == ('cat', 'dog') and info.resolution == (20, 30)
  assert info.counts == {'train': (2, 3), 'validation': (1, 2), 'test': (1, 0)}
  assert splits['train'][0].name == 'train/cat/0.jpg' and splits['train'][0].annotation == 0


def test_test_stands_in_for_validation_and_says_so(make):
  info, splits = folder.load(str(make(train__a=2, train__b=2, test__a=1, test__b=1)), seed=0)
  assert set(splits) == {'train', 'validation'} and 'test is used for validation' in info.source


def test_classes_alone_are_split_by_seed(make):
  root = make(cat=10, dog=20, train=5)  # a class may be called train
  info, splits = folder.load(str(root), seed=0)
  assert info.class_names == ('cat', 'dog', 'train')
  assert info.counts == {'train': (8, 16, 4), 'validation': (2, 4, 1)}
  names = [{split[i].name for i in range(len(split))} for split in splits.values()]
  assert not names[0] & names[1] and len(names[0] | names[1]) == 35
  same, other = (folder.load(str(root), seed=s).splits['validation'] for s in (0, 1))
  assert {same[i].name for i in range(7)} == names[1] != {other[i].name for i in range(7)}


def test_train_alone_is_split(make):
  assert folder.load(str(make(train__a=10, train__b=10)), seed=0).info.counts['validation'] == (2, 2)


def test_odd_files_are_skipped_and_nested_ones_found(make):
  root = make(cat=2, dog=2, cat__more__still=2, dog__more=1)
  for name in ('.hidden.jpg', '._0.jpg', 'notes.txt', 'Thumbs.db'):
    (root / 'cat' / name).write_bytes(b'x')
  (root / '.git').mkdir()
  (root / 'cat' / '0.jpg').rename(root / 'cat' / '0.JPEG')
  (root / 'cat' / 'loop').symlink_to(root / 'cat')
  info = folder.load(str(root), seed=0).info
  assert np.sum(list(info.counts.values()), axis=0).tolist() == [4, 3] and info.rejected == ()


def test_unreadable_images_are_left_out_and_listed(make, monkeypatch):
  root = make(cat=5, dog=5)
  whole = (root / 'cat/0.jpg').read_bytes()
  (root / 'cat/0.jpg').write_bytes(whole[: len(whole) // 2])
  (root / 'cat/1.jpg').write_bytes(b'')
  (root / 'dog/1.jpg').write_bytes(b'<html>')
  for limit in (folder.FULL_CHECK, 0):  # every pixel, or header and end marker
    monkeypatch.setattr(folder, 'FULL_CHECK', limit)
    info = folder.load(str(root), seed=0).info
    assert [path for path, _ in info.rejected] == ['cat/0.jpg', 'cat/1.jpg', 'dog/1.jpg']
    assert (
      'truncated' in info.rejected[0][1].lower()
      and 'empty' in info.rejected[1][1]
      and 'not an image' in info.rejected[2][1]
    )
    assert np.sum(list(info.counts.values()), axis=0).tolist() == [3, 4]


def test_missing_folder_suggests_siblings(make, tmp_path):
  make(a=1)
  assert problems(tmp_path / 'pet') == [f'no folder {tmp_path}/pet: {tmp_path} has no pet; did you mean pets?']
  assert 'has no nowhere' in problems(tmp_path / 'nowhere/pets')[0]


def test_a_file_is_no_folder(make):
  assert 'is a file, not a folder' in problems(make(a=1) / 'a/0.jpg')[0]


def test_no_images_at_all(make, tmp_path):
  assert 'no images' in problems(tmp_path)[0]
  assert 'no images' in problems(make(a=0, b=0))[0]
  assert '3 lie directly in it' in problems(make(flat=3) / 'flat')[0]


def test_all_problems_at_once(make):
  lines = problems(make(train__cat=2, train__dog=0, val__cats=1, val__cat=0))
  assert len(lines) == 3
  assert "class 'dog' is empty" in lines[0] and "class 'cat' is empty" in lines[1]
  assert "'cats'" in lines[2] and "did you mean 'cat'" in lines[2]


def test_one_class_only(make):
  assert "only one class, 'cat'" in problems(make(cat=3))[0]


def test_a_class_of_damaged_images(make):
  root = make(cat=2, dog=1)
  (root / 'dog/0.jpg').write_bytes(b'')
  assert problems(root) == ["class 'dog': none of its 1 images can be decoded, such as dog/0.jpg (the file is empty)"]


def test_validation_without_train_and_two_validation_folders(make):
  assert 'but no train' in problems(make(val__a=1, val__b=1))[0]
  assert 'has 2 folders for validation' in problems(make(train__a=1, train__b=1, valid__a=1))[0]
