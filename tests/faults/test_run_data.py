"""A run goes on with the data that it began with, wherever they lie now, and says what changed otherwise."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tlx import catalog, files
from tlx.actions import run_data, run_record
from tlx.experiment import Experiment
from tlx.report import write_json
from tlx.types import UsageError


@pytest.fixture
def pets(tmp_path):
  """Uncompressed pictures, so that other pixels leave the size as it is."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 4), ('val', 2)):
    for name in ('cat', 'dog'):
      folder = tmp_path / 'pets' / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f'{i}.bmp')
  return tmp_path / 'pets'


def describe(root):
  return run_data.describe(catalog.dataset(f'folder:{root}', seed=0))


def other_pixels(path):
  stat, content = path.stat(), bytearray(path.read_bytes())
  content[-1] ^= 0xFF
  path.write_bytes(content)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def moved(root):
  for i in (0, 1):
    (root / f'train/cat/{i}.bmp').rename(root / f'train/dog/new{i}.bmp')


def swapped(root):
  for i in (0, 1):
    (root / f'train/cat/{i}.bmp').rename(root / f'{i}')
    (root / f'train/dog/{i}.bmp').rename(root / f'train/cat/{i}.bmp')
    (root / f'{i}').rename(root / f'train/dog/{i}.bmp')


def renamed_class(root):
  for split in ('train', 'val'):
    (root / split / 'dog').rename(root / split / 'wolf')


CHANGES = {
  'class': (renamed_class, ['class dog is gone', 'class wolf is new']),
  'fewer': (
    lambda root: [(root / f'train/cat/{i}.bmp').unlink() for i in range(3)],
    ['train: 8 there, 5 here (cat 4 there, 1 here)'],
  ),
  'moved': (moved, ['train: 8 there, 8 here (cat 4 there, 2 here, dog 4 there, 6 here)']),
  'name': (
    lambda root: (root / 'val/dog/1.bmp').rename(root / 'val/dog/9.bmp'),
    ['validation: other names or annotations of files'],
  ),
  'pixels': (lambda root: other_pixels(root / 'train/dog/2.bmp'), ['train: other contents of files']),
  'labels': (swapped, ['train: other contents of files']),
  'split': (
    lambda root: shutil.copytree(root / 'val', root / 'test'),
    ['split test is new'],
  ),
}


@pytest.mark.parametrize('change', CHANGES)
def test_what_changed_is_said(pets, change):
  before = describe(pets)
  harm, expected = CHANGES[change]
  harm(pets)
  after = describe(pets)
  assert run_data.changes(before, after) == expected and not run_data.same(before, after)
  del before['fingerprint']  # as in runs of older versions: classes and counts tell
  by_marks = change in ('name', 'pixels', 'labels')
  assert run_data.changes(before, after) == ([] if by_marks else expected)


def test_a_copy_elsewhere_with_other_times_is_the_same(pets, tmp_path):
  before = describe(pets)
  copy = shutil.copytree(pets, tmp_path / 'node/scratch/data')
  for path in copy.rglob('*.bmp'):
    os.utime(path, (1e9, 1e9))
  assert run_data.same(before, describe(copy)) and run_data.changes(before, describe(copy)) == []
  (pets / 'train/cat/0.bmp').write_bytes((copy / 'train/cat/0.bmp').read_bytes())  # written again, the same bytes
  assert run_data.same(before, describe(pets))


def test_a_large_file_is_read_in_parts_from_end_to_end(tmp_path):
  path, digests = tmp_path / 'shard', set()
  for at in (None, 0, run_data.WHOLE, 2 * run_data.WHOLE):
    content = bytearray(2 * run_data.WHOLE + 1)
    if at is not None:
      content[at] = 1
    path.write_bytes(content)
    digests.add(run_data._digest(path))
  assert len(digests) >= 3


def test_folders_of_files_with_equal_names_sizes_and_times_that_swap(pets):
  """For kept features, which must not be those of the other class; a cluster's copy is another matter."""
  for path in pets.rglob('*.bmp'):
    os.utime(path, (1e9, 1e9))
  paths = sorted(pets.rglob('*.bmp'))
  before = files.fingerprint(pets, paths)
  assert files.fingerprint(pets, paths) == before
  (pets / 'train/cat').rename(pets / 'x')
  (pets / 'train/dog').rename(pets / 'train/cat')
  (pets / 'x').rename(pets / 'train/dog')
  assert files.fingerprint(pets, paths) != before


@pytest.fixture
def run(pets, tmp_path):
  """A function of options: claims the run folder as `tlx finetune` does; returns the warnings."""
  out = tmp_path / 'run'

  def call(root=pets, why=('epochs',), statistics=(), **options):
    data = describe(root)
    experiment = Experiment(data=f'folder:{root}', out=str(out), **{'epochs': 3.0, 'batch_size': 4, **options})
    pretrained = SimpleNamespace(variables={'params': {}, 'batch_stats': dict.fromkeys(statistics)})
    prepared = SimpleNamespace(experiment=experiment, why=dict.fromkeys(why), pretrained=pretrained)
    warnings = []
    run_record.claim(out, prepared, data, warnings.append)
    write_json(out / 'experiment.json', {'experiment': run_record.plain(experiment), 'data': data})
    return warnings

  call()
  (out / 'checkpoints' / '3').mkdir(parents=True)
  (out / 'metrics.jsonl').touch()
  return call


def refused(run, **options):
  with pytest.raises(UsageError) as error:
    run(**options)
  return str(error.value).splitlines()


def test_other_data_are_refused_in_one_line(run, pets):
  renamed_class(pets)
  (line,) = refused(run, epochs=5.0)  # tlx chose the epochs from the number of images: their change is no news
  assert 'began with other data (class dog is gone; class wolf is new); next: restore the data' in line
  two = refused(run, epochs=5.0, seed=1)
  assert len(two) == 2 and 'seed 0 there, 1 here' in two[1] and 'epochs' not in two[1]


def test_a_moved_folder_goes_on_and_another_one_does_not(run, pets, tmp_path):
  copy = shutil.copytree(pets, tmp_path / 'copy')
  assert run(root=copy) == []
  other_pixels(copy / 'val/cat/0.bmp')
  (line,) = refused(run, root=copy)
  assert 'validation: other contents of files' in line


@pytest.mark.parametrize(
  'statistics, norm, allowed',
  [((), 'batch', True), (['backbone'], 'frozen', True), (['backbone'], 'batch', False), (['head'], 'frozen', False)],
)
def test_micro_batches_may_change_unless_batch_norms_see_them(run, tmp_path, statistics, norm, allowed):
  shutil.rmtree(tmp_path / 'run')
  run(statistics=statistics, norm_statistics=norm)
  assert run(statistics=statistics, norm_statistics=norm, micro_batches=2) == []  # nothing has trained
  (tmp_path / 'run/checkpoints/3').mkdir(parents=True)
  change = {'statistics': statistics, 'norm_statistics': norm, 'micro_batches': 1}
  assert run(**change) == [] if allowed else 'micro_batches 2 there, 1 here' in refused(run, **change)[0]


@pytest.mark.parametrize('damage', ['', '{"exper', '{}', '[]', '[' * 100_000, '{"experiment": 1, "data": {}}'])
def test_a_damaged_record_is_written_again_with_a_warning(run, tmp_path, damage):
  path = tmp_path / 'run' / 'experiment.json'
  path.write_text(damage)
  (warning,) = run()
  assert str(path) in warning and 'written again from this command' in warning and '\n' not in warning
  assert run() == []


def test_a_lost_record_and_folders_that_hold_something_else(run, tmp_path):
  out = tmp_path / 'run'
  (out / 'experiment.json').unlink()
  assert len(run()) == 1
  (out / 'experiment.json').unlink()
  (out / 'thesis.tex').touch()
  assert 'is not empty and is not a run folder' in refused(run)[0]


def test_what_a_kill_leaves_before_the_first_record(tmp_path):
  out = tmp_path / 'run'
  out.mkdir()
  (out / '.experiment.json.0123abcd.tmp').write_text('{"ex')
  (out / 'run.lock').touch()
  run_record.check_folder(out)
  (out / 'photo.jpg').touch()
  with pytest.raises(UsageError, match='is not a run folder'):
    run_record.check_folder(out)


def test_an_empty_split_is_refused(pets):
  info, splits = catalog.dataset(f'folder:{pets}', seed=0)
  empty = SimpleNamespace(info=info, splits={**splits, 'validation': []})
  (line,) = run_data.empty(empty)
  assert 'its split validation is empty; next: add images' in line
