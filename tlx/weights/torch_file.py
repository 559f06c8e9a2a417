"""Reads files of torch.save without PyTorch, and without running code in them (see `torch_pickle`).

The zip format (PyTorch 1.6 and later) has the entries NAME/data.pkl, NAME/data/KEY and NAME/byteorder, all stored
without compression. The older format has five pickles in a row (magic number, protocol, system, object, storage keys)
and then each storage, as an int64 count and the elements, little-endian.
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
DIRECTORY_BYTES = 8 << 20  # maximum directory of a zip file; enough for 100,000 entries
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model_state_dict', 'model')  # averaged weights first, as timm
PREFIXES = ('module.', '_orig_mod.')  # DistributedDataParallel and torch.compile add these
BROKEN = (ValueError, LookupError, TypeError, OverflowError, EOFError, MemoryError, RuntimeError, AssertionError,
          struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip

Records = Callable[[View], np.ndarray]  # returns all bytes of a tensor's storage, uint8


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the state dict of a torch checkpoint.

  The state dict is the file's own dictionary, or the first of WRAPPERS in it that holds tensors. Entries that are not
  tensors (epoch, arguments) are left out. A prefix of PREFIXES is removed if all names share it.

  Args:
    path: of the file.

  Returns:
    {name: array}; bfloat16 is ml_dtypes.bfloat16, and tied tensors share one array.

  Raises:
    TlxError: naming the file, if it is damaged, holds no tensors, or asks to run code.
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
      f'{path}: refused, because its pickle asks for {error}, which no file of weights needs; nothing was run. '
      'Use a .safetensors file, or save the state dict alone: torch.save(model.state_dict(), FILE)'
    ) from None
  except BROKEN as error:
    raise broken(path, 'a torch checkpoint', error) from None


def broken(path: pathlib.Path, kind: str, error: Exception) -> TlxError:
  """Makes the one-line error for a file that is damaged or of another kind."""
  reason = ' '.join(str(error).split())[:160].encode('ascii', 'backslashreplace').decode() or type(error).__name__
  return TlxError(f'{path}: not {kind}, or a damaged one ({reason}); download or copy it again')


class _Capped(io.FileIO):
  """A file that refuses to read more than DIRECTORY_BYTES at once.

  `zipfile` reads the central directory in one call, whatever size the file claims for it.
  """

  def read(self, size: int = -1) -> bytes:
    if size is not None and size > DIRECTORY_BYTES:
      raise zipfile.BadZipFile(f'its list of entries is larger than {DIRECTORY_BYTES >> 20} MiB')
    return super().read(size)


@contextlib.contextmanager
def open_zip(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """Opens a zip file. Raises ValueError for duplicate names, paths that point outside of it, and encryption."""
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
    raise ValueError(f'{len(roots)} entries are called data.pkl, and there must be one')
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
  """The bytes of an uncompressed entry, without a copy: uint8 [size]."""
  start = info.header_offset
  signature, method, name, extra = struct.unpack('<4s4xH16xHH', data[start : start + 30])
  if (signature, method, info.compress_type, info.compress_size) != (b'PK\x03\x04', 0, 0, info.file_size):
    raise ValueError(f'entry {info.filename!r:.60} is compressed, or its sizes disagree')
  raw = np.frombuffer(data, np.uint8, info.file_size, start + 30 + name + extra)
  if info.CRC not in (0, zlib.crc32(raw)):  # torch.serialization.set_crc32_options(False) writes 0
    raise ValueError(f'entry {info.filename!r:.60} has a wrong checksum')
  return raw


def _swap(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Turns big-endian numbers into little-endian ones; a complex number is a pair of numbers."""
  width = dtype.itemsize // (2 if dtype.kind == 'c' else 1)
  return raw.reshape(-1, width)[:, ::-1].reshape(-1)


def _load_legacy(path: pathlib.Path, data: mmap.mmap) -> tuple[Any, Records]:
  stream = io.BytesIO(data[:PICKLE_BYTES])
  machine = Machine()
  if machine.load(stream) != int.from_bytes(LEGACY_MAGIC[2:], 'little') or machine.load(stream) != PROTOCOL:
    raise ValueError('the magic number or the protocol differs')
  machine.load(stream)  # sizes of C types and byte order; storages are little-endian whatever this record says
  tree, keys = machine.load(stream), machine.load(stream)
  records, position = {}, stream.tell()
  for key in keys:
    dtype, total = machine.storages[key]
    if struct.unpack('<q', data[position : position + 8]) != (total,):
      raise ValueError(f'the size of storage {key!r:.40} contradicts its tensors')
    records[key] = np.frombuffer(data, np.uint8, total * dtype.itemsize, position + 8)
    position += 8 + total * dtype.itemsize
  return tree, lambda view: records[view.storage.key]


def _state_dict(tree: Any) -> dict[str, View]:
  """The tensors of the state dict by name, without a shared prefix."""
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
  """Copies views of the file into arrays of their own.

  Many tensors may view one storage, so it limits the sum of their sizes to four times the file.
  """
  allowed = 4 * file_bytes + (16 << 20)
  raw: dict[tuple[str, str], np.ndarray] = {}
  copies: dict[str, np.ndarray] = {}  # keyed by text, because a hostile file could make hashes of numbers collide
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
  """Copies the tensor to a contiguous array in the machine's byte order.

  Raises ValueError if it reaches outside of its storage.
  """
  storage, dtype = view.storage, view.dtype
  if raw.size != storage.total * storage.dtype.itemsize:
    raise ValueError(f'its storage takes {raw.size} bytes, not {storage.total} {storage.dtype}')
  if math.prod(view.shape) == 0:
    return np.empty(view.shape, dtype)
  raw = raw[storage.start * storage.dtype.itemsize :][: storage.count * storage.dtype.itemsize]
  last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides))
  if (last + 1) * dtype.itemsize > raw.size:
    raise ValueError('it reaches outside of its storage')
  # copies bytes and then views them as numbers, because a storage may be unaligned and a bool's byte may exceed 1
  start = raw[view.offset * dtype.itemsize :]
  strides = (*(stride * dtype.itemsize for stride in view.strides), 1)
  values = np.lib.stride_tricks.as_strided(start, (*view.shape, dtype.itemsize), strides).copy()
  values = values.reshape(-1).view(dtype if dtype != np.bool_ else np.uint8).reshape(view.shape)
  return values != 0 if dtype == np.bool_ else values
