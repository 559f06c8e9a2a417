"""Reads files of torch.save without PyTorch, and without running code in them (see `torch_pickle`).

The zip format (PyTorch 1.6 and later) has the entries NAME/data.pkl, NAME/data/KEY and NAME/byteorder, all stored
without compression. The older format has five pickles in a row (magic number, protocol, system, object, storage keys)
and then each storage, as an int64 count and the elements, little-endian.
"""

import io
import math
import mmap
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tlx.types import TlxError
from tlx.weights import torch_tree
from tlx.weights.contents import BROKEN, ZIP_MAGIC, Contents, open_zip, reading
from tlx.weights.torch_names import View
from tlx.weights.torch_pickle import PICKLE_BYTES, Machine, Unsafe

LEGACY_MAGIC = b'\x8a\x0a' + (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')
PROTOCOL = 1001
KIND = 'a torch checkpoint'
Records = Callable[[View], np.ndarray]  # returns all bytes of a tensor's storage, uint8


def open_torch(path: pathlib.Path) -> Contents:
  """Finds the tensors of a torch checkpoint, wherever they are in it.

  Args:
    path: of the file.

  Returns:
    The tensors, to be read later; bfloat16 is ml_dtypes.bfloat16, and tied tensors share one array.

  Raises:
    TlxError: naming the file, if it is damaged, holds no tensors, or asks to run code.
  """
  try:
    with reading(path, KIND), path.open('rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
      tree, records = (_load_zip if data[:4] == ZIP_MAGIC else _load_legacy)(path, data)
      views = torch_tree.tensors(tree)
    if not views:
      raise TlxError(f'{path}: a torch checkpoint without tensors; it holds {torch_tree.kinds(tree)}')
  except Unsafe as error:
    raise TlxError(
      f'{path}: refused, because its pickle asks for {error}, which no file of weights needs; nothing was run. '
      'Use a .safetensors file, or save the state dict alone: torch.save(model.state_dict(), FILE)'
    ) from None

  def read(chosen: Mapping[str, View]) -> dict[str, np.ndarray]:
    with reading(path, KIND):
      return _copy(chosen, records, len(data))

  return Contents(views, read, torch_tree.preferred(tree))


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
  if (signature, method, info.compress_type, info.compress_size) != (ZIP_MAGIC, 0, 0, info.file_size):
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


def _copy(views: Mapping[str, View], records: Records, file_bytes: int) -> dict[str, np.ndarray]:
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
