"""`folder:PATH`: splits by name and by structure, leftovers, other kinds of data sets; and nothing vanishes unsaid."""

import os
import shutil
import unicodedata

import pytest
from conftest import noise

from tlx.data import left_out, listing, split_names
from tlx.datasets import folder
from tlx.types import UsageError


@pytest.fixture
def make(tmp_path):
  return lambda counts: noise(tmp_path / 'pets', counts, size=(8, 9), ending='png')


def info_of(root):
  return folder.load(str(root), seed=0).info


def problem(root):
  with pytest.raises(UsageError) as error:
    folder.load(str(root), seed=0)
  return str(error.value)


BY_NAME = [
  ('Training', 'Testing', None), ('train', 'eval', None), ('train', 'dev', None), ('training_set', 'test_set', None),
  ('seg_train', 'seg_test', None), ('TrainData', 'ValidData', 'TestData'), ('X-train', 'X-val', 'X-test'),
  ('train2017', 'val2017', None), ('TRAIN', 'VAL', 'TEST'), ('trainset', 'valset', 'testset'),
]  # fmt: skip


@pytest.mark.parametrize(('train', 'held', 'test'), BY_NAME, ids=lambda names: str(names))
def test_splits_by_name(make, train, held, test):
  root = make({f'{split}/{c}': 3 - (split != train) for split in (train, held, test) if split for c in 'ab'})
  info = info_of(root)
  assert info.class_names == ('a', 'b')
  assert info.counts == {'train': (3, 3), 'validation': (2, 2), **({'test': (2, 2)} if test else {})}


def test_a_split_without_a_telling_name_is_found_by_its_classes(make):
  info = info_of(make({'train/a': 3, 'train/b': 3, 'golden/a': 1, 'golden/b': 1}))
  assert info.counts == {'train': (3, 3), 'validation': (1, 1)}
  assert 'laid out alike' in info.notes[0] and 'golden for validation' in info.notes[0]


def test_the_largest_of_folders_that_no_name_tells_is_for_training(make):
  info = info_of(make({'part1/a': 6, 'part1/b': 6, 'part2/a': 2, 'part2/b': 1}))
  assert info.counts == {'train': (6, 6), 'validation': (2, 1)}
  assert 'part1 (12 images), part2 (3 images)' in info.notes[0] and 'part1 for train' in info.notes[0]


@pytest.mark.parametrize(
  'counts',
  [
    {'x/a': 3, 'x/b': 3, 'y/a': 3, 'y/b': 3},  # of one size
    {'x/a': 9, 'x/b': 9, 'y/a': 3, 'y/b': 3, 'z/a': 3, 'z/b': 3},  # which of two is for validation?
    {'train/a': 3, 'train/b': 3, 'val/a': 1, 'test/b': 1, 'extra/a': 3, 'extra/b': 3},
    {'train/a': 3, 'train/b': 3, 'one/a': 1, 'two/b': 1},
  ],
)
def test_splits_that_cannot_be_told_apart_are_refused(make, counts):
  assert 'laid out alike' in problem(make(counts)) and 'next: rename them' in problem(make({}))


def test_classes_may_hold_their_splits(make):
  counts = {f'{c}/{split}': n for c in ('cat', 'dog') for split, n in {'train': 4, 'val': 2, 'test': 1}.items()}
  info = info_of(make(counts))
  assert info.class_names == ('cat', 'dog')
  assert info.counts == {'train': (4, 4), 'validation': (2, 2), 'test': (1, 1)}
  shutil.rmtree(make({}) / 'dog' / 'train')
  assert "class 'dog' has no folder train" in problem(make({}))


@pytest.mark.parametrize('wrapper', ['archive', 'data/images'])
def test_one_folder_around_all_others_is_entered_and_said(make, wrapper):
  info = info_of(make({f'{wrapper}/train/a': 2, f'{wrapper}/train/b': 2, f'{wrapper}/val/a': 1, f'{wrapper}/val/b': 1}))
  assert info.counts == {'train': (2, 2), 'validation': (1, 1)} and f'pets/{wrapper}' in info.notes[0]


def test_a_split_inside_a_folder_of_its_own_name(make):
  info = info_of(make({f'seg_{s}/seg_{s}/{c}': 2 for s in ('train', 'test') for c in 'ab'}))
  assert info.class_names == ('a', 'b') and info.counts == {'train': (2, 2), 'validation': (2, 2)}


def test_splits_that_hold_one_more_folder(make):
  info = info_of(make({f'{split}/images/{c}': 2 for split in ('train', 'val') for c in 'ab'}))
  assert info.class_names == ('a', 'b') and info.counts == {'train': (2, 2), 'validation': (2, 2)}


def test_classes_that_hold_one_folder_of_the_same_name(make):
  info = info_of(make({'cat/images': 5, 'dog/images': 5}))
  assert info.class_names == ('cat', 'dog') and info.counts == {'train': (4, 4), 'validation': (1, 1)}


def test_alike_classes_in_a_folder_train_are_classes(make):
  info = info_of(make({f'train/{c}/{year}': 5 for c in ('cat', 'dog') for year in ('2019', '2020')}))
  assert info.class_names == ('cat', 'dog') and info.counts == {'train': (8, 8), 'validation': (2, 2)}


def test_two_links_to_one_folder_both_count(make):
  root = make({'train/a': 3, 'train/b': 3, 'val/a': 1, 'val/b': 1})
  (root / 'test').symlink_to(root / 'val')
  info = info_of(root)
  assert info.counts['test'] == (1, 1) and 'of test also in validation' in info.notes[0]


def test_a_folder_that_cannot_be_opened_is_counted(make, monkeypatch):
  root = make({'cat': 3, 'dog': 3, 'dog/closed': 1})
  scan = os.scandir

  def scandir(path):
    if str(path).endswith('closed'):
      raise PermissionError(13, 'Permission denied')
    return scan(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  assert info_of(root).notes == ('1 file is not read: folders that cannot be opened 1',)


def test_classes_with_sub_folders_beside_plain_ones_stay_classes(make):
  info = info_of(make({'cat/indoor': 5, 'cat/outdoor': 5, 'dog/indoor': 5, 'dog/outdoor': 5, 'bird': 5}))
  assert info.class_names == ('bird', 'cat', 'dog')


def test_vehicles(make):
  info = info_of(make({'train/steam': 5, 'train/electric': 5, 'bus': 5, 'car': 5}))
  assert info.class_names == ('bus', 'car', 'train')


def test_folders_beside_the_splits_are_said(make):
  info = info_of(make({'train/a': 3, 'train/b': 3, 'val/a': 1, 'val/b': 1, 'unlabelled': 4}))
  assert any('4 images' in note and 'unlabelled' in note for note in info.notes)


def test_test_images_without_classes_are_said_and_not_used(make):
  info = info_of(make({'train/a': 5, 'train/b': 5, 'test': 3}))
  assert set(info.counts) == {'train', 'validation'} and '3 images lie in no class' in info.notes[0]


def test_names_in_two_unicode_forms_meet(make):
  forms = [unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD')]
  info = info_of(make({f'train/{forms[0]}': 3, 'train/tea': 3, f'val/{forms[1]}': 1, 'val/tea': 1}))
  assert info.class_names == (forms[0], 'tea') and info.counts['validation'] == (1, 1)


def test_runs_of_tlx_are_no_classes(make):
  root = make({'cat': 3, 'dog': 3, 'runs/first/mistakes': 4, 'cat/run/mistakes': 1})
  for run in (root / 'runs/first', root / 'cat/run'):
    (run / 'experiment.json').write_text('{}')
    (run / 'metrics.jsonl').write_text('')
  info = info_of(root)
  assert info.class_names == ('cat', 'dog') and sum(map(sum, info.counts.values())) == 6
  assert info.notes == ('5 files are not read: in run folders 5',)


def test_what_is_left_out_is_counted_by_kind(make):
  root = make({'cat': 3, 'dog': 3, 'cat/.cache': 2, 'dog/@eaDir': 1, '__MACOSX': 1})
  for i in range(4):
    (root / 'cat' / f'IMG_{i}.XYZ').write_bytes(b'x')
  (root / 'dog' / 'noext').write_bytes(b'x')
  for name in ('.DS_Store', '._0.png', 'Thumbs.db'):
    (root / 'dog' / name).write_bytes(b'x')
  (note,) = info_of(root).notes
  assert note == '9 files are not read: in hidden folders 4, .xyz 4, no extension 1'


def test_folders_without_images_that_are_left_out_need_no_word(make):
  root = make({'cat': 3, 'dog': 3, '.git': 0, 'runs/first': 0})
  for name in ('experiment.json', 'metrics.jsonl'):
    (root / 'runs/first' / name).write_text('{}')
  assert info_of(root).notes == ()


def test_a_folder_of_runs_has_no_images(make):
  root = make({'runs/first/mistakes': 2})
  for name in ('experiment.json', 'metrics.jsonl'):
    (root / 'runs/first' / name).write_text('{}')
  found = listing.look(root / 'runs')
  assert found.images(str(root / 'runs')) == [] and found.left_out == {'in run folders': 2}
  assert 'no images' in problem(root / 'runs') and 'in run folders 2' in problem(root / 'runs')


def test_heic_says_what_to_install():
  assert 'pip install' in left_out.unread({'.heic': 3})[0] and 'pip install' not in left_out.unread({'.txt': 3})[0]


def test_a_pipe_is_not_waited_for(make):
  root = make({'cat': 3, 'dog': 3})
  os.mkfifo(root / 'cat' / 'pipe.jpg')
  assert info_of(root).notes == ('1 file is not read: not a regular file 1',)


def test_images_that_two_splits_share_are_reported(make):
  root = make({'train/a': 3, 'train/b': 3, 'val/a': 1, 'val/b': 1})
  shutil.copy(root / 'train/a/2.png', root / 'val/b/copy.png')
  (note,) = info_of(root).notes
  assert note.startswith('1 image of validation also in train, such as val/b/copy.png = train/a/2.png')


def test_one_image_per_class_cannot_be_split(make):
  assert 'no class has a second image' in problem(make({'a': 1, 'b': 1}))


@pytest.mark.parametrize(
  ('files', 'expected'),
  [
    (['annotations/instances_train.json', 'train/0.jpg'], 'coco_masks:'),
    (['train/_annotations.coco.json', 'train/0.jpg'], 'coco_masks:'),
    (['images/train/0.jpg', 'labels/train/0.txt', 'data.yaml'], 'YOLO'),
    (['train/images/0.jpg', 'train/labels/0.txt'], 'YOLO'),
    (['JPEGImages/0.jpg', 'Annotations/0.xml', 'ImageSets/Main/train.txt'], 'Pascal VOC'),
    (['images/0.jpg', 'masks/0.png'], 'masks:'),
    (['0.jpg', 'tags.csv'], 'tags:'),
  ],
)
def test_other_kinds_of_data_sets_are_named(tmp_path, files, expected):
  for name in files:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"images": [], "annotations": [], "categories": []}' if name.endswith('.json') else b'x')
  line = problem(tmp_path)
  assert expected in line and '\n' not in line


@pytest.mark.parametrize(
  ('name', 'expected'),
  [('trainer', None), ('valley', None), ('devil', None), ('testbed', None), ('train_test', None), ('tr', None)],
)
def test_words_that_only_begin_like_a_split_name_none(name, expected):
  assert split_names.role(name) is expected
