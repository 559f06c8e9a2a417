"""Stores features of frozen layers on disk for later runs with the same layers, images and views.

An entry is a folder in `folder()`. Its name is `identity.key` of everything that its bits depend on. `write` writes it
under a temporary name, seals it with hashes and moves it in one step; `take` checks the hashes. So no run trains on
partial files of a killed run, of a full disk or of a faulty one. Two runs that compute the same entry do not wait for
each other; the first to finish stores it.
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

LARGEST = 10 * 2**30  # maximum bytes of all entries; the least recently used are deleted first
WORTH = 50e6  # bytes per second; features in memory that are computed faster than this are not stored
DEAD = 24 * 3600  # seconds without a write after which the writer of a partial entry counts as killed
VARIABLE, OFF = 'TLX_FEATURE_CACHE', 'off'  # environment variable with another folder; 'off' stores nothing
PART = '.part'
ENTRY = re.compile(rf'[0-9a-f]{{32}}(-[0-9a-f]{{8}}{re.escape(PART)})?')  # the folder may contain other files
MASK = 'mask.npy'

Values = Mapping[str, np.ndarray]  # {layer or tap: float [n, ...]}
Parts = Iterable[tuple[Values, np.ndarray]]  # (values, mask), one after the other


def folder() -> Path:
  """The folder of all entries: $TLX_FEATURE_CACHE, or $XDG_CACHE_HOME/tlx/features."""
  chosen = os.environ.get(VARIABLE)
  return Path(chosen).absolute() if chosen else files.cache_folder() / 'features'


def usable() -> bool:
  """Whether the folder is private and writable, and the user has not turned the store off. A warning says why not."""
  chosen = os.environ.get(VARIABLE)
  if chosen == OFF:
    return False
  problem = files.make_private(folder(), VARIABLE if chosen else files.CACHE)
  if problem:
    files.warn_once(f'nothing is kept for later runs: {problem}')
  return not problem


def of_arrays(leaves: Mapping[str, Any]) -> str:
  """Hashes named arrays: names, shapes, dtypes and every byte.

  Args:
    leaves: {name: array}; the order does not matter.

  Returns:
    SHA-256 as a hexadecimal text.
  """
  digest = hashlib.sha256()
  for path, leaf in sorted(leaves.items()):
    values = np.asarray(leaf)
    digest.update(f'{path} {values.dtype} {values.shape} '.encode())
    digest.update(values.tobytes())
  return digest.hexdigest()


def take(entry: Path | None, memory: bool) -> tuple[Values, np.ndarray] | None:
  """Loads an entry. A damaged one is deleted, and a warning says so.

  Args:
    entry: its folder, or None.
    memory: whether to read it into memory; otherwise it is memory-mapped, and stays readable after deletion.

  Returns:
    (values, mask); None if the entry is missing or damaged.
  """
  if not entry or not entry.is_dir():
    return None
  try:
    problem = files.broken(entry)
    if not problem:
      with contextlib.suppress(OSError):
        os.utime(entry)  # marks it as used
      return _load(entry, memory)
  except Exception as error:  # NumPy raises many kinds for a damaged file
    problem = ' '.join(str(error).split())[:100] or type(error).__name__
  if entry.is_dir():  # otherwise another run deleted it
    files.warn_once(f'the cached features {entry} are damaged ({problem}); tlx computes them again')
  shutil.rmtree(entry, ignore_errors=True)
  return None


def write(entry: Path, total: int, parts: Parts, owner: str) -> tuple[Values, np.ndarray]:
  """Writes an entry batch by batch, so that the features need not fit in memory.

  An entry with an image that could not be read is not stored, because a later run may be able to read it.

  Args:
    entry: its folder.
    total: number of views.
    parts: (values, mask), in order.
    owner: identifies the run; the run's partial entry from an earlier attempt is deleted.

  Returns:
    (values, mask), memory-mapped.

  Raises:
    OSError: if the disk is full or not writable.
  """
  part = entry.with_name(f'{entry.name}-{hashlib.sha256(f"{platform.node()} {owner}".encode()).hexdigest()[:8]}{PART}')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    np.save(part / MASK, _stream(part, total, parts))
    files.seal(part)
    values, mask = _load(part, memory=False)
    if mask.all():
      with contextlib.suppress(OSError):  # another run was first; its entry has the same bits
        part.rename(entry)
    return values, mask
  finally:
    shutil.rmtree(part, ignore_errors=True)


def make_room(needed: int) -> None:
  """Deletes the least recently used entries until `needed` more bytes fit within LARGEST.

  It also deletes partial entries of killed runs.
  """
  size, used = {}, {}
  for entry in (path for path in folder().glob('*') if ENTRY.fullmatch(path.name)):
    with contextlib.suppress(OSError):  # another run may delete it now
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
  """The file name of a layer's features.

  >>> file_of('stem/conv')
  'stem+conv.npy'
  """
  return f'{name.replace("/", "+")}.npy'


def _stream(folder: Path, total: int, parts: Parts) -> np.ndarray:
  """Writes the values and returns the mask. A memory map would not do: a full disk would kill the process."""
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
      x = x.view(ml_dtypes.bfloat16) if x.dtype.kind == 'V' else x  # .npy has no name for bfloat16
      values[path.stem.replace('+', '/')] = x
  return values, np.load(entry / MASK)
