"""Reads files of tensors as {name: array}: safetensors, npz and torch checkpoints.

It tells the formats apart by content, not by extension. It compares the sizes that a file declares with the file's own
size before it allocates memory, and it executes no pickle.
"""

import json
import math
import mmap
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from tlx import words
from tlx.types import TlxError
from tlx.weights.contents import BROKEN, ZIP_MAGIC, Contents, broken, open_zip, reading
from tlx.weights.torch_file import LEGACY_MAGIC, open_torch
from tlx.weights.torch_names import DTYPES

HEADER_BYTES = 32 << 20  # maximum header of a safetensors file; enough for 200,000 tensors
NPZ_GROWTH = 100  # maximum ratio of arrays to file; compression does not shrink weights a hundredfold
SAFETENSORS_DTYPES = {
  'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'I64': 'int64', 'I32': 'int32',
  'I16': 'int16', 'I8': 'int8', 'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16', 'U8': 'uint8', 'BOOL': 'bool',
  'C64': 'complex64', 'F8_E4M3': 'float8_e4m3fn', 'F8_E5M2': 'float8_e5m2',
}  # fmt: skip
WEIGHT_NAMES = ('model.safetensors', 'pytorch_model.bin')  # in order of preference, alone or with .index.json
SUFFIXES = ('.safetensors', '.npz', '.pth', '.pt', '.bin', '.ckpt')


KINDS = (  # (bytes, where in the file, what it is)
  (b'version https://git-lfs', 0, 'only a git-lfs pointer; run `git lfs pull` to get the weights'),
  (b'\x1f\x8b', 0, 'compressed with gzip; unpack it first'),
  (b'BZh', 0, 'compressed with bzip2; unpack it first'),
  (b'\xfd7zXZ', 0, 'compressed with xz; unpack it first'),
  (b'ustar', 257, 'a tar archive; unpack it, or save it again with PyTorch if PyTorch 0.1 wrote it'),
  (b'\x89HDF', 0, 'an HDF5 file of Keras; save its weights as .safetensors or .npz'),
  (b'TFL3', 4, 'a TensorFlow Lite file; save its constants, not quantised, as .npz under their names'),
  (b'\x80', 0, 'a pickle that torch.save did not write; save its tensors as .safetensors or .npz'),
)  # fmt: skip


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all tensors of a file, or of the weights in a folder.

  Args:
    path: a .safetensors, .npz or torch file (see `torch_file.open_torch`), or a folder with the weights in one file or
      in shards.

  Returns:
    {name: array}. Arrays are contiguous, in the machine's byte order, and independent of the file; bfloat16 is
    ml_dtypes.bfloat16. The names in dictionaries of a torch file begin with the dictionary's: 'state_dict.fc.bias'.

  Raises:
    TlxError: one line that names the file, if it cannot be read.
  """
  contents = open_tensors(path)
  return contents.read(contents.tensors)


def open_tensors(path: str | pathlib.Path) -> Contents:
  """Finds the tensors that `read_tensors` reads. Arguments and errors are the same."""
  path = pathlib.Path(path)
  try:
    if not path.is_dir():
      return _open_file(path)
    files, expected = _weight_files(path)
    if len(files) == 1 and not expected:
      return _open_file(files[0])
    tensors: dict[str, np.ndarray] = {}
    for file in files:
      contents = _open_file(file)
      tensors |= contents.read(contents.tensors)
  except OSError as error:
    raise TlxError(f'{path}: {error.strerror or error}') from None
  if missing := sorted(expected - tensors.keys()):
    raise TlxError(f'{path}: the index names {len(missing)} tensors that no shard holds, such as {missing[:3]}')
  return _of_arrays(tensors)


def _of_arrays(tensors: Mapping[str, np.ndarray]) -> Contents:
  return Contents(tensors, dict)


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files in a folder that together hold its weights.

  Raises:
    TlxError: if the folder has no weights, or has several files to choose from.
  """
  return _weight_files(folder)[0]


def _weight_files(folder: pathlib.Path) -> tuple[list[pathlib.Path], set[str]]:
  """The files, and the names of the tensors that an index lists."""
  for name in WEIGHT_NAMES:
    if (index := folder / f'{name}.index.json').is_file():
      return _shards(index)
    if (folder / name).is_file():
      return [folder / name], set()
  found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
  if len(found) == 1:
    return found, set()
  names = words.shown(', '.join(file.name for file in found))
  what = f'several files of weights ({names}): name one' if found else 'no weights'
  raise TlxError(f'{folder}: {what}; looked for {", ".join(WEIGHT_NAMES)} and *{", *".join(SUFFIXES)}')


def _shards(index: pathlib.Path) -> tuple[list[pathlib.Path], set[str]]:
  try:
    places = json.loads(index.read_text('utf-8'))['weight_map']
    names = sorted(set(places.values()))
    if not names or any(pathlib.PurePath(name).name != name for name in names):
      raise ValueError('it names no shards, or shards in other folders')
  except BROKEN as error:
    raise broken(index, 'an index of shards', error) from None
  if missing := [name for name in names if not (index.parent / name).is_file()]:
    lost = words.shown(', '.join(missing[:5]))
    raise TlxError(f'{index.parent}: {len(missing)} of {len(names)} shards are missing: {lost}')
  return [index.parent / name for name in names], set(places)


def _open_file(path: pathlib.Path) -> Contents:
  if path.exists() and not path.is_file():
    raise TlxError(f'{path}: a pipe or device, not a file of weights')
  with path.open('rb') as file:
    head = file.read(512)
  if head[:4] == ZIP_MAGIC:
    return _of_arrays(_read_npz(path)) if _is_npz(path) else open_torch(path)
  if LEGACY_MAGIC in head[:32]:  # it follows PROTO, and from protocol 4 on also FRAME
    return open_torch(path)
  if head[8:9] == b'{':
    return _of_arrays(_read_safetensors(path))
  what = 'an empty file' if not head else 'not a safetensors, npz or torch file'
  if head.lstrip()[:5].lower() in (b'<!doc', b'<html'):
    what = 'a web page, not weights; its address may need a login'
  what = next((kind for magic, at, kind in KINDS if head[at:].startswith(magic)), what)
  raise TlxError(f'{path}: {what} (it starts with {head[:8]!r})')


def _is_npz(path: pathlib.Path) -> bool:
  with reading(path, 'a zip file of weights'), open_zip(path) as archive:
    return any(name.endswith('.npy') for name in archive.namelist())


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  with reading(path, 'an npz file'), open_zip(path) as archive:
    infos = archive.infolist()
    if sum(info.file_size for info in infos) > NPZ_GROWTH * path.stat().st_size + (16 << 20):
      raise ValueError(f'its arrays would take more than {NPZ_GROWTH} times the size of the file')
    return {info.filename.removesuffix('.npy'): _read_npy(archive, info) for info in infos}


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # 3.0 is for structured types
      raise ValueError(f'array {info.filename!r:.80} has format {version}')
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:  # before memory is taken for it
      raise ValueError(f'array {info.filename!r:.80} has shape {shape!r:.60} and {info.file_size} bytes')
  with archive.open(info) as file:
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):  # the end, where the checksum is compared
      raise ValueError(f'array {info.filename!r:.80} is longer than its shape')
  if array.dtype == 'V2':  # NumPy writes bfloat16 as V2
    array = array.view(ml_dtypes.bfloat16)
  if array.dtype.name not in DTYPES:
    raise ValueError(f'array {info.filename!r:.80} is {array.dtype}, not numbers')
  return np.ascontiguousarray(array).reshape(array.shape).astype(array.dtype.newbyteorder('='), copy=False)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  with reading(path, 'a safetensors file'):
    with path.open('rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(data[:8], 'little')
    if start > min(len(data), HEADER_BYTES):
      raise ValueError('its header does not fit')
    header = json.loads(data[8:start].decode('utf-8'), object_pairs_hook=_unique)
    header.pop('__metadata__', None)
    _check_tiling([entry['data_offsets'] for entry in header.values()], len(data) - start)
    return {name: _tensor(name, entry, data, start) for name, entry in header.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(names := dict(pairs)) != len(pairs):
    raise ValueError('a name appears twice')
  return names


def _check_tiling(offsets: list[Any], size: int) -> None:
  """Checks that the tensors cover the file without a gap or an overlap, as the format demands."""
  position = 0
  for begin, end in sorted(offsets):
    if type(begin) is not int or begin != position or end < begin:
      raise ValueError('its tensors overlap or leave gaps')
    position = end
  if position != size:
    raise ValueError(f'its tensors take {position:,} bytes, the file has {size:,}')


def _tensor(name: str, entry: dict[str, Any], data: mmap.mmap, start: int) -> np.ndarray:
  shape, (begin, end) = entry['shape'], entry['data_offsets']
  if entry['dtype'] not in SAFETENSORS_DTYPES:
    raise ValueError(f'tensor {name!r:.80} has type {entry["dtype"]!r:.20}')
  dtype = DTYPES[SAFETENSORS_DTYPES[entry['dtype']]]
  if any(type(size) is not int or size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != end - begin:
    raise ValueError(f'tensor {name!r:.80} has shape {shape!r:.60} and {end - begin} bytes of {dtype}')
  raw = np.frombuffer(data, dtype if dtype != np.bool_ else np.uint8, math.prod(shape), start + begin).reshape(shape)
  return raw != 0 if dtype == np.bool_ else raw.copy()
