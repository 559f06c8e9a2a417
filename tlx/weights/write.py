"""Writes tensors to a .safetensors file, in one atomic step."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from tlx import files, words
from tlx.types import TlxError
from tlx.weights.read import SAFETENSORS_DTYPES

CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}


def write_safetensors(
  path: str | pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes {name: array} in the given order, and replaces an older file only when the new one is complete.

  Args:
    path: of the file.
    tensors: arrays of any dtype in SAFETENSORS_DTYPES. Strided arrays are made contiguous, one at a time.
    metadata: text entries of the header.

  Raises:
    TlxError: on a full disk, an unwritable folder or a dtype that the format lacks; the older file stays as it is.
  """
  path = pathlib.Path(path)
  arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
  header = _header(path, arrays, metadata)
  try:
    with files.replacing(path) as file:
      file.write(header)
      for array in arrays.values():
        little = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
        file.write(little.reshape(-1).view(np.uint8).data)
  except OSError as error:
    raise _unwritten(path, len(header) + sum(array.nbytes for array in arrays.values()), error) from None


def _header(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None) -> bytes:
  entries: dict[str, object] = {'__metadata__': dict(metadata)} if metadata else {}
  position = 0
  for name, array in arrays.items():
    if array.dtype.name not in CODES:
      raise TlxError(
        f'{path}: tensor {words.shown(name)} is {array.dtype}, which safetensors cannot hold; '
        f'it holds {", ".join(CODES)}'
      )
    offsets = [position, position := position + array.nbytes]
    entries[name] = {'dtype': CODES[array.dtype.name], 'shape': list(array.shape), 'data_offsets': offsets}
  text = json.dumps(entries, separators=(',', ':'), ensure_ascii=False)
  raw = text.encode('utf-8', 'backslashreplace')  # a lone surrogate becomes the escape that JSON has for it
  raw += b' ' * (-len(raw) % 8)  # the tensors then start at a multiple of 8 bytes
  return len(raw).to_bytes(8, 'little') + raw


def _unwritten(path: pathlib.Path, size: int, error: OSError) -> TlxError:
  kept = 'the file that was there is untouched' if path.exists() else 'nothing was left behind'
  if error.errno in files.FULL:
    way_out = f'{size / 2**20:,.1f} MiB are needed: free some space or write to another disk'
  else:
    way_out = 'choose a folder that exists and that you may write to'
  return TlxError(f'{path}: cannot be written, {error.strerror or error} ({kept}); {way_out}')
