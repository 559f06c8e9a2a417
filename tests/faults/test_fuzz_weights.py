"""Thousands of damaged and hostile files of weights: nothing runs, and each is read or refused in one line."""

import os
import pickle
import random
import resource
import sys
import time
import zipfile

import numpy as np
import pytest
import torch_builder as tb

from tlx import catalog, pretrained
from tlx.pretrained import choose
from tlx.types import TlxError
from tlx.weights import open_tensors, rules, write_safetensors

FILES = 250  # of each kind
SECONDS, KIB = 10, 1 << 20
RUNS = {'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen', 'socket.connect', 'pickle.find_class'}
seen: list[str] = []  # what ran while a file was read
sys.addaudithook(lambda event, _: seen.append(event) if event in RUNS else None)

VALUES = np.arange(12, dtype=np.float32)
VARIANT = catalog.variant('resnet_test')
TABLES, _ = rules.tables(VARIANT.family.LAYOUTS, VARIANT.config)


def leaf(shape=(12,), strides=(1,)) -> bytes:
  return tb.tensor(tb.storage('0', 12), shape, strides)


def checkpoint() -> bytes:
  """The opcodes of a training checkpoint with the names of a model."""
  names = [rule.source for rule in TABLES['timm'] if rule.target]
  weights = tb.dictionary({f'module.{name}': leaf((3, 4), (4, 1)) for name in names})
  args = tb.call(tb.named('argparse', 'Namespace')) + tb.dictionary({'lr': tb.number(3)}) + b'b'
  return tb.dictionary({'state_dict': weights, 'args': args, 'deque': tb.named('collections', 'deque') + b')R(NNe'})


def torch_zip(path, rng):
  tb.write_zip(path, checkpoint(), {'0': VALUES.tobytes()})


def torch_legacy(path, rng):
  tb.write_legacy(path, checkpoint(), {'0': (12, VALUES.tobytes())})


def safetensors(path, rng):
  write_safetensors(path, {'a': VALUES, 'b.c': VALUES.reshape(3, 4).astype(np.float16)}, {'format': 'pt'})


def npz(path, rng):
  method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
  with zipfile.ZipFile(path, 'w', method) as archive:
    for name in 'abc':
      with archive.open(f'{name}.npy', 'w') as file:
        np.lib.format.write_array(file, rng.choice([VALUES, VALUES.reshape(3, 4), np.float16(2.0)]))


def tflite(path, rng):
  path.write_bytes(b'\x1c\0\0\0TFL3' + rng.randbytes(300))


class Attack:
  def __init__(self, rng: random.Random, path):
    self.made = rng.choice([(os.system, (f'touch {path}',)), (open, (path, 'w')), (exec, (f'open({path!r}, "w")',)),
                            (os.mkdir, (path,)), (eval, (f'open({path!r}, "w")',))])  # fmt: skip

  def __reduce__(self):
    return self.made


def attack(path, rng):
  """A real exploit in a checkpoint, at some place and with some protocol."""
  exploit = Attack(rng, str(path.with_name('canary')))
  tree = rng.choice([exploit, {'w': exploit}, [exploit], {'state_dict': {'w': VALUES, 'x': [exploit]}}])
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps(tree, rng.randint(0, pickle.HIGHEST_PROTOCOL)))
    archive.writestr('archive/data/0', VALUES.tobytes())


PARTS = (
  *(bytes([code]) for code in range(256)), tb.text('a'), tb.number(7), leaf(), b'q\0', b'h\0',
  tb.named('torch', 'Size'), tb.named('collections', 'OrderedDict'), tb.named('os', 'system'), tb.named('any', 'Class'),
  b')\x81', b')R', b'}b',
)  # fmt: skip


def program(path, rng):
  """Any opcodes in any order."""
  body = b'(' + b''.join(rng.choices(PARTS, k=rng.randint(1, 60)))
  tb.write_zip(path, rng.choice([b'', tb.text('w') + leaf()]).join([b'}(', body]) + b'u', {'0': VALUES.tobytes()})


def flip(raw: bytearray, rng: random.Random) -> None:
  for _ in range(rng.choice([1, 1, 2, 8, 64])):
    raw[rng.randrange(len(raw))] = rng.randrange(256)


def cut(raw: bytearray, rng: random.Random) -> None:
  del raw[rng.randrange(len(raw)) :]


def swap(raw: bytearray, rng: random.Random) -> None:
  first, second, size = rng.randrange(len(raw)), rng.randrange(len(raw)), rng.randint(1, 64)
  raw[first : first + size], raw[second : second + size] = raw[second : second + size], raw[first : first + size]


def lie(raw: bytearray, rng: random.Random) -> None:
  """A declared length that is wrong."""
  at, width = rng.randrange(len(raw)), rng.choice([2, 4, 8])
  raw[at : at + width] = rng.choice([0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 2), 1000]).to_bytes(width, 'little')


def repeat(raw: bytearray, rng: random.Random) -> None:
  at, size = rng.randrange(len(raw)), rng.randint(1, 200)
  raw[at:at] = raw[at : at + size] * rng.randint(1, 20)


MAKERS = (torch_zip, torch_legacy, safetensors, npz, tflite, attack, program)
DAMAGES = (flip, cut, swap, lie, repeat)


def read(path, like) -> None:
  """Reads all tensors, and chooses those of a model, as `tlx.load` does."""
  contents = open_tensors(path)
  assert all(isinstance(x, np.ndarray) for x in contents.read(contents.tensors).values())
  choose.choose(choose.File(str(path), '', 'resnet_test', contents), TABLES, lambda layout: like)


def test_the_hook_sees_what_runs():
  os.system('true')
  assert 'os.system' in seen


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('maker', MAKERS, ids=lambda maker: maker.__name__)
def test_fuzz(tmp_path, maker):
  rng, like = random.Random(maker.__name__), pretrained.abstract(pretrained.build(VARIANT, 0))
  path, canary = tmp_path / 'file', tmp_path / 'canary'
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for index in range(FILES):
    maker(path, rng)
    raw = bytearray(path.read_bytes())
    for _ in range(rng.choice([0, 1, 1, 2])):
      if raw:
        rng.choice(DAMAGES)(raw, rng)
    path.write_bytes(raw)
    seen.clear()
    start = time.process_time()
    try:
      read(path, like)
    except TlxError as error:
      text = str(error)
      assert str(path) in text and '\n' not in text and '\x1b' not in text and len(text) < 1000, (index, text)
    assert time.process_time() - start < SECONDS, index
    assert not seen and not canary.exists(), index
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KIB
