"""Runs that are killed, stopped, damaged or out of disk go on to the very bits of an uninterrupted run.

The signal comes from inside the process, while it asks for the batch of a chosen number, so that a loaded machine
kills at the same step; checkpoints are written in the background all the while.
"""

import copy
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import environment
from harm import DAMAGES, flipped, largest, small_disk

from tlx import files

TIMES = ('seconds', 'images_per_second', 'data_wait', 'compile_seconds', 'prefix_seconds')
STEPS, FIRST_PHASE = 23, 7  # 30 images, batches of 4, 3 epochs; lp_ft gives the probe 0.3 of them

# Sends a signal while the COUNT-th batch is fetched: steps up to COUNT - 1 of this process are under way or done.
# COUNT -N: before the N-th evaluation.
DRIVER = """
import os, sys
from tlx.cli import main
from tlx.data.pipeline import Prefetch
from tlx.evaluate import exact
count = int(sys.argv[1])
left = [abs(count)]
def counting(function):
  def counted(*arguments, **options):
    left[0] -= 1
    if not left[0]:
      os.kill(os.getpid(), int(sys.argv[2]))
    return function(*arguments, **options)
  return counted
if count < 0:
  exact.evaluate = counting(exact.evaluate)
else:
  Prefetch.after = counting(Prefetch.after)
main.main(sys.argv[3:])
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


def assert_same(out, whole, leaves=100):
  assert (out / 'model/model.safetensors').read_bytes() == (whole / 'model/model.safetensors').read_bytes()
  assert numbers(out) == numbers(whole)
  assert saved(out)[-1] == saved(whole)[-1] == STEPS
  here, there = (json.loads((x / f'checkpoints/{STEPS}/meta/metadata').read_text()) for x in (out, whole))
  assert len(there['fingerprint']) > leaves  # parameters, statistics, moments and average, each with a checksum
  # A stop at the last step leaves its evaluation to the run that goes on.
  assert {**here, 'evaluation_due': False} == there


def assert_stopped(done, step):
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  (line,) = done.stderr.splitlines()
  assert f'step {step}' in line and 'same command' in line


@pytest.mark.parametrize(
  ('options', 'kept', 'found'),
  [
    pytest.param('none --cache memory', '', False, marks=pytest.mark.full),
    pytest.param('none --cache disk', 'off', True, marks=pytest.mark.full),
    pytest.param('none --cache disk', '', True, marks=pytest.mark.slow),
    pytest.param('light --cache-views 3', '', True, marks=pytest.mark.full),
    pytest.param('light --cache-views 3', 'off', False, marks=pytest.mark.full),
  ],
)
def test_a_killed_probe_on_kept_features(runs, tmp_path, options, kept, found):
  """kept: the folder of features that outlive a run; those that do not lie in the run's own folder, or in memory."""
  probe = copy.copy(runs)
  probe.options = runs.options.replace('lp_ft', 'linear_probe').replace('light', options)
  place, here = {'TLX_FEATURE_CACHE': kept or str(tmp_path / 'features')}, {'TLX_FEATURE_CACHE': 'off'}
  whole, out = tmp_path / 'whole', tmp_path / 'run'
  probe.cache = runs.cache | here
  done = probe.run(whole)
  assert done.returncode == 0 and 'do not run again' in done.stdout, done.stderr
  probe.cache = runs.cache | place
  assert probe.run(out, batch=11, signum=signal.SIGKILL).returncode == -signal.SIGKILL
  assert (out / 'features').exists() == ('disk' in options and kept == 'off')
  done = probe.run(out)
  assert done.returncode == 0 and ('found from an earlier run' in done.stdout) == found, done.stderr
  assert_same(out, whole, leaves=70)  # no moments of the backbone
  assert not (out / 'features').exists()


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
  (warning,) = last.stderr.splitlines()
  assert warning.startswith('warning: checkpoint 14 is damaged (state/')
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
def test_an_evaluation_that_a_stop_put_off_is_logged_once(runs, whole, tmp_path):
  out = tmp_path / 'run'
  assert_stopped(runs.run(out, batch=8, signum=signal.SIGTERM), 8)  # an evaluation was due
  assert runs.run(out, batch=2, signum=signal.SIGKILL).returncode == -signal.SIGKILL  # it was made, and no checkpoint
  last = runs.run(out)
  assert last.returncode == 0, last.stderr
  assert_same(out, whole)


@pytest.mark.full
@pytest.mark.parametrize('seed', range(6))
def test_kill_9_at_random_moments(runs, whole, tmp_path, seed):
  """From outside and timed by the log: even seeds in the first phase, odd ones in the second, until a run ends."""
  rng, out = random.Random(seed), tmp_path / 'run'
  step = rng.randint(1, FIRST_PHASE) if seed % 2 == 0 else rng.randint(FIRST_PHASE + 1, STEPS - 1)
  command = [sys.executable, '-m', 'tlx', *runs.arguments(out)]
  process = subprocess.Popen(
    command, env=environment() | runs.cache, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
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
@pytest.mark.timeout(900)
def test_stopping_again_and_again_changes_nothing(runs, whole, tmp_path):
  """After the first step, in a phase, at its end, where an evaluation is due (8, 16), one step on, after the last."""
  out, step = tmp_path / 'run', 0
  for stop in (1, 4, FIRST_PHASE, 8, 9, 16, STEPS):
    assert_stopped(runs.run(out, batch=stop - step, signum=signal.SIGTERM), stop)
    assert saved(out)[-1] == stop
    step = stop
  assert runs.run(out).returncode == 0
  assert_same(out, whole)


@pytest.mark.full
@pytest.mark.parametrize('evaluation', [1, 3, 4])
def test_stopping_in_an_evaluation_changes_nothing(runs, whole, tmp_path, evaluation):
  """In the first one; after the last step, when no step is left to see the signal; after the loop."""
  out = tmp_path / 'run'
  done = runs.run(out, batch=-evaluation, signum=signal.SIGTERM)
  if evaluation < 4:
    assert_stopped(done, 9 if evaluation == 1 else STEPS)
  else:
    assert done.returncode == -signal.SIGTERM and saved(out)[-1] == STEPS and not (out / 'result.json').exists()
  assert runs.run(out).returncode == 0
  assert_same(out, whole)


@pytest.fixture(scope='module')
def stopped(runs, tmp_path_factory):
  """A run stopped at step 12."""
  out = tmp_path_factory.mktemp('stopped') / 'run'
  assert_stopped(runs.run(out, batch=12, signum=signal.SIGTERM), 12)
  return out


@pytest.mark.full
@pytest.mark.parametrize('more, devices', [((), 2), (('--compile', 'pmap'), 1), (('--compile', 'pmap'), 2)])
def test_a_run_goes_on_over_other_devices(runs, whole, stopped, tmp_path, more, devices):
  out = shutil.copytree(stopped, tmp_path / 'run')
  done = runs.run(out, *more, devices=devices)
  assert done.returncode == 0 and not done.stderr, done.stderr
  here, there = numbers(out), numbers(whole)
  assert [each.get('step') for each in here] == [each.get('step') for each in there]
  # Sums are taken in another order: close, not equal.
  np.testing.assert_allclose([x['loss'] for x in here], [x['loss'] for x in there], rtol=1e-3)


@pytest.mark.full
@pytest.mark.parametrize('damage', DAMAGES)
def test_no_damage_changes_the_result(runs, whole, stopped, tmp_path, damage):
  """Every kind of file, one kind of damage each; `test_checkpoint.py` has all pairs."""
  out = shutil.copytree(stopped, tmp_path / 'run')
  patterns = {'flipped': 'manifest.ocdbt', 'truncated': '_METADATA', 'deleted': 'metadata', 'emptied': files.SEAL}
  DAMAGES[damage](largest(out / 'checkpoints/12', patterns[damage]))
  done = runs.run(out)
  assert done.returncode == 0, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('warning: checkpoint 12 is damaged')
  assert_same(out, whole)


@pytest.fixture
def disk(tmp_path):
  with small_disk(tmp_path / 'disk') as folder:
    yield folder


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_there_is_space(runs, whole, stopped, tmp_path, disk):
  subprocess.run(['mount', '-o', 'remount,size=8m', disk], check=True)
  out = shutil.copytree(stopped, disk / 'run')
  (disk / 'filler').write_bytes(bytes(shutil.disk_usage(disk).free - 65536))
  done = runs.run(out)
  assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
  assert done.stderr.startswith('error: ') and str(out) in done.stderr and 'No space left on device' in done.stderr
  (disk / 'filler').unlink()
  assert runs.run(out).returncode == 0
  assert_same(out, whole)
