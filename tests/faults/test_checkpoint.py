"""Checkpoints that are damaged, that cannot be read, or that hold another state: set aside, or left where they are."""

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harm import DAMAGES, flipped, largest, small_disk

from tlx import files
from tlx.train import checkpoint
from tlx.train.checkpoint import Checkpoints, fingerprint
from tlx.train.sharding import Jit
from tlx.types import TlxError


def small(step):
  state = {'w': jnp.arange(5000, dtype=jnp.float32) * step, 'n': {'step': jnp.asarray(step, jnp.int32)}}
  return Jit(tuple(jax.devices())).put_state(state)


def like(_):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), small(0))


@pytest.fixture
def two(tmp_path):
  """A folder with checkpoints 3 and 6 in it."""
  save_two(tmp_path / 'checkpoints')
  return tmp_path / 'checkpoints'


def save_two(folder):
  with contextlib.closing(Checkpoints(folder)) as checkpoints:
    for step in (3, 6):
      checkpoints.save(step, small(step), {'phase': 0})


def restored(folder, like=like):
  """(what `restore` returns, its warnings)"""
  warnings = []
  with contextlib.closing(Checkpoints(folder, warn=warnings.append)) as checkpoints:
    return checkpoints.restore(like), warnings


def names(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


@pytest.mark.parametrize('damage', DAMAGES)
def test_no_damaged_file_reaches_orbax(two, tmp_path, monkeypatch, capfd, damage):
  opened, reader = [], checkpoint._reader
  monkeypatch.setattr(checkpoint, '_reader', lambda: opened.append(1) or reader())
  for number, name in enumerate(names(two / '6')):
    folder = shutil.copytree(two, tmp_path / str(number) / 'checkpoints')
    before = (folder / '6' / name).read_bytes()
    DAMAGES[damage](folder / '6' / name)
    if (not before and damage != 'deleted') or (damage == 'deleted' and name.name == files.SEAL):
      continue  # nothing is damaged
    opened.clear()
    found, (warning,) = restored(folder)
    assert found.step == 3 and len(opened) == 2, name  # what is beside the state, then the state
    assert warning.startswith(f'checkpoint 6 is damaged ({name}') or name.name == files.SEAL
    assert (folder.parent / 'damaged_checkpoints/6').is_dir() and not (folder / '6').exists()
  assert capfd.readouterr() == ('', '')


def test_a_checkpoint_of_a_process_that_died_before_the_hashes_is_used(two):
  (two / '6' / files.SEAL).unlink()
  found, warnings = restored(two)
  assert found.step == 6 and not warnings and fingerprint(found.state) == fingerprint(small(6))


@pytest.mark.parametrize('damage', DAMAGES)
def test_without_hashes_every_damage_is_noticed_or_harmless(two, tmp_path, damage):
  (two / '6' / files.SEAL).unlink()
  noticed = 0
  for number, name in enumerate(names(two / '6')):
    folder = shutil.copytree(two, tmp_path / str(number) / 'checkpoints')
    DAMAGES[damage](folder / '6' / name)
    found, warnings = restored(folder)
    assert fingerprint(found.state) == fingerprint(small(found.step)), name
    if found.step == 3:
      noticed += 1
      assert (folder.parent / 'damaged_checkpoints/6').is_dir() and not (folder / '6').exists(), name
      assert warnings[0].startswith('checkpoint 6 is damaged (') and '\n' not in warnings[0], name
  assert noticed >= 3


def test_bits_that_were_wrong_before_they_were_hashed(two, monkeypatch):
  monkeypatch.setattr(checkpoint, 'fingerprint', lambda state: [int(state['n']['step']) - 6, 0])
  checkpoints = Checkpoints(two)
  checkpoints.save(9, small(9), {'phase': 0})
  checkpoints.close()
  monkeypatch.undo()
  found, (warning,) = restored(two)
  assert found.step == 6 and warning.startswith('checkpoint 9 is damaged (its bits differ')


def test_no_checkpoint_is_left(two):
  warnings = []
  for step in (3, 6):
    flipped(largest(two / str(step) / 'state'))
  checkpoints = Checkpoints(two, warn=warnings.append)
  assert checkpoints.restore(like) is None and len(warnings) == 2
  checkpoints.save(3, small(3), {'phase': 0})
  checkpoints.wait()
  assert fingerprint(checkpoints.restore(like).state) == fingerprint(small(3))
  checkpoints.close()
  assert sorted(p.name for p in (two.parent / 'damaged_checkpoints').iterdir()) == ['3', '6']


def test_a_checkpoint_that_is_damaged_while_the_run_goes_on(two):
  """After a save, orbax has a list of its own of what there is."""
  with contextlib.closing(Checkpoints(two)) as checkpoints:
    checkpoints.save(9, small(9), {'phase': 0})
    checkpoints.wait()
    flipped(largest(two / '9' / 'state'))
    assert checkpoints.restore(like).step == 6 and checkpoints.latest() == 6
    checkpoints.save(9, small(9), {'phase': 0})
    assert checkpoints.latest() == 9
  assert restored(two)[0].step == 9


def refuse(message, folder, like=like):
  """`restore` stops with one line that names the checkpoint, and touches nothing."""
  before = {path: (folder / path).read_bytes() for path in names(folder)}
  with pytest.raises(TlxError, match=message) as error:
    restored(folder, like)
  assert '\n' not in str(error.value) and str(folder) in str(error.value)
  assert {path: (folder / path).read_bytes() for path in names(folder)} == before
  assert not (folder.parent / 'damaged_checkpoints').exists()


REFUSALS = {
  'memory': MemoryError('out of memory'),
  'device memory': jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.'),
  **{errno.errorcode[code]: OSError(code, os.strerror(code)) for code in (errno.ENOMEM, errno.EIO, errno.EACCES)},
  'tensorstore': ValueError("PERMISSION_DENIED: Failed to open: Permission denied [os_error_code='13']"),
}


@pytest.mark.parametrize('place', ['files.broken', 'checkpoint._reader', 'checkpoint.fingerprint', 'no hashes'])
@pytest.mark.parametrize('refusal', REFUSALS)
def test_an_error_of_the_machine_stops_and_moves_nothing(two, monkeypatch, refusal, place):
  def fail(*_):
    error = REFUSALS[refusal]
    if place == 'no hashes':  # as orbax hands on what happens to a single array
      raise Exception('Encountered error while reading array index') from error
    raise error

  if place == 'no hashes':
    (two / '6' / files.SEAL).unlink()
  where, name = ('checkpoint', '_reader') if place == 'no hashes' else place.split('.')
  monkeypatch.setattr({'files': files, 'checkpoint': checkpoint}[where], name, fail)
  cause = re.escape(str(REFUSALS[refusal]))
  refuse(rf'could not read checkpoint 6 in .*stays as it is: {cause}; mend that .*the same command', two)
  monkeypatch.undo()
  assert restored(two)[0].step == 6


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore:coroutine:RuntimeWarning')
@pytest.mark.parametrize('sealed', [True, False])
def test_too_many_open_files(two, sealed):
  """For real: with every number of files that may still be opened, until there are enough."""
  if not sealed:
    (two / '6' / files.SEAL).unlink()
  assert restored(two)[0].step == 6  # what is imported late is imported now
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  outcomes = []
  for free in range(12):
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]
    try:
      resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, hard))
      for descriptor in taken[len(taken) - free :]:
        os.close(descriptor)
      found, warnings = restored(two)
      outcomes.append(found.step)
      assert not warnings
    except TlxError as error:
      outcomes.append(str(error))
    finally:
      resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
      for descriptor in taken[: len(taken) - free]:
        os.close(descriptor)
  assert outcomes[-1] == 6 and 'Too many open files' in outcomes[0]
  assert {x for x in outcomes if not isinstance(x, str)} == {6}


MISFITS = {
  'shape': ({'w': ((5001,), 'float32')}, r'w is float32\[5000\] there, float32\[5001\] here;'),
  'type': ({'w': ((5000,), 'bfloat16')}, r'w is float32\[5000\] there, bfloat16\[5000\] here;'),
  'new': ({'b': ((2,), 'float32')}, r'b is missing there, float32\[2\] here;'),
  'two': ({'b': ((2,), 'float32'), 'w': ((), 'int32')}, r'w is .*, int32\[\] here \(and 1 more\);'),
}


@pytest.mark.parametrize('sealed', [True, False])
@pytest.mark.parametrize('misfit', MISFITS)
def test_another_state_stops_and_moves_nothing(two, misfit, sealed):
  if not sealed:
    (two / '6' / files.SEAL).unlink()
  leaves, message = MISFITS[misfit]
  sharding = like(None)['w'].sharding
  other = {name: jax.ShapeDtypeStruct(*leaf, sharding=sharding) for name, leaf in leaves.items()}
  refuse(message + ' it stays where it is: resume with the program', two, lambda meta: like(meta) | other)
  assert restored(two)[0].step == 6


def test_a_leaf_that_the_program_has_not_and_a_phase_that_the_plan_has_not(two):
  refuse(r'n\.step is int32\[\] there, missing here;', two, lambda meta: {'w': like(meta)['w']})
  refuse(r'it has none for phase 0 \(list index out of range\);', two, lambda meta: [][meta['phase']])
  assert restored(two)[0].step == 6


def test_a_damaged_checkpoint_that_cannot_be_moved(two, monkeypatch):
  flipped(largest(two / '6' / 'state'))
  monkeypatch.setattr(shutil, 'move', lambda *_: (_ for _ in ()).throw(PermissionError(13, 'Permission denied')))
  with pytest.raises(TlxError, match=r'could not move the damaged .*6 to .*move it yourself'):
    restored(two)


def test_one_bit_or_two_places_changed_are_noticed():
  rng = np.random.default_rng(0)
  for dtype in (np.float32, np.int32, jnp.bfloat16, np.uint8):
    array = rng.integers(0, 200, 300).astype(dtype)
    other = array.copy()
    other.view(np.uint8)[rng.integers(other.nbytes)] ^= 1 << rng.integers(8)
    assert fingerprint(array) != fingerprint(other)
    assert fingerprint(array) != fingerprint(array[::-1].copy())


@pytest.fixture
def disk(tmp_path):
  with small_disk(tmp_path / 'disk') as folder:
    yield folder


@pytest.mark.parametrize('room', [8192, 20480])
def test_a_full_disk_is_one_line_and_spares_what_was_saved(disk, room):
  checkpoints = Checkpoints(disk / 'checkpoints')
  checkpoints.save(3, small(3), {'phase': 0})
  checkpoints.wait()
  (disk / 'filler').write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
  with pytest.raises(TlxError, match=r'could not save a checkpoint in .*the same command') as error:
    checkpoints.save(6, small(6), {'phase': 0})
    checkpoints.wait()
  assert '\n' not in str(error.value)
  checkpoints.close()
  (disk / 'filler').unlink()
  found, warnings = restored(disk / 'checkpoints')
  assert found.step == 3 and fingerprint(found.state) == fingerprint(small(3)) and not warnings


def test_a_disk_that_is_full_when_the_hashes_are_written(two, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(files, 'seal', full)
  with contextlib.closing(Checkpoints(two)) as checkpoints:
    checkpoints.save(9, small(9), {'phase': 0})
    with pytest.raises(TlxError, match=r'could not save a checkpoint in .*No space left on device'):
      checkpoints.wait()
  assert restored(two)[0].step == 9  # which is whole: only its hashes are missing


def test_python_says_nothing_of_what_orbax_gave_up():
  """Coroutines are left over at the end of a program whose disk is full: those of a save, and no others."""
  program = """
from tlx.train import checkpoint_errors

orbax = "async def get_metadatas(): ...\\ndef nested():\\n  async def gather(): ...\\n  return gather()"
exec(compile(orbax, '/site-packages/orbax/checkpoint/store.py', 'exec'))
async def others(): ...
checkpoint_errors.silence()
left = [nested(), get_metadatas(), others()]
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert re.findall(r"coroutine '(.*?)' was never awaited", done.stderr) == ['others'], done.stderr
