"""One run in two processes, two devices each, as on two hosts: the numbers of one process with four devices."""

import json
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment
from safetensors.numpy import load_file

DRIVER = """
import os, sys
from tlx import processes
from tlx.cli import main
from tlx.data.pipeline import Prefetch
processes.start()
take, left = Prefetch.after, [int(sys.argv[1])]
def counted(self, running):
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), int(sys.argv[2]))
  return take(self, running)
Prefetch.after = counted
main.main(sys.argv[3:])
"""


@pytest.fixture(scope='module')
def command(tiny_model, tiny_images):
  options = f'finetune --model {tiny_model} --data folder:{tiny_images} --strategy lp_ft --epochs 2 --batch-size 8'
  return [*options.split(), '--image-size', '32', '--save-every', '3', '--log-every', '2', '--dropout', '0.2']


def two(command, out, *, batch=0, signum=0):
  """Two processes that share a run; the second one sends itself `signum` before its batch of that number."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  started = []
  for index in range(2):
    told = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': str(index)}
    arguments = [str(batch * index), str(int(signum)), *command, '--out', str(out)]
    started.append(
      subprocess.Popen([sys.executable, '-c', DRIVER, *arguments], env=environment(2) | told, text=True,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    )  # fmt: skip
  return [(process, *process.communicate(timeout=280)) for process in started]


def results(out):
  return json.loads((out / 'result.json').read_text()), load_file(out / 'model' / 'model.safetensors')


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_and_stop_together(command, tmp_path):
  alone = subprocess.run(
    [sys.executable, '-m', 'tlx', *command, '--out', str(tmp_path / 'one')],
    env=environment(4), capture_output=True, text=True, timeout=280,
  )  # fmt: skip
  assert alone.returncode == 0, alone.stderr
  stopped = two(command, tmp_path / 'two', batch=4, signum=signal.SIGTERM)
  assert [process.returncode for process, *_ in stopped] == [128 + signal.SIGTERM] * 2, stopped
  done = two(command, tmp_path / 'two')
  assert [process.returncode for process, *_ in done] == [0, 0], done
  # What JAX's transport prints, one line of which two threads may tear in two.
  theirs = lambda line: '[Gloo]' in line or 'peer ranks' in line or not line.strip()
  spoken = [[line for line in out.splitlines() if not theirs(line)] for _, out, _ in done]
  assert any('resumed after step' in line for line in spoken[0]) and not spoken[1]
  (one, model), (both, same) = results(tmp_path / 'one'), results(tmp_path / 'two')
  assert both['count'] == one['count'] == 15
  for name in ('accuracy', 'loss', 'macro_f1'):
    assert both[name] == pytest.approx(one[name], abs=1e-4), name
  assert model.keys() == same.keys()
  for name, tensor in model.items():
    np.testing.assert_allclose(same[name], tensor, atol=1e-4 * max(1, np.abs(tensor).max()), err_msg=name)


@pytest.mark.slow
def test_each_process_keeps_its_features_and_all_compute_where_one_lacks_them(command, tmp_path, monkeypatch):
  monkeypatch.setenv('TLX_FEATURE_CACHE', str(tmp_path / 'features'))
  probe = [*' '.join(command).replace('lp_ft', 'linear_probe').split(), '--augment', 'light', '--cache-views', '2']
  made = []
  for name in ('first', 'second'):
    done = two(probe, tmp_path / name)
    assert [process.returncode for process, *_ in done] == [0, 0], done
    made.append((tmp_path / name / 'model/model.safetensors').read_bytes())
    kept = sorted((tmp_path / 'features').iterdir())
    assert len(kept) == 4  # two splits, two processes
    shutil.rmtree(kept[0])
  assert made[0] == made[1]
