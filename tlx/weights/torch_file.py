"""Reads what torch.save wrote, without PyTorch and without running anything (see torch_pickle).

Zip layout (PyTorch 1.6 and later): NAME/data.pkl, NAME/data/KEY, NAME/byteorder, every entry stored, not compressed.
Older layout: five pickles in a row (magic number, protocol, system, object, storage keys), then each storage as an
int64 count and its elements, little-endian.
"""

import contextlib
import io
import math
import mmap
import pathlib
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tlx.types import TlxError
from tlx.weights.torch_pickle import PICKLE_BYTES, Machine, Unsafe, View

LEGACY_MAGIC = b'\x8a\x0a' + (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')
PROTOCOL = 1001
DIRECTORY_BYTES = 8 << 20  # of a zip file: 100,000 entries
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model_state_dict', 'model')  # averaged weights first, as timm
PREFIXES = ('module.', '_orig_mod.')  # of DistributedDataParallel and torch.compile
BROKEN = (ValueError, LookupError, TypeError, OverflowError, EOFError, MemoryError, RuntimeError, AssertionError,
          struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip

Records = Callable[[View], np.ndarray]  # all bytes of the record that a tensor lies in, uint8


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """{name: array} of the state dict in a checkpoint, bfloat16 as ml_dtypes.bfloat16; tied tensors share one array.

  The state dict is the file's own dictionary, or the first of WRAPPERS in it that holds tensors. What is no tensor
  (epoch, arguments) is left out, and so is a prefix of PREFIXES that all names share.
  Raises: TlxError, naming the file, for a file that is broken, holds no tensors, or asks for anything to be run.
  """
  path = pathlib.Path(path)
  try:
    with warnings.catch_warnings(action='ignore'), path.open('rb') as file:  # pickletools warns of odd escapes in names
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      load = _load_zip if data[:4] == b'PK\x03\x04' else _load_legacy
      tree, records = load(path, data)
    return _copy(_state_dict(tree), records, len(data))
  except Unsafe as error:
    raise TlxError(
      f'{path}: refused, its pickle asks for {error}, which no file of weights needs; nothing was run. '
      'Ask for .safetensors, or save the state dict alone: torch.save(model.state_dict(), FILE)'
    ) from None
  except BROKEN as error:
    raise broken(path, 'a torch checkpoint', error) from None


def broken(path: pathlib.Path, kind: str, error: Exception) -> TlxError:
  """The one line for a file that does not hold what it should."""
  reason = ' '.join(str(error).split())[:160].encode('ascii', 'backslashreplace').decode() or type(error).__name__
  return TlxError(f'{path}: not {kind}, or a damaged one ({reason}); download or copy it again')


class _Capped(io.FileIO):
  """A file that reads no giant at once: zipfile reads the central directory in one go, whatever size it claims."""

  def read(self, size: int = -1) -> bytes:
    if size is not None and size > DIRECTORY_BYTES:
      raise zipfile.BadZipFile(f'its list of entries is larger than {DIRECTORY_BYTES >> 20} MiB')
    return super().read(size)


@contextlib.contextmanager
def open_zip(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """A zip file without duplicate names, names that point elsewhere, or passwords; ValueError otherwise."""
  with _Capped(path) as file, zipfile.ZipFile(file) as archive:
    names = archive.namelist()
    if len(set(names)) != len(names):
      raise ValueError('an entry appears twice')
    for info in archive.infolist():
      if info.filename.startswith('/') or '..' in info.filename.split('/') or info.flag_bits & 1:
        raise ValueError(f'entry {info.filename!r:.60} is encrypted or points outside of the file')
    yield archive


def _load_zip(path: pathlib.Path, data: mmap.mmap) -> tuple[Any, Records]:
  with open_zip(path) as archive:
    infos = {info.filename: info for info in archive.infolist()}
  roots = [name.removesuffix('data.pkl') for name in infos if name.endswith('/data.pkl') and name.count('/') == 1]
  if len(roots) != 1:
    raise ValueError(f'{len(roots)} entries are called data.pkl, not one')
  root = roots[0]
  order = _entry(data, infos[root + 'byteorder']).tobytes() if root + 'byteorder' in infos else b'little'
  if order not in (b'little', b'big'):
    raise ValueError(f'byte order {order!r:.20}')
  if infos[root + 'data.pkl'].file_size > PICKLE_BYTES:
    raise ValueError(f'its pickle is larger than {PICKLE_BYTES >> 20} MiB')
  tree = Machine().load(io.BytesIO(_entry(data, infos[root + 'data.pkl']).tobytes()))

  def record(view: View) -> np.ndarray:
    raw = _entry(data, infos[f'{root}data/{view.storage.key}'])
    return raw if order == b'little' else _swap(raw, view.dtype)

  return tree, record


def _entry(data: mmap.mmap, info: zipfile.ZipInfo) -> np.ndarray:
  """The bytes of a stored entry, in place, uint8 [size]."""
  start = info.header_offset
  signature, method, name, extra = struct.unpack('<4s4xH16xHH', data[start : start + 30])
  if (signature, method, info.compress_type, info.compress_size) != (b'PK\x03\x04', 0, 0, info.file_size):
    raise ValueError(f'entry {info.filename!r:.60} is compressed, or its sizes disagree')
  raw = np.frombuffer(data, np.uint8, info.file_size, start + 30 + name + extra)
  if info.CRC not in (0, zlib.crc32(raw)):  # 0: torch.serialization.set_crc32_options(False)
    raise ValueError(f'entry {info.filename!r:.60} has a wrong checksum')
  return raw


def _swap(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Big-endian numbers to little-endian ones; a complex number is two."""
  width = dtype.itemsize // (2 if dtype.kind == 'c' else 1)
  return raw.reshape(-1, width)[:, ::-1].reshape(-1)


def _load_legacy(path: pathlib.Path, data: mmap.mmap) -> tuple[Any, Records]:
  stream = io.BytesIO(data[:PICKLE_BYTES])
  machine = Machine()
  if machine.load(stream) != int.from_bytes(LEGACY_MAGIC[2:], 'little') or machine.load(stream) != PROTOCOL:
    raise ValueError('the magic number or protocol is another')
  machine.load(stream)  # sizes of C types; storages are little-endian whatever it says
  tree, keys = machine.load(stream), machine.load(stream)
  records, position = {}, stream.tell()
  for key in keys:
    dtype, total = machine.storages[key]
    if struct.unpack('<q', data[position : position + 8]) != (total,):
      raise ValueError(f'storage {key!r:.40} has another size than its tensors say')
    records[key] = np.frombuffer(data, np.uint8, total * dtype.itemsize, position + 8)
    position += 8 + total * dtype.itemsize
  return tree, lambda view: records[view.storage.key]


def _state_dict(tree: Any) -> dict[str, View]:
  """The tensors of the state dict by name, without the shared prefix."""
  if type(tree) is not dict:
    raise ValueError('it holds no dictionary of tensors')
  for candidate in [*(tree.get(name) for name in WRAPPERS), tree]:
    views = {}
    if type(candidate) is dict:
      views = {name: view for name, view in candidate.items() if type(name) is str and isinstance(view, View)}
    if views:
      break
  else:
    raise ValueError('no tensors in it, nor under ' + ', '.join(WRAPPERS) + f'; it holds {sorted(map(str, tree))[:5]}')
  for prefix in PREFIXES:
    if all(name.startswith(prefix) for name in views):
      views = {name.removeprefix(prefix): view for name, view in views.items()}
  return views


def _copy(views: dict[str, View], records: Records, file_bytes: int) -> dict[str, np.ndarray]:
  """Arrays of their own from views into the file; the sum is capped, for one storage can be seen by many tensors."""
  allowed = 4 * file_bytes + (16 << 20)
  raw: dict[tuple[str, str], np.ndarray] = {}
  copies: dict[str, np.ndarray] = {}  # by text: hashes of numbers can be made to collide
  arrays = {}
  for name, view in views.items():
    text, record = repr(view), (view.storage.key, view.dtype.name)
    if text not in copies:
      allowed -= math.prod(view.shape) * view.dtype.itemsize
      if allowed < 0:
        raise ValueError(f'its tensors would take more than four times the {file_bytes:,} bytes of the file')
      try:
        if record not in raw:
          raw[record] = records(view)
        copies[text] = _array(view, raw[record])
      except BROKEN as error:
        raise ValueError(f'tensor {name!r:.80}: {error}') from None
    arrays[name] = copies[text]
  return arrays


def _array(view: View, raw: np.ndarray) -> np.ndarray:
  """The tensor, contiguous and native; ValueError if it reaches outside of its storage."""
  storage, dtype = view.storage, view.dtype
  if raw.size != storage.total * storage.dtype.itemsize:
    raise ValueError(f'its storage takes {raw.size} bytes, not {storage.total} {storage.dtype}')
  if math.prod(view.shape) == 0:
    return np.empty(view.shape, dtype)
  raw = raw[storage.start * storage.dtype.itemsize :][: storage.count * storage.dtype.itemsize]
  last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides))
  if (last + 1) * dtype.itemsize > raw.size:
    raise ValueError('it reaches outside of its storage')
  # bytes first, numbers after the copy: a storage need not be aligned, and a byte of a bool may be neither 0 nor 1
  start = raw[view.offset * dtype.itemsize :]
  strides = (*(stride * dtype.itemsize for stride in view.strides), 1)
  values = np.lib.stride_tricks.as_strided(start, (*view.shape, dtype.itemsize), strides).copy()
  values = values.reshape(-1).view(dtype if dtype != np.bool_ else np.uint8).reshape(view.shape)
  return values != 0 if dtype == np.bool_ else values
