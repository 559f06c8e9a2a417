"""A platform in JAX_PLATFORMS that this machine lacks."""

import subprocess
import sys

import pytest
from conftest import environment


@pytest.mark.parametrize('platforms, problem', [('cuda', 'no such device'), ('nowhere', "'nowhere'")])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, platforms, problem):
  env = environment() | {'JAX_PLATFORMS': platforms, 'CUDA_VISIBLE_DEVICES': ''}
  command = [sys.executable, '-m', 'tlx', 'cost', '--model', 'squeezenet_test']
  done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'error: JAX_PLATFORMS={platforms}: ')
  assert problem in line and '; there are: cpu; next: unset' in line
