"""Runs that are killed, stopped, damaged or out of disk go on to the very bits of an uninterrupted run.

The signal comes from inside the process, while it asks for the batch of a chosen number, so that a loaded machine
kills at the same step; checkpoints are written in the background all the while.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment

from tlx.train.checkpoint import Checkpoints, fingerprint
from tlx.train.placement import Jit
from tlx.types import TlxError

TIMES = ('seconds', 'images_per_second', 'data_wait', 'compile_seconds')
STEPS, FIRST_PHASE = 23, 7  # 30 images, batches of 4, 3 epochs; lp_ft gives the probe 0.3 of them

# Sends a signal while the COUNT-th batch is fetched: steps up to COUNT - 1 of this process are under way or done.
DRIVER = """
import os, sys
from tlx import cli
from tlx.data.pipeline import Prefetch
take, left = Prefetch.__next__, [int(sys.argv[1])]
def counted(self):
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), int(sys.argv[2]))
  return take(self)
Prefetch.__next__ = counted
cli.main(sys.argv[3:])
"""


class Runs:
  """Starts one experiment in as many folders as asked for."""

  def __init__(self, model, images, cache):
    self.cache = {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    self.options = f'--model {model} --data folder:{images} --strategy lp_ft --epochs 3 --batch-size 4 --image-size 32'
    self.options += ' --save-every 3 --ema 0.9 --dropout 0.2 --augment light'

  def arguments(self, out, *more):
    return ['finetune', *self.options.split(), '--out', str(out), *map(str, more)]

  def run(self, out, *more, batch=0, signum=0, devices=1):
    command = [sys.executable, '-c', DRIVER, str(batch), str(int(signum)), *self.arguments(out, *more)]
    env = environment(devices) | self.cache
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


@pytest.fixture(scope='module')
def runs(tiny_model, tiny_images, tmp_path_factory):
  return Runs(tiny_model, tiny_images, tmp_path_factory.mktemp('compiled'))


@pytest.fixture(scope='module')
def whole(runs, tmp_path_factory):
  """The folder of the uninterrupted run."""
  out = tmp_path_factory.mktemp('whole') / 'run'
  done = runs.run(out)
  assert done.returncode == 0, done.stderr
  assert numbers(out)[0]['phases'] == ['head', 'everything']
  assert [json.loads(line)['step'] for line in lines(out) if '"head"' in line][-1] == FIRST_PHASE
  return out


def lines(out):
  return (out / 'metrics.jsonl').read_text().splitlines()


def numbers(out):
  """(result.json, metrics.jsonl) without what the clock decides."""
  result = json.loads((out / 'result.json').read_text())
  records = [json.loads(line) for line in lines(out)]
  return [{k: v for k, v in each.items() if k not in TIMES} for each in (result, *records)]


def saved(out):
  return sorted(int(path.name) for path in (out / 'checkpoints').iterdir() if path.name.isdigit())


def assert_same(out, whole):
  assert (out / 'model/model.safetensors').read_bytes() == (whole / 'model/model.safetensors').read_bytes()
  assert numbers(out) == numbers(whole)
  assert saved(out)[-1] == saved(whole)[-1] == STEPS
  here, there = (json.loads((x / f'checkpoints/{STEPS}/meta/metadata').read_text()) for x in (out, whole))
  assert len(there['fingerprint']) > 100  # parameters, statistics, moments and average, each with a checksum
  assert here == there


def assert_stopped(done, step):
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  (line,) = done.stderr.splitlines()
  assert f'step {step}' in line and 'same command' in line


def truncated(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
  data = bytearray(path.read_bytes())
  for i in range(len(data) // 4, len(data), max(1, len(data) // 16)):
    data[i] ^= 0xFF
  path.write_bytes(data)


EMPTIED = lambda path: path.write_bytes(b'')
DAMAGES = {'flipped': flipped, 'truncated': truncated, 'deleted': Path.unlink, 'emptied': EMPTIED}


def largest(folder, pattern='*'):
  return max((p for p in folder.rglob(pattern) if p.is_file()), key=lambda p: p.stat().st_size)


def test_kill_stop_and_damage_one_after_the_other(runs, whole, tmp_path):
  out = tmp_path / 'run'
  killed = runs.run(out, batch=6, signum=signal.SIGKILL)
  assert killed.returncode == -signal.SIGKILL
  assert saved(out) in ([], [3])
  # A checkpoint still on its way when the process died is made again, so the count of batches starts where it ended.
  start = (saved(out) or [0])[-1]
  assert_stopped(runs.run(out, batch=14 - start, signum=signal.SIGTERM), 14)
  assert saved(out)[-1] == 14 and all(json.loads(line)['step'] != 14 for line in lines(out))
  flipped(largest(out / 'checkpoints/14/state/d'))
  (out / 'checkpoints/15.orbax-checkpoint-tmp/state').mkdir(parents=True)
  last = runs.run(out)
  assert last.returncode == 0, last.stderr
  # Reads that orbax abandons in a damaged checkpoint complain on standard error when their event loop is gone.
  (warning,) = [line for line in last.stderr.splitlines() if line.startswith('warning: ')]
  assert warning.startswith('warning: checkpoint 14 is damaged')
  assert (out / 'damaged_checkpoints/14/state').is_dir()
  assert_same(out, whole)


def test_a_complete_run_says_so_and_another_experiment_is_refused(runs, whole):
  before = {path: path.read_bytes() for path in whole.rglob('*') if path.is_file()}
  again = runs.run(whole)
  assert again.returncode == 0 and 'is complete' in again.stdout and not again.stderr
  other = runs.run(whole, '--seed', 5, '--mixup', 0.3)
  (line,) = other.stderr.splitlines()
  assert other.returncode == 2 and 'seed 0 there, 5 here' in line and 'mixup None there, 0.3 here' in line
  assert 'dropout' not in line
  assert {path: path.read_bytes() for path in whole.rglob('*') if path.is_file()} == before


def test_a_loss_that_is_not_finite_names_the_step_and_leaves_sound_checkpoints(runs, tmp_path):
  out = tmp_path / 'run'
  done = runs.run(out, '--optimizer', 'sgd', '--lr', 1e30, '--clip-norm', 0, '--save-every', 1)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 1 and line.startswith('error: the loss is not a finite number since step ')
  step = int(line.split('since step ')[1].split()[0])
  assert not (out / 'result.json').exists()
  kept = saved(out)
  assert all(s < step for s in kept)
  assert f'checkpoint {kept[-1]} is whole' in line if kept else 'nothing was saved before' in line


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(6))
def test_kill_9_at_random_moments(runs, whole, tmp_path, seed):
  """From outside and timed by the log: even seeds in the first phase, odd ones in the second, until a run ends."""
  rng, out = random.Random(seed), tmp_path / 'run'
  step = rng.randint(1, FIRST_PHASE) if seed % 2 == 0 else rng.randint(FIRST_PHASE + 1, STEPS - 1)
  command = [sys.executable, '-m', 'tlx', *runs.arguments(out)]
  process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    while process.poll() is None and not reached(out, step):
      time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
  finally:
    process.kill()
    process.wait()
  assert process.returncode == -signal.SIGKILL and not (out / 'result.json').exists()
  done = runs.run(out)
  assert done.returncode == 0 and not done.stderr, done.stderr
  assert_same(out, whole)


def reached(out, step):
  log = out / 'metrics.jsonl'
  return log.exists() and any(json.loads(line)['step'] >= step for line in log.read_bytes().split(b'\n')[:-1])


@pytest.mark.slow
@pytest.mark.parametrize('batch', [2, 5, 8, 9, 12, STEPS + 1])
def test_stopping_anywhere_changes_nothing(runs, whole, tmp_path, batch):
  """The first step, the last of a phase (its next batch belongs to the next phase), an evaluation, the last of all."""
  out = tmp_path / 'run'
  done = runs.run(out, batch=batch, signum=signal.SIGTERM)
  if batch <= STEPS:
    assert done.returncode == 143 and len(done.stderr.splitlines()) == 1, done.stderr
    assert runs.run(out).returncode == 0
  assert_same(out, whole)


@pytest.fixture(scope='module')
def stopped(runs, tmp_path_factory):
  """A run stopped at step 12."""
  out = tmp_path_factory.mktemp('stopped') / 'run'
  assert_stopped(runs.run(out, batch=12, signum=signal.SIGTERM), 12)
  return out


@pytest.mark.slow
@pytest.mark.parametrize('more, devices', [((), 2), (('--compile', 'pmap'), 1), (('--compile', 'pmap'), 2)])
def test_a_run_goes_on_over_other_devices(runs, whole, stopped, tmp_path, more, devices):
  out = shutil.copytree(stopped, tmp_path / 'run')
  done = runs.run(out, *more, devices=devices)
  assert done.returncode == 0 and not done.stderr, done.stderr
  here, there = numbers(out), numbers(whole)
  assert [each.get('step') for each in here] == [each.get('step') for each in there]
  # Sums are taken in another order: close, not equal.
  np.testing.assert_allclose([x['loss'] for x in here], [x['loss'] for x in there], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('pattern', ['state/d/*', '*/_METADATA', 'meta/metadata', '*/manifest.ocdbt', '*/_sharding'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_no_damage_changes_the_result(runs, whole, stopped, tmp_path, damage, pattern):
  out = shutil.copytree(stopped, tmp_path / 'run')
  DAMAGES[damage](largest(out / 'checkpoints/12', pattern.split('/')[-1]))
  done = runs.run(out)
  assert done.returncode == 0, done.stderr
  assert all(line.startswith('warning: checkpoint 12 is damaged') for line in done.stderr.splitlines())
  assert_same(out, whole)


def small(step):
  state = {'w': jnp.arange(5000, dtype=jnp.float32) * step, 'n': {'step': jnp.asarray(step, jnp.int32)}}
  return Jit(tuple(jax.devices())).put_state(state)


def like(_):
  state = small(0)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def two(tmp_path):
  """A folder with checkpoints 3 and 6 in it."""
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  for step in (3, 6):
    checkpoints.save(step, small(step), {'phase': 0})
  checkpoints.wait()
  checkpoints.close()
  return tmp_path / 'checkpoints'


def files(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


@pytest.mark.parametrize('damage', DAMAGES)
def test_every_damaged_file_is_noticed_or_harmless(two, tmp_path, damage):
  for number, name in enumerate(files(two / '6')):
    if damage != 'deleted' and not (two / '6' / name).stat().st_size:
      continue
    folder, warnings = shutil.copytree(two, tmp_path / str(number) / 'checkpoints'), []
    DAMAGES[damage](folder / '6' / name)
    checkpoints = Checkpoints(folder, warn=warnings.append)
    restored = checkpoints.restore(like)
    checkpoints.close()
    assert fingerprint(restored.state) == fingerprint(small(restored.step)), name
    if restored.step == 3:
      assert (folder.parent / 'damaged_checkpoints/6').is_dir(), name
      assert not (folder / '6').exists(), name
      assert warnings and 'checkpoint 6 is damaged' in warnings[0] and '\n' not in warnings[0], name


def test_no_checkpoint_is_left(two):
  warnings = []
  for step in (3, 6):
    flipped(largest(two / str(step) / 'state'))
  checkpoints = Checkpoints(two, warn=warnings.append)
  assert checkpoints.restore(like) is None and len(warnings) == 2
  checkpoints.save(3, small(3), {'phase': 0})
  checkpoints.wait()
  assert fingerprint(checkpoints.restore(like).state) == fingerprint(small(3))
  assert sorted(p.name for p in (two.parent / 'damaged_checkpoints').iterdir()) == ['3', '6']


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
  """A disk of 1 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]
  made = os.name == 'posix' and subprocess.run(mount, capture_output=True)
  if not made or made.returncode:
    pytest.skip('needs the right to mount a tmpfs')
  yield folder
  subprocess.run(['umount', '-l', folder], check=True)


def test_a_full_disk_is_one_line_and_spares_what_was_saved(disk):
  checkpoints = Checkpoints(disk / 'checkpoints')
  checkpoints.save(3, small(3), {'phase': 0})
  checkpoints.wait()
  (disk / 'filler').write_bytes(bytes(max(0, shutil.disk_usage(disk).free - 8192)))
  with pytest.raises(TlxError, match=r'could not save a checkpoint in .*the same command') as error:
    checkpoints.save(6, small(6), {'phase': 0})
    checkpoints.wait()
  assert '\n' not in str(error.value)
  checkpoints.close()
  (disk / 'filler').unlink()
  again = Checkpoints(disk / 'checkpoints')
  restored = again.restore(like)
  again.close()
  assert restored.step == 3 and fingerprint(restored.state) == fingerprint(small(3))


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_there_is_space(runs, whole, stopped, tmp_path, disk):
  subprocess.run(['mount', '-o', 'remount,size=8m', disk], check=True)
  out = shutil.copytree(stopped, disk / 'run')
  (disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free - 65536))
  done = runs.run(out)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 1 and line.startswith('error: ') and str(out) in line and 'disk' in line
  (disk / 'filler').unlink()
  assert runs.run(out).returncode == 0
  assert_same(out, whole)
