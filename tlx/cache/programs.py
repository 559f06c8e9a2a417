"""Compiled programs outlive the process in JAX's persistent cache, which tlx turns on by default."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from tlx.cache import identity
from tlx.weights.download import cache_folder

LARGEST = 2 * 2**30  # maximum bytes of the folder; the least recently used programs are deleted first
WORTH = 0.1  # seconds; a program that compiles faster is not stored
WAIT = 10  # seconds to wait for another process that holds the lock


def keep() -> None:
  """Stores the programs that this process compiles in `folder()`, and loads those that are there.

  A stored program is the compiled one, so the numbers stay the same bit for bit. Settings of the user have priority
  (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false, or jax.config). It does nothing if the folder is not
  writable.
  """
  if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
    return
  import filelock

  try:
    here = folder()
    here.mkdir(mode=0o700, parents=True, exist_ok=True)  # a program from others would run as this user
    with filelock.FileLock(here / '.lockfile', timeout=WAIT):  # JAX takes this lock to read and to write
      for entry in here.glob('*-cache'):
        if not entry.with_name(entry.name.removesuffix('-cache') + '-atime').exists():
          entry.unlink()  # its writer was killed; JAX would warn about it each time, and never replace it
  except (OSError, filelock.Timeout):
    return
  jax.config.update('jax_compilation_cache_max_size', LARGEST)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', WORTH)
  jax.config.update('jax_compilation_cache_dir', str(here))


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
  return cache_folder() / 'compiled' / identity.processor()
