"""What happens to files: bytes that change, go missing or were never written, and a disk that fills up."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest


def truncated(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
  data = bytearray(path.read_bytes())
  for i in range(len(data) // 4, len(data), max(1, len(data) // 16)):
    data[i] ^= 0xFF
  path.write_bytes(data)


def emptied(path):
  path.write_bytes(b'')


DAMAGES = {'flipped': flipped, 'truncated': truncated, 'deleted': Path.unlink, 'emptied': emptied}


def largest(folder, pattern='*'):
  return max((p for p in folder.rglob(pattern) if p.is_file()), key=lambda p: p.stat().st_size)


@contextlib.contextmanager
def small_disk(folder):
  """Mounts a disk of 1 MB there; skips the test where that is not allowed."""
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]
  made = os.name == 'posix' and subprocess.run(mount, capture_output=True)
  if not made or made.returncode:
    pytest.skip('needs the right to mount a tmpfs')
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', folder], check=True)
