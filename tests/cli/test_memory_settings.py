"""The command line starts anew with glibc told to keep its memory: once, on CPUs, where nobody told it otherwise."""

import os
import subprocess
import sys

import pytest
from conftest import environment

from tlx import __main__
from tlx.__main__ import HUGE, KEPT


@pytest.mark.parametrize(
  'kernel, before, device, after',
  [
    ('always [madvise] never', None, None, f'{HUGE}:{KEPT}'),
    ('always [madvise] never', 'glibc.rtld.nns=4', 'ptmx', f'glibc.rtld.nns=4:{HUGE}:{KEPT}'),
    ('[always] madvise never', None, None, KEPT),
    (None, None, None, KEPT),
    ('always [madvise] never', 'glibc.malloc.check=0', None, None),
    ('always [madvise] never', None, 'nvidia0', None),
    ('always [madvise] never', None, 'vfio/0', None),
  ],
)
def test_the_process_starts_anew(monkeypatch, tmp_path, kernel, before, device, after):
  started = []
  monkeypatch.setattr(os, 'execv', lambda *command: started.append((os.environ['GLIBC_TUNABLES'], *command)))
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setattr(__main__, 'KERNEL', tmp_path / 'enabled')
  monkeypatch.setattr(__main__, 'DEVICES', tmp_path / 'dev')
  monkeypatch.setenv('GLIBC_TUNABLES', before or '')
  if kernel:
    (tmp_path / 'enabled').write_text(kernel)
  if device:
    (tmp_path / 'dev' / device).parent.mkdir(parents=True)
    (tmp_path / 'dev' / device).touch()
  __main__.keep_memory()
  assert started == ([(after, sys.executable, [sys.executable, *sys.orig_argv[1:]])] if after else [])
  __main__.keep_memory()
  assert len(started) == bool(after)  # the process that it started does not start another


def test_elsewhere_nothing_happens(monkeypatch):
  monkeypatch.setattr(os, 'execv', None)
  monkeypatch.setattr(sys, 'platform', 'darwin')
  __main__.keep_memory()


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc')
def test_glibc_knows_the_settings():
  env = {**environment(), 'GLIBC_TUNABLES': f'{HUGE}:{KEPT}'}
  code = 'import ctypes, gc; a = bytearray(2**28); del a; print(open("/proc/self/status").read())'
  status = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True)
  kept = int(next(line for line in status.stdout.splitlines() if line.startswith('VmRSS')).split()[1])
  assert kept > 2**18 and not status.stderr  # kB: what was given back is still this process's
