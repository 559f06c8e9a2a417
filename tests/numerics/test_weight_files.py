"""safetensors and npz in and out, shards, full disks, and stem kernels for other numbers of channels."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tlx.types import TlxError
from tlx.weights import input_channels, read_tensors, write_safetensors
from tlx.weights.read import SAFETENSORS_DTYPES
from tlx.weights.torch_names import DTYPES

RNG = np.random.default_rng(0)
TENSORS = {
  'b.weight': RNG.normal(size=(3, 4)).astype(np.float32), 'a.bias': np.arange(4, dtype=np.int64),
  'scalar': np.float32(2.5), 'empty': np.empty((0, 3), np.float16), 'transposed': np.arange(6.0).reshape(2, 3).T,
}  # fmt: skip


def assert_equal(read, wanted):
  assert list(read) == list(wanted)
  for name, array in wanted.items():
    assert read[name].dtype == np.asarray(array).dtype and read[name].shape == np.shape(array)
    np.testing.assert_array_equal(read[name], array)


def test_round_trip_of_every_type(tmp_path):
  values = np.array([0, 1, 1, 0, 1])
  typed = {code: values.astype(DTYPES[name]) for code, name in SAFETENSORS_DTYPES.items()}
  write_safetensors(tmp_path / 'a.safetensors', TENSORS | typed, {'format': 'pt'})
  assert_equal(read_tensors(tmp_path / 'a.safetensors'), TENSORS | typed)
  assert os.listdir(tmp_path) == ['a.safetensors']


def test_the_library_agrees(tmp_path):
  library, safetensors = pytest.importorskip('safetensors.numpy'), pytest.importorskip('safetensors')
  write_safetensors(tmp_path / 'mine', TENSORS, {'format': 'pt'})
  theirs = library.load_file(tmp_path / 'mine')
  assert_equal({name: theirs[name] for name in TENSORS}, TENSORS)
  with safetensors.safe_open(tmp_path / 'mine', 'np') as file:
    assert file.metadata() == {'format': 'pt'}
  contiguous = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in TENSORS.items()}
  library.save_file(contiguous, tmp_path / 'theirs')
  read = read_tensors(tmp_path / 'theirs')
  assert_equal({name: read[name] for name in TENSORS}, TENSORS)


def test_npz(tmp_path):
  tensors = TENSORS | {'half': np.ones(3, ml_dtypes.bfloat16)}
  np.savez(tmp_path / 'plain.npz', **tensors)
  np.savez_compressed(tmp_path / 'small.npz', **tensors, big=np.ones(3, '>f4'))
  assert_equal(read_tensors(tmp_path / 'plain.npz'), tensors)
  assert_equal(read_tensors(tmp_path / 'small.npz'), tensors | {'big': np.ones(3, np.float32)})
  np.savez(tmp_path / 'object.npz', a=np.array([{}], object))
  with pytest.raises(TlxError, match=r'object\.npz: not an npz file'):
    read_tensors(tmp_path / 'object.npz')


def test_folders_and_shards(tmp_path):
  names = list(TENSORS)
  places = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(names)}
  for file in set(places.values()):
    write_safetensors(tmp_path / file, {name: TENSORS[name] for name in names if places[name] == file})
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  read = read_tensors(tmp_path)
  assert_equal({name: read[name] for name in names}, TENSORS)
  index.write_text(json.dumps({'weight_map': places | {'lost': places['scalar']}}))
  with pytest.raises(TlxError, match='lost'):
    read_tensors(tmp_path)
  index.write_text(json.dumps({'weight_map': {'a': '../../etc/passwd'}}))
  with pytest.raises(TlxError, match='other folders'):
    read_tensors(tmp_path)
  index.write_text(json.dumps({'weight_map': {'a': 'gone.safetensors'}}))
  with pytest.raises(TlxError, match='1 of 1 shards are missing'):
    read_tensors(tmp_path)
  index.unlink()
  with pytest.raises(TlxError, match='several files'):
    read_tensors(tmp_path)


def header(entries, size: int) -> bytes:
  text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
  return len(text).to_bytes(8, 'little') + text + bytes(size)


def entry(shape=(2,), offsets=(0, 8), dtype='F32') -> dict:
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)}


BROKEN = {
  'short': header({'a': entry()}, 7), 'long': header({'a': entry()}, 9), 'type': header({'a': entry(dtype='F4')}, 8),
  'shape': header({'a': entry((3,))}, 8), 'negative': header({'a': entry((-1, -2))}, 8),
  'overlap': header({'a': entry(), 'b': entry()}, 8), 'backwards': header({'a': entry(offsets=(8, 0))}, 8),
  'twice': header(b'{"a":1,"a":1}', 0), 'list': header({'a': []}, 0), 'json': header(b'{' * 100_000, 0),
  'header': (2**60).to_bytes(8, 'little') + b'{}', 'huge': header({'a': entry((2**62, 2**62), (0, 8))}, 8),
  'empty': b'', 'pointer': b'version https://git-lfs.github.com/spec/v1\n',
  'page': b'<!DOCTYPE html><html>', 'text': b'hello',
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_broken_files(tmp_path, name):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(BROKEN[name])
  with pytest.raises(TlxError) as caught:
    read_tensors(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('method', ['ZIP_STORED', 'ZIP_DEFLATED', 'ZIP_BZIP2', 'ZIP_LZMA'])
def test_damaged_compression_is_one_line(tmp_path, method):
  path = tmp_path / 'a.npz'
  with zipfile.ZipFile(path, 'w', getattr(zipfile, method)) as archive, archive.open('a.npy', 'w') as file:
    np.lib.format.write_array(file, RNG.normal(size=300))
  raw = path.read_bytes()
  assert read_tensors(path)['a'].shape == (300,)
  for at in range(36, len(raw), 40):
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :])
    with contextlib.suppress(TlxError):
      read_tensors(path)
  path.write_bytes(raw[:300] + bytes([raw[300] ^ 0x55]) + raw[301:])
  with pytest.raises(TlxError) as caught:
    read_tensors(path)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_an_array_that_declares_too_much_takes_no_memory(tmp_path):
  path = tmp_path / 'a.npz'
  with zipfile.ZipFile(path, 'w') as archive, archive.open('a.npy', 'w') as file:
    np.lib.format.write_array_header_1_0(file, {'descr': '<f8', 'fortran_order': False, 'shape': (2**40,)})
  with pytest.raises(TlxError, match=r"array 'a.npy' has shape \(1099511627776,\) and 128 bytes"):
    read_tensors(path)


OTHERS = {
  'gzip': (b'\x1f\x8b\x08', 'compressed with gzip'), 'tflite': (b'\x1c\0\0\0TFL3', 'TensorFlow Lite'),
  'hdf5': (b'\x89HDF\r\n', 'HDF5'), 'tar': (b'sys_info'.ljust(257, b'\0') + b'ustar', 'tar archive'),
  'pickle': (b'\x80\x04K\x01.', 'a pickle that torch.save did not write'),
}  # fmt: skip


@pytest.mark.parametrize('name', OTHERS)
def test_files_of_other_kinds_are_named(tmp_path, name):
  raw, kind = OTHERS[name]
  (tmp_path / 'w.pth').write_bytes(raw)
  with pytest.raises(TlxError, match=kind):
    read_tensors(tmp_path / 'w.pth')


def test_missing(tmp_path):
  with pytest.raises(TlxError, match='No such file'):
    read_tensors(tmp_path / 'gone.pth')
  with pytest.raises(TlxError, match='no weights'):
    read_tensors(tmp_path)


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'w.pth')
  for path in (tmp_path / 'w.pth', '/dev/zero'):
    with pytest.raises(TlxError, match='a pipe or device'):
      read_tensors(path)


def test_a_name_that_is_not_unicode_comes_back(tmp_path):
  tensors = {'\ud800\x1b': np.zeros(2), 'ä': np.ones(2)}
  write_safetensors(tmp_path / 'a', tensors)
  assert_equal(read_tensors(tmp_path / 'a'), tensors)
  with pytest.raises(TlxError, match=r'tensor \\ud800\\x1b is <U1'):
    write_safetensors(tmp_path / 'a', {'\ud800\x1b': np.array('x')})


def test_what_cannot_be_written(tmp_path):
  with pytest.raises(TlxError, match='tensor a is <U1'):
    write_safetensors(tmp_path / 'a', {'a': np.array('x')})
  with pytest.raises(TlxError, match='choose a folder that exists'):
    write_safetensors(tmp_path / 'no' / 'a', TENSORS)


FULL = """
import resource, sys, numpy as np
from tlx.types import TlxError
from tlx.weights import write_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
  write_safetensors(sys.argv[1], {'a': np.zeros(1 << 20)})
except TlxError as error:
  print(error)
"""


def test_the_system_refuses_more_bytes(tmp_path):
  path = tmp_path / 'model.safetensors'
  write_safetensors(path, TENSORS)
  before = path.read_bytes()
  done = subprocess.run([sys.executable, '-c', FULL, path], capture_output=True, text=True, check=True)
  assert str(path) in done.stdout and 'free some space' in done.stdout and 'untouched' in done.stdout
  assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_full_disk_at_the_last_moment(tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(TlxError, match=r'No space left on device .*nothing was left behind.*MiB are needed'):
    write_safetensors(tmp_path / 'model.safetensors', TENSORS)
  assert os.listdir(tmp_path) == []


def test_input_channels():
  kernel = RNG.normal(size=(3, 3, 3, 8)).astype(np.float32)
  assert input_channels(kernel, 3) is kernel
  np.testing.assert_allclose(input_channels(kernel, 1)[:, :, 0], kernel.sum(2), rtol=1e-6, atol=1e-6)
  five = input_channels(kernel, 5)
  np.testing.assert_allclose(five, kernel[:, :, [0, 1, 2, 0, 1]] * 0.6, rtol=1e-6)
  with pytest.raises(TlxError, match='4 input channels'):
    input_channels(np.zeros((3, 3, 4, 8)), 2)
  with pytest.raises(TlxError, match='0 channels'):
    input_channels(kernel, 0)


@pytest.mark.parity
@pytest.mark.parametrize('inputs, channels', [(3, 1), (3, 2), (3, 3), (3, 4), (3, 7), (12, 1), (12, 3), (1, 1)])
@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_input_channels_like_timm(inputs, channels, dtype):
  torch = pytest.importorskip('torch')
  try:
    from timm import models as timm
  except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit the torch
    pytest.skip(f'timm cannot be imported: {error}')
  kernel = RNG.normal(size=(5, 7, inputs, 4)).astype(dtype)
  theirs = timm.adapt_input_conv(channels, torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
  mine = input_channels(kernel, channels)
  assert mine.dtype == kernel.dtype
  np.testing.assert_allclose(
    mine, theirs.numpy().transpose(2, 3, 1, 0), rtol=1e-6 if dtype == 'float32' else 1e-3, atol=1e-6
  )
