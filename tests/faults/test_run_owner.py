"""One owner for a run folder: two starters, killed owners, owners on other machines, and locks cut short."""

import os
import signal
import socket
import subprocess
import sys
import time

import filelock
import pytest
from conftest import environment

from tlx.actions import ownership
from tlx.types import TlxError, UsageError

HOLD = """
import sys, time
from pathlib import Path
from tlx.actions import ownership
with ownership.owned(Path(sys.argv[1]), print):
  print('mine', flush=True)
  time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
  """A process that owns the folder, and the folder."""
  out = tmp_path / 'runs' / 'two'
  command = [sys.executable, '-c', HOLD, str(out)]
  process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'mine\n'
  yield process, out
  process.kill()
  process.wait()


def take(out):
  """Owns the folder for a moment; returns what was said."""
  said = []
  with ownership.owned(out, said.append) as keep:
    keep()
    assert (out / ownership.LOCK).exists()
  return said


def marker(lock, host=None, pid=None, age=0.0):
  """Writes the lock of another process, renewed so many seconds ago."""
  lock.parent.mkdir(parents=True, exist_ok=True)
  made = filelock.SoftFileLease(lock, lease_duration=ownership.LEASE)
  made.acquire()
  text = lock.read_text()
  made.release()
  for name, value in {'host': host, 'pid': pid}.items():
    text = ''.join(f'{name}={value}\n' if value and line.startswith(name) else line for line in text.splitlines(True))
  lock.write_text(text)
  os.utime(lock, (time.time() - age,) * 2)


def test_the_second_starter_is_told_and_a_killed_owner_is_followed_at_once(holder):
  process, out = holder
  for attempt in (take, lambda out: ownership.check(out, print)):
    with pytest.raises(UsageError, match=rf'two is in use by process {process.pid} on .*; next: wait') as error:
      attempt(out)
    assert '\n' not in str(error.value) and socket.gethostname() in str(error.value)
  process.send_signal(signal.SIGKILL)
  process.wait()
  ownership.check(out, print)
  assert take(out) == [] and not (out / ownership.LOCK).exists()


def test_one_process_cannot_own_a_folder_twice(tmp_path):
  with ownership.owned(tmp_path, print), pytest.raises(UsageError, match=f'process {os.getpid()}'):
    take(tmp_path)
  assert take(tmp_path) == []


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
  take(tmp_path / 'a' / 'b')
  assert list(tmp_path.iterdir()) == []
  with ownership.owned(tmp_path / 'a', print):
    (tmp_path / 'a' / 'file').touch()
  assert (tmp_path / 'a' / 'file').exists()


@pytest.mark.parametrize('content', ['', 'filelock/2\npi', '\x00' * 40])
def test_a_lock_that_was_cut_short(tmp_path, content, monkeypatch):
  (tmp_path / ownership.LOCK).write_text(content)
  assert take(tmp_path) == []


def test_another_machine_is_believed_until_it_is_silent(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, 'LEASE', 1.5)
  lock = tmp_path / ownership.LOCK
  marker(lock, host='node17')
  with pytest.raises(UsageError, match=r'on node17; next: .*if that machine is gone, repeat the command in'):
    take(tmp_path)
  marker(lock, host='node17', age=10)
  (said,) = take(tmp_path)
  assert 'node17' in said and 'not heard of' in said


@pytest.mark.parametrize('host', [None, 'node17'])
def test_a_file_system_that_cannot_swap_names(tmp_path, monkeypatch, host):
  """As NFS: filelock then leaves a dead owner's lock alone."""
  monkeypatch.setattr(ownership, 'LEASE', 1.5)
  monkeypatch.setattr(filelock.SoftFileLock, '_take_over', lambda *_: None)
  dead = subprocess.Popen([sys.executable, '-c', ''])
  dead.wait()
  marker(tmp_path / ownership.LOCK, host=host, pid=dead.pid, age=10)
  assert len(take(tmp_path)) == (host is not None)


def test_an_owner_that_lost_its_lock_stops(tmp_path, monkeypatch):
  monkeypatch.setattr(ownership, 'LEASE', 0.3)
  with ownership.owned(tmp_path, print) as keep:
    keep()
    (tmp_path / ownership.LOCK).unlink()
    end = time.monotonic() + 10
    with pytest.raises(TlxError, match=r'run\.lock was lost .*next: see that only one does'):
      while time.monotonic() < end:
        keep()
        time.sleep(0.05)


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(TlxError, match=r'cannot write .*choose another with --out'):
    take(tmp_path / 'file' / 'run')
