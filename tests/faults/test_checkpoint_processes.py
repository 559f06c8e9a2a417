"""Checkpoints in processes of their own: two that have to agree, and what reaches standard error."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from harm import small_disk


@pytest.fixture
def disk(tmp_path):
  with small_disk(tmp_path / 'disk') as folder:
    yield folder


# What orbax gives up goes on failing behind its back: hundreds of tracebacks, unless they are kept away.
NOISE = """
import shutil, subprocess, sys, time
from pathlib import Path
import jax
from harm import DAMAGES
from test_checkpoint import Checkpoints, TlxError, files, like, names, restored, save_two

def read(root):
  save_two(root / 'whole')
  for damage in DAMAGES:
    for number, name in enumerate(names(root / 'whole/6')):
      folder = shutil.copytree(root / 'whole', root / damage / str(number) / 'checkpoints')
      (folder / '6' / files.SEAL).unlink()
      if name.name != files.SEAL:
        DAMAGES[damage](folder / '6' / name)
      restored(folder)

def write(root):
  subprocess.run(['mount', '-o', 'remount,size=4m', root], check=True)
  state = {f'p{i}': jax.random.normal(jax.random.key(i), (3000,)) for i in range(400)}
  for room in (64, 1500, 2500):
    checkpoints = Checkpoints(root / 'checkpoints')
    (root / 'filler').write_bytes(bytes(shutil.disk_usage(root).free - room * 1024))
    try:
      checkpoints.save(room, state, {})
      start = time.monotonic()
      while time.monotonic() < start + 1.5:
        sum(range(1000))  # a busy main thread, as in training, gives the writers time to fail
      checkpoints.wait()
    except TlxError as error:
      print(error)
    checkpoints.close()
    (root / 'filler').unlink()

{'read': read, 'write': write}[sys.argv[1]](Path(sys.argv[2]))
"""


def run(code, *arguments):
  env = environment()
  env['PYTHONPATH'] += os.pathsep + os.pathsep.join(map(str, Path(__file__).parents[:2]))
  command = [sys.executable, '-c', code, *map(str, arguments)]
  return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_nothing_is_printed_of_reads_that_fail(tmp_path):
  assert run(NOISE, 'read', tmp_path).communicate(timeout=120) == ('', '')


def test_nothing_is_printed_of_writes_that_fail(disk):
  out, err = run(NOISE, 'write', disk).communicate(timeout=120)
  assert [line.count('No space left on device') for line in out.splitlines()] == [1, 1, 1] and not err, (out, err)


# Two processes, as on two machines with one file system; only the second has trouble, and both must go on alike.
PROCESS = """
import shutil, sys
from pathlib import Path
import jax
rank, port, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f'localhost:{port}', 2, rank)
from jax.experimental.multihost_utils import sync_global_devices
from harm import flipped, largest
from test_checkpoint import files, checkpoint, fingerprint, like, restored, save_two, TlxError

def case(name, harm=lambda folder: None, like=like, mine=fingerprint):
  folder = root / name / 'checkpoints'
  if rank == 0:
    shutil.copytree(root / 'whole/checkpoints', folder)
    harm(folder / '6')
  sync_global_devices(name)
  checkpoint.fingerprint = fingerprint if rank == 0 else mine
  try:
    found, warnings = restored(folder, like)
    print(name, found.step, fingerprint(found.state) == found.meta['fingerprint'], len(warnings))
  except TlxError as error:
    print(name, str(error).replace(str(folder), '')[:60])
  sync_global_devices(name)

def unsealed(folder):
  (folder / files.SEAL).unlink()
  flipped(largest(folder / 'state'))

def other(meta):
  state = like(meta)
  return state | ({'w': jax.ShapeDtypeStruct((7,), 'float32', sharding=state['w'].sharding)} if rank else {})

def no_memory(state):
  raise MemoryError('no memory')

save_two(root / 'whole/checkpoints')
sync_global_devices('saved')
case('sound')
case('damaged', lambda folder: flipped(largest(folder / 'state')))
case('unsealed', unsealed)
case('misfit', like=other)
case('memory', mine=no_memory)
case('bits', mine=lambda state: fingerprint(state) if state['n']['step'] == 3 else [])
"""


def test_two_processes_agree(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [run(PROCESS, rank, port, tmp_path) for rank in (0, 1)]
  try:
    said = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said
  lines = [[line for line in out.splitlines() if not line.startswith('[Gloo]')] for out, _ in said]
  assert lines[0] == lines[1] == [
    'sound 6 True 0',
    'damaged 3 True 1',
    'unsealed 3 True 1',
    'misfit checkpoint 6 in  holds another state than this program makes',
    'memory could not read checkpoint 6 in , which stays as it is: no me',
    'bits 3 True 1',
  ]  # fmt: skip
