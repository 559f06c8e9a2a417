"""Features of frozen layers outlive their run: the next one with the same layers, images and views finds them.

An entry is a folder in `folder()`, named by `identity.key`: by everything that its bits depend on. It is written under
another name, sealed and moved in one piece, and hashed again when it is taken: so nobody trains on what a killed run, a
full disk or a bad one left. Two runs that compute the same do not wait for one another; the first to be done is kept.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from tlx import files
from tlx.weights.download import cache_folder

LARGEST = 10 * 2**30  # bytes of all entries; what was used longest ago goes first
WORTH = 50e6  # bytes a second: features that are computed faster than this are computed again
DEAD = 24 * 3600  # seconds without a write, after which the writer of a part is gone
VARIABLE, OFF = 'TLX_FEATURE_CACHE', 'off'  # of the environment: another folder, or none
PART = '.part'
ENTRY = re.compile(rf'[0-9a-f]{{32}}(-[0-9a-f]{{8}}{re.escape(PART)})?')  # the folder may hold other things too
MASK = 'mask.npy'

Values = Mapping[str, np.ndarray]  # {layer or tap: float [n, ...]}
Parts = Iterable[tuple[Values, np.ndarray]]  # (values, mask), one after the other


def folder() -> Path:
  """$TLX_FEATURE_CACHE, or $XDG_CACHE_HOME/tlx/features."""
  return Path(os.environ.get(VARIABLE) or cache_folder() / 'features')


def usable() -> bool:
  """Whether this user may write there, and wants to."""
  if os.environ.get(VARIABLE) == OFF:
    return False
  with contextlib.suppress(OSError):
    folder().mkdir(mode=0o700, parents=True, exist_ok=True)
  return os.access(folder(), os.W_OK | os.X_OK)


def of_arrays(leaves: Mapping[str, Any]) -> str:
  """A hash of named arrays: names, shapes, dtypes and every byte."""
  digest = hashlib.sha256()
  for path, leaf in sorted(leaves.items()):
    values = np.asarray(leaf)
    digest.update(f'{path} {values.dtype} {values.shape} '.encode())
    digest.update(values.tobytes())
  return digest.hexdigest()


def take(entry: Path | None, memory: bool) -> tuple[Values, np.ndarray] | None:
  """(values, mask) of an entry, into memory or mapped from disk; None where it is not there, or not what was written.

  What is mapped stays readable when the entry is removed.
  """
  if not entry or not entry.is_dir():
    return None
  with contextlib.suppress(OSError, ValueError):  # another run removes it, or it cannot be read
    if not files.broken(entry):
      with contextlib.suppress(OSError):  # it may be another user's
        os.utime(entry)  # used now
      return _load(entry, memory)
  shutil.rmtree(entry, ignore_errors=True)
  return None


def write(entry: Path, total: int, parts: Parts, owner: str) -> tuple[Values, np.ndarray]:
  """Writes an entry of `total` examples as they come, and maps it.

  owner: of the run; what it left half written when it was killed is written anew. An entry with images that could not
  be read is not kept: the next run may be luckier.
  Raises: OSError where the disk refuses.
  """
  part = entry.with_name(f'{entry.name}-{hashlib.sha256(f"{platform.node()} {owner}".encode()).hexdigest()[:8]}{PART}')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    np.save(part / MASK, _stream(part, total, parts))
    files.seal(part)
    values, mask = _load(part, memory=False)
    if mask.all():
      with contextlib.suppress(OSError):  # another run was first: its bits are these
        part.rename(entry)
    return values, mask
  finally:
    shutil.rmtree(part, ignore_errors=True)


def make_room(needed: int) -> None:
  """Removes what was used longest ago until so many bytes more are within LARGEST, and what killed runs left."""
  size, used = {}, {}
  for entry in (path for path in folder().glob('*') if ENTRY.fullmatch(path.name)):
    with contextlib.suppress(OSError):  # another run removes it
      stats = [path.stat() for path in entry.iterdir()]
      size[entry] = sum(s.st_size for s in stats)
      used[entry] = max(s.st_mtime for s in (entry.stat(), *stats))  # `take` touches the folder, a writer the files
  total = sum(size.values()) + needed
  for entry in sorted(used, key=used.get):
    dead = time.time() - used[entry] > DEAD
    if dead if entry.suffix == PART else total > LARGEST:
      shutil.rmtree(entry, ignore_errors=True)
      total -= size[entry]


def file_of(name: str) -> str:
  """The file of a layer's features: 'stem/conv' -> 'stem+conv.npy'."""
  return f'{name.replace("/", "+")}.npy'


def _stream(folder: Path, total: int, parts: Parts) -> np.ndarray:
  """Writes the values and returns the mask. Not through a memory map, where a full disk kills the process."""
  masks: list[np.ndarray] = []
  with contextlib.ExitStack() as stack:
    files_of: dict[str, BinaryIO] = {}
    for values, mask in parts:
      for name, x in values.items():
        if name not in files_of:
          files_of[name] = stack.enter_context((folder / file_of(name)).open('xb'))
          kind = np.lib.format.dtype_to_descr(x.dtype)
          header = {'descr': kind, 'fortran_order': False, 'shape': (total, *x.shape[1:])}
          np.lib.format.write_array_header_2_0(files_of[name], header)
        files_of[name].write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)  # no copy
      masks.append(mask)
  return np.concatenate(masks)


def _load(entry: Path, memory: bool) -> tuple[Values, np.ndarray]:
  values = {}
  for path in sorted(entry.glob('*.npy')):
    if path.name != MASK:
      x = np.load(path, mmap_mode=None if memory else 'r')
      x = x.view(ml_dtypes.bfloat16) if x.dtype.kind == 'V' else x  # which .npy has no name for
      values[path.stem.replace('+', '/')] = x
  return values, np.load(entry / MASK)
