"""Compiled programs outlive the process in JAX's persistent cache, which tlx turns on by default."""

import contextlib
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from tlx import files
from tlx.cache import identity

LARGEST = 2 * 2**30  # maximum bytes of the folder; the least recently used programs are deleted first
WORTH = 0.1  # seconds; a program that compiles faster is not stored
WAIT = 10  # seconds to wait for another process that holds the lock
CHECKED = '.checked'  # its time is that of the last look at the entries
ZSTANDARD = b'\x28\xb5\x2f\xfd'  # JAX takes this compression where it is installed, else zlib
VARIABLE = 'JAX_COMPILATION_CACHE_DIR'


def keep() -> None:
  """Stores the programs that this process compiles in `folder()`, and loads those that are there.

  A stored program is the compiled one, so the numbers stay the same bit for bit. Settings of the user have priority
  (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false, or jax.config). A stored program runs as this user, so
  a folder that other users can write is not used, and a warning says so.
  """
  chosen = jax.config.jax_compilation_cache_dir
  if not jax.config.jax_enable_compilation_cache:
    return
  if chosen is not None:
    if '://' not in chosen and (problem := _problem(Path(chosen))):
      files.warn_once(f'compiled programs are not kept: {problem}')
      jax.config.update('jax_compilation_cache_dir', None)
    return
  import filelock

  here = folder()
  if problem := files.make_private(here):
    return files.warn_once(f'nothing is kept for later runs: {problem}')
  try:
    with filelock.FileLock(here / '.lockfile', timeout=WAIT):  # JAX takes this lock to read and to write
      _sweep(here)
  except (OSError, filelock.Timeout):
    return
  jax.config.update('jax_compilation_cache_max_size', LARGEST)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', WORTH)
  jax.config.update('jax_compilation_cache_dir', str(here))


def _sweep(here: Path) -> None:
  """Deletes what JAX cannot load: it would warn of it in each run, and never replace it. Looks at each entry once."""
  checked = here / CHECKED
  last, now = checked.stat().st_mtime_ns if checked.exists() else 0, time.time_ns()
  for entry in here.glob('*-cache'):
    seen = entry.lstat()
    killed = not entry.with_name(entry.name.removesuffix('-cache') + '-atime').exists()  # while it wrote the entry
    damaged = not killed and seen.st_mtime_ns >= last and not _loads(entry)
    if damaged:
      files.warn_once(f'the compiled program {entry} is damaged; JAX compiles it again')
    if killed or damaged or not files.is_own(seen):
      entry.unlink()
  checked.touch()
  os.utime(checked, ns=(now, now))


def _loads(entry: Path) -> bool:
  content = entry.read_bytes()
  try:
    return content.startswith(ZSTANDARD) or bool(zlib.decompress(content))
  except zlib.error:
    return False


def _problem(folder: Path) -> str:
  """Why a folder that the user chose is not safe. Whether it can be made is JAX's affair."""
  try:
    return files.exposed(folder, VARIABLE)
  except OSError as error:
    return f'{folder}: {error.strerror or error}'


@contextlib.contextmanager
def paused() -> Iterator[None]:
  """Turns JAX's cache off inside the block."""
  was = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  reset_cache()  # JAX checks only once whether there is a cache
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', was)
    reset_cache()


def is_ours() -> bool:
  """Whether JAX's cache is on and in the folder that `keep` sets."""
  return bool(jax.config.jax_enable_compilation_cache) and jax.config.jax_compilation_cache_dir == str(folder())


def folder() -> Path:
  """The folder of compiled programs: $XDG_CACHE_HOME/tlx/compiled/MACHINE."""
  return files.cache_folder() / 'compiled' / identity.processor()
