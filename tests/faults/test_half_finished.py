"""Whatever a kill, a full disk or a lost file leaves of a run, the same command ends it: same bits, a whole report."""

import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from test_resume import numbers

import tlx
from tlx.actions import ownership
from tlx.report import folder

SAVE = importlib.import_module('tlx.pretrained.save')  # `tlx.pretrained.save` is its function
SINGLE = {'epochs': 1, 'batch_size': 6, 'image_size': 32, 'save_every': 2, 'log_every': 2, 'dropout': 0.2}


@pytest.fixture(scope='module')
def finetune(tiny_model, tiny_images):
  options = {'strategy': 'full', 'augment': 'light', **SINGLE}
  return lambda out, data=tiny_images: tlx.finetune(
    tlx.Experiment(tiny_model, f'folder:{data}', out=str(out), **options), quiet=True
  )


@pytest.fixture(scope='module')
def whole(finetune, tmp_path_factory):
  out = tmp_path_factory.mktemp('whole') / 'run'
  finetune(out)
  return out


def assert_mended(out, whole):
  assert (out / 'model/model.safetensors').read_bytes() == (whole / 'model/model.safetensors').read_bytes()
  assert numbers(out) == numbers(whole)
  assert '<html' in (out / 'report.html').read_text() and 'cannot be read' not in (out / 'report.html').read_text()
  left = [path.name for path in out.rglob('*') if path.name.endswith('.tmp') or path.name == 'run.lock']
  assert not left and {p.name for p in out.iterdir()} - {'damaged_checkpoints'} == {p.name for p in whole.iterdir()}


def unfinished(out):
  """As if killed before the last files: result.json comes last."""
  (out / 'result.json').unlink()
  return out


HARMS = {
  'no report': lambda out: (out / 'report.html').unlink(),
  'no model': lambda out: shutil.rmtree(out / 'model'),
  'no weights': lambda out: (out / 'model/model.safetensors').unlink(),
  'no result': unfinished,
  'no record': lambda out: (out / 'experiment.json').unlink(),
  'result {}': lambda out: (out / 'result.json').write_text('{}'),
  'result list': lambda out: (out / 'result.json').write_text('[1]'),
  'result cut': lambda out: (out / 'result.json').write_text('{"accuracy": 0.'),
  'record {}': lambda out: (out / 'experiment.json').write_text('{}'),
  'record list': lambda out: (out / 'experiment.json').write_text('[]'),
  'record cut': lambda out: (out / 'experiment.json').write_text('{"experiment": {"mod'),
  'odd checkpoints': lambda out: [
    (unfinished(out) if out.joinpath('result.json').exists() else out) and (out / 'checkpoints' / name).mkdir()
    for name in ('99999999999999999999', '007', '٣')
  ],
  'a file as checkpoint': lambda out: (unfinished(out) / 'checkpoints' / '900').touch(),
  'an empty checkpoint': lambda out: (unfinished(out) / 'checkpoints' / '900').mkdir(),
  'broken metrics': lambda out: (unfinished(out) / 'metrics.jsonl').open('ab').write(b'{"step": 99, "spl\nx\n{"st'),
  'temporary files': lambda out: [
    (out / name).write_bytes(b'x') for name in ('.result.json.0123abcd.tmp', 'model/.config.json.0123abcd.tmp')
  ]
  and unfinished(out),
}


OFTEN = ('no report', 'no model', 'record cut')


@pytest.mark.parametrize('harm', [h if h in OFTEN else pytest.param(h, marks=pytest.mark.full) for h in HARMS])
def test_the_same_command_mends(finetune, whole, tmp_path, harm, capsys):
  out = shutil.copytree(whole, tmp_path / 'run')
  HARMS[harm](out)
  finetune(out)
  assert_mended(out, whole)
  warnings = capsys.readouterr().err.splitlines()
  assert all(line.startswith('warning: ') for line in warnings)
  expected = {'no record': 1, 'record {}': 1, 'record list': 1, 'record cut': 1, 'odd checkpoints': 3}
  expected |= {'a file as checkpoint': 1, 'an empty checkpoint': 1}
  assert len(warnings) == expected.get(harm, 0), warnings


@pytest.mark.parametrize('content', ['{}', '[]', '{"ex', '{"experiment": {}, "data": {"class_names": 3}}'])
def test_readers_say_in_one_line_what_is_damaged(whole, tmp_path, content):
  from tlx.actions import runs

  out = shutil.copytree(whole, tmp_path / 'run')
  (out / 'experiment.json').write_text(content)
  for read in (runs.options, runs.task_of_run, lambda out: runs.data_of(out, None, 'validation')):
    with pytest.raises(tlx.TlxError, match=r'experiment\.json is (damaged|no JSON).*next: run its') as error:
      read(out)
    assert '\n' not in str(error.value)


def test_data_that_vanish_end_the_run(finetune, tiny_images, tmp_path, monkeypatch):
  from tlx.data import pipeline

  data = shutil.copytree(tiny_images, tmp_path / 'data')
  take = pipeline.Prefetch.after

  def vanish(self, running):
    shutil.rmtree(data, ignore_errors=True)
    return take(self, running)

  monkeypatch.setattr(pipeline.Prefetch, 'after', vanish)
  expected = f'{data}.*(is gone|cannot be read any more).*next: bring the data back'
  with pytest.raises(tlx.TlxError, match=expected) as error:
    finetune(tmp_path / 'run', data)
  assert '\n' not in str(error.value) and not (tmp_path / 'run/result.json').exists()
  monkeypatch.undo()
  shutil.copytree(tiny_images, data)
  finetune(tmp_path / 'run', data)
  assert folder.read_json(tmp_path / 'run/result.json')['count'] == 15


def test_the_second_of_two_starters_is_told_at_once(finetune, tmp_path, monkeypatch):
  from tlx.actions import finetune as action

  monkeypatch.setattr(action, 'prepare', lambda *_: pytest.fail('it has read the data first'))
  with ownership.owned(tmp_path / 'run', print):
    with pytest.raises(tlx.UsageError, match=rf'run is in use by process {os.getpid()} on .*; next: wait'):
      finetune(tmp_path / 'run')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == [ownership.LOCK]


OPERATIONS = 130  # of the run below; more than it has, so that the last ones find it complete


class Killer:
  """Starts the run again and again from one process that has imported everything (`kill_at.py`)."""

  def __init__(self, arguments, cache, folder):
    self.arguments, self.log = arguments, folder / 'log'
    told = environment() | {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    command = [sys.executable, str(Path(__file__).with_name('kill_at.py'))]
    self.process = subprocess.Popen(command, env=told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

  def run(self, out, kill=0):
    """The exit status; `said` then has the output and `operations` what the run did."""
    told = {'arguments': [*self.arguments, '--out', str(out)], 'folder': str(out), 'kill': kill, 'log': str(self.log)}
    self.process.stdin.write(json.dumps(told) + '\n')
    self.process.stdin.flush()
    status = int(self.process.stdout.readline())
    self.said = self.log.read_text()
    return status

  @property
  def operations(self):
    return Path(f'{self.log}.operations').read_text().splitlines()


@pytest.fixture(scope='module')
def killer(tiny_model, tiny_images, tmp_path_factory):
  options = [word for name, value in SINGLE.items() for word in (f'--{name.replace("_", "-")}', str(value))]
  arguments = ['finetune', '--model', tiny_model, '--data', f'folder:{tiny_images}', '--augment', 'light', *options]
  made = Killer(arguments, tmp_path_factory.mktemp('compiled'), tmp_path_factory.mktemp('log'))
  yield made
  made.process.stdin.close()
  made.process.wait()


@pytest.fixture(scope='module')
def undisturbed(killer, tmp_path_factory):
  out = tmp_path_factory.mktemp('undisturbed') / 'run'
  assert killer.run(out) == 0, killer.said
  assert 60 < len(killer.operations) < OPERATIONS
  assert 'rename /.result.json' in [each for each in killer.operations if 'rename' in each][-1]
  return out


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.xdist_group('killed')
@pytest.mark.parametrize('first', range(1, OPERATIONS, 8))
def test_kill_9_before_every_operation_on_a_file(killer, undisturbed, tmp_path, first):
  """lp_ft, two phases, a checkpoint every second step; eight operations a test."""
  for kill in range(first, min(first + 8, OPERATIONS)):
    out = tmp_path / f'run{kill}'
    status = killer.run(out, kill)
    assert status in (-signal.SIGKILL, 0), killer.said
    if status:
      assert killer.run(out) == 0, (kill, killer.said)
      assert 'warning' not in killer.said, (kill, killer.said)
    assert_mended(out, undisturbed)
    shutil.rmtree(out)


CONFIGS = [{'architecture': 'x', 'label_names': ['a', 'b']}, {'architecture': 'x', 'label_names': ['c', 'd']}]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:os.fork')
@pytest.mark.parametrize('processor', [{}, {'size': 8}])
def test_kill_9_before_every_operation_of_a_save_never_mixes_two_models(tmp_path, processor):
  from kill_at import counting
  from safetensors.numpy import load_file

  write = lambda folder, i: SAVE._write(folder, {'w': np.full(3, i, np.float32)}, CONFIGS[i], processor if i else {})
  seen = set()
  for kill in range(1, 40):
    out = tmp_path / str(kill)
    write(out, 0)
    child = os.fork()
    if not child:
      counted = []
      sys.addaudithook(counting(str(out), kill, counted))
      write(out, 1)
      os._exit(0)
    done = os.waitpid(child, 0)[1] == 0
    config = json.loads((out / 'config.json').read_text()) if (out / 'config.json').exists() else None
    state = int(load_file(out / 'model.safetensors')['w'][0]), config and CONFIGS.index(config)
    seen.add(state)
    assert state in {(0, 0), (0, None), (1, None), (1, 1)}
    write(out, 1)
    expected = {'config.json', 'model.safetensors'} | ({'preprocessor_config.json'} if processor else set())
    assert {path.name for path in out.iterdir()} == expected
    if done:
      break
  assert done and {(0, 0), (1, 1)} <= seen


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch, call):
  SAVE._write(tmp_path, {'w': np.zeros(3, np.float32)}, CONFIGS[0], {})
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, call, full)
  with pytest.raises(tlx.TlxError, match=r'model\.safetensors: cannot be written') as error:
    SAVE._write(tmp_path, {'w': np.ones(3, np.float32)}, CONFIGS[1], {})
  assert '.tmp' not in str(error.value)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
