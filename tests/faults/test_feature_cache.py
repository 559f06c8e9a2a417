"""Features that outlive their run are found by what they came from, whole, or computed again to the same bits."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import environment
from harm import DAMAGES, flipped, largest, small_disk

import tlx
from tlx import files
from tlx.cache import identity
from tlx.prefix import compute, store

QUICK = {
  'strategy': 'linear_probe',
  'image_size': 32,
  'epochs': 2,
  'batch_size': 8,
  'optimizer': 'sgd',
  'augment': 'none',
}
VALUES, MASK = np.arange(12, dtype=np.float32).reshape(6, 2), np.ones(6, bool)
PARTS = [({'pooled': VALUES[:4]}, MASK[:4]), ({'pooled': VALUES[4:]}, MASK[4:])]


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
  """The folder of features, empty."""
  folder = tmp_path / 'features'
  monkeypatch.setenv(store.VARIABLE, str(folder))
  return folder


@pytest.fixture
def computed(monkeypatch):
  """Grows by a split's name whenever the frozen layers run over it."""
  seen, parts = [], compute.Prefix._parts
  monkeypatch.setattr(
    compute.Prefix, '_parts', lambda self, split, *rest: (seen.append(split), parts(self, split, *rest))[1]
  )
  return seen


@pytest.fixture
def probe(tiny_model, tiny_images, tmp_path):
  """A function of options: (the bytes of the trained model, the run folder), of a new run."""
  count = iter(range(100))

  def call(model=tiny_model, data=tiny_images, **options):
    out = tmp_path / f'run{next(count)}'
    tlx.finetune(tlx.Experiment(str(model), f'folder:{data}', out=str(out), **{**QUICK, **options}))
    assert not (out / 'features').exists()
    return (out / 'model/model.safetensors').read_bytes()

  return call


def entries(shelf):
  return sorted(path.name for path in shelf.iterdir()) if shelf.exists() else []


def test_a_second_run_finds_them_and_ends_with_the_same_bits(probe, computed, shelf, capsys):
  first = probe()
  assert computed == ['train', 'validation'] and len(entries(shelf)) == 2
  assert 'in memory' in capsys.readouterr().out
  assert probe() == first and 'found from an earlier run' in capsys.readouterr().out
  assert probe(cache='disk') == first
  probe(lr=0.1, epochs=1, dropout=0.5, seed=3, label_smoothing=0.1)
  assert computed == ['train', 'validation'] and len(entries(shelf)) == 2
  assert probe(cache='memory') == first and len(computed) == 4  # which touches no disk


def test_every_bit_of_the_weights_counts():
  weights = {'stem/kernel': VALUES, 'stem/bias': VALUES[0]}
  other = VALUES.copy()
  other.view(np.uint8)[3, 2] ^= 1
  changed = [{'stem/kernel': other}, {'stem/kernel': VALUES.T}, {'stem/kernel': VALUES.view(np.int32)}, {'x': VALUES}]
  names = [store.of_arrays({**weights, **change}) for change in ({}, *changed)]
  assert len(set(names)) == 5 and store.of_arrays(dict(reversed(weights.items()))) == names[0]


@pytest.mark.slow
def test_what_decides_their_bits_decides_their_name(probe, computed, shelf, tiny_model, tiny_images, tmp_path):
  light = {'augment': 'light', 'cache_views': 2}
  data = shutil.copytree(tiny_images, tmp_path / 'images')
  folder = shutil.copytree(tiny_model, tmp_path / 'model')
  start = {'data': data, 'model': folder, 'cache': 'disk'}
  both = ['train', 'validation']
  expected = [
    ({}, both),
    ({'strategy': 'partial:1'}, both),
    ({'dtype': 'bfloat16'}, both),
    ({'batch_size': 16}, both),
    ({'image_size': 64}, both),
    (light, ['train']),  # validation images are seen as they are
    ({**light, 'cache_views': 3}, ['train']),
    ({**light, 'seed': 1}, ['train']),
    ({**light, 'randaugment': 1}, ['train']),
  ]
  for options, names in expected:
    computed.clear()
    probe(**{**start, **options})
    assert computed == names, options
  computed.clear()
  first = sorted((data / 'train/red').iterdir())[0]
  os.utime(first, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns + 1))
  probe(**start)
  assert computed == ['train']
  computed.clear()
  module, variables, preprocess, *_ = tlx.load(str(folder))
  layer = variables['params']['backbone']['stem']['conv']
  layer['kernel'] = np.array(layer['kernel'])
  layer['kernel'].view(np.uint8).ravel()[0] ^= 1
  tlx.save(tmp_path / 'other', module, variables, preprocess=preprocess)
  probe(**{**start, 'model': tmp_path / 'other'})
  assert computed == both
  computed.clear()
  tlx.save(tmp_path / 'shifted', module, variables, preprocess=preprocess._replace(mean=(0.4, 0.4, 0.4)))
  probe(**{**start, 'model': tmp_path / 'shifted'})
  assert computed == both


@pytest.mark.slow
def test_one_pass_takes_what_is_there_and_computes_nothing(probe, computed):
  probe(epochs=0.8)
  assert not computed
  first = probe(cache='disk', epochs=0.8)
  assert probe(epochs=0.8) == first and computed == ['train', 'validation']


@pytest.mark.slow
def test_data_that_cannot_name_themselves_are_not_kept(probe, computed, shelf, monkeypatch):
  from tlx.datasets import folder

  monkeypatch.delattr(folder.FolderSource, 'fingerprint')
  assert probe() == probe(cache='disk') and len(computed) == 4 and not entries(shelf)


@pytest.mark.slow
def test_an_image_that_was_not_read_may_be_read_next_time(probe, computed, shelf, monkeypatch):
  from tlx.datasets import folder

  read = folder.FolderSource.__getitem__

  def unlucky(self, index):
    if index == 7 and len(self) == 30:
      raise OSError(errno.EIO, 'the network is away')
    return read(self, index)

  with monkeypatch.context() as patch:
    patch.setattr(folder.FolderSource, '__getitem__', unlucky)
    for cache in ('auto', 'disk'):
      probe(cache=cache)
  assert computed == ['train', 'validation', 'train'] and len(entries(shelf)) == 1
  assert probe() == probe(cache='memory') and len(entries(shelf)) == 2


@pytest.mark.slow
def test_off_in_the_environment_or_a_folder_that_cannot_be_written(probe, computed, shelf, monkeypatch, tmp_path):
  monkeypatch.setenv(store.VARIABLE, 'off')
  first = probe(cache='disk')
  (tmp_path / 'file').touch()
  monkeypatch.setenv(store.VARIABLE, str(tmp_path / 'file/features'))
  assert probe() == first and len(computed) == 4
  assert not shelf.exists()


@pytest.mark.parametrize('harm', DAMAGES)
@pytest.mark.parametrize('name', [store.file_of('pooled'), store.MASK, files.SEAL])
def test_damage_is_noticed(shelf, harm, name):
  entry = shelf / identity.key('x')
  store.write(entry, 6, PARTS, 'run')
  DAMAGES[harm](entry / name)
  assert store.take(entry, memory=True) is None
  store.write(entry, 6, PARTS, 'run')
  for memory in (True, False):
    np.testing.assert_array_equal(store.take(entry, memory)[0]['pooled'], VALUES)


def test_a_run_on_damaged_features_computes_them_again(probe, computed, shelf):
  first = probe()
  flipped(largest(shelf))
  assert probe() == first and len(computed) == 3
  assert probe() == first and len(computed) == 3


def test_bfloat16_comes_back(shelf):
  values, entry = VALUES.astype(ml_dtypes.bfloat16), shelf / 'x'
  store.write(entry, 6, [({'pooled': values}, MASK)], 'run')
  found = store.take(entry, memory=False)[0]['pooled']
  assert found.dtype == ml_dtypes.bfloat16 and (found == values).all()


def test_two_runs_that_compute_the_same_at_once(shelf):
  entry = shelf / 'x'

  def slow():
    yield PARTS[0]
    store.write(entry, 6, PARTS, 'faster')
    yield PARTS[1]

  values, mask = store.write(entry, 6, slow(), 'slower')
  np.testing.assert_array_equal(values['pooled'], VALUES)
  assert mask.all() and entries(shelf) == ['x']
  np.testing.assert_array_equal(store.take(entry, memory=True)[0]['pooled'], VALUES)


def test_killed_in_the_middle(shelf, monkeypatch):
  name = identity.key('x')
  code = f"""
import os, sys
sys.path[:0] = [{os.path.dirname(__file__)!r}, {os.path.dirname(os.path.dirname(__file__))!r}]
from test_feature_cache import PARTS, store
def parts():
  yield PARTS[0]
  os.kill(os.getpid(), {int(signal.SIGKILL)})
store.write(store.folder() / {name!r}, 6, parts(), sys.argv[1])
"""
  for owner in ('run', 'another'):
    assert subprocess.run([sys.executable, '-c', code, owner], env=environment()).returncode == -signal.SIGKILL
  left = entries(shelf)
  assert len(left) == 2 and all(each.endswith(store.PART) for each in left)
  assert store.take(shelf / name, memory=True) is None
  store.write(shelf / name, 6, PARTS, 'run')  # goes on where its own part lay
  store.make_room(0)
  assert len(entries(shelf)) == 2  # the other may be alive
  (part,) = shelf.glob(f'*{store.PART}')
  for path in (part, *part.iterdir()):
    os.utime(path, (0, 0))
  store.make_room(0)
  assert entries(shelf) == [name]


def test_what_was_used_longest_ago_goes_first_and_nothing_else(shelf, monkeypatch):
  names = [identity.key(i) for i in range(3)]
  mapped = [store.write(shelf / name, 6, PARTS, 'run')[0] for name in names]
  for age, name in enumerate(names):
    for path in (*(shelf / name).iterdir(), shelf / name):
      os.utime(path, (1e9 + age, 1e9 + age))
  store.take(shelf / names[0], memory=True)
  (shelf / 'mine').mkdir()
  (shelf / 'mine/own').write_bytes(bytes(10**5))
  (shelf / f'{names[1]}-12345678{store.PART}').mkdir()  # somebody writes there
  size = sum(path.stat().st_size for path in (shelf / names[0]).iterdir())
  monkeypatch.setattr(store, 'LARGEST', 4 * size)
  store.make_room(size // 2)
  assert set(names) <= set(entries(shelf))
  store.make_room(2 * size)
  assert set(names) & set(entries(shelf)) == {names[0], names[2]}
  store.make_room(10 * size)
  assert entries(shelf) == sorted(['mine', f'{names[1]}-12345678{store.PART}'])
  np.testing.assert_array_equal(mapped[1]['pooled'], VALUES)  # a run that uses them goes on


@pytest.mark.slow
def test_a_full_disk_costs_the_copy_or_ends_in_a_line(probe, monkeypatch, shelf, capsys):
  plain = probe(cache='memory')

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(store, 'write', full)
  capsys.readouterr()
  assert probe() == plain
  assert capsys.readouterr().out.count('the features are not kept for later runs: the disk is full') == 2
  with pytest.raises(tlx.TlxError, match=f'the features cannot be written to {shelf}: the disk is full; free some'):
    probe(cache='disk')


@pytest.mark.slow
def test_a_disk_that_fills_up(tmp_path):
  with small_disk(tmp_path / 'disk') as disk:
    parts = (({'pooled': np.zeros((1000, 64), np.float32)}, np.ones(1000, bool)) for _ in range(8))
    with pytest.raises(OSError, match='No space left'):
      store.write(disk / 'x', 8000, parts, 'run')
    assert not list(disk.iterdir())
    store.write(disk / 'x', 6, PARTS, 'run')


@pytest.mark.slow
def test_views_after_an_interruption(probe, tiny_images, tiny_model, tmp_path, shelf):
  """Other features would give other bits: the same are found, or are computed again."""
  options = {'augment': 'light', 'cache_views': 3}
  first = probe(**options)
  shutil.rmtree(shelf)
  assert probe(**options) == first
  assert probe(**{**options, 'cache_views': 1}) != first
