"""Compiled programs outlive the process: JAX's persistent cache, on unless somebody chose otherwise."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from tlx.cache import identity
from tlx.weights.download import cache_folder

LARGEST = 2 * 2**30  # bytes; what was used longest ago goes first
WORTH = 0.1  # seconds of compilation; what takes less is compiled again
WAIT = 10  # seconds for another process that holds the lock


def keep() -> None:
  """Keeps what this process compiles in `folder()`, and takes what lies there.

  A program from there is the one that was compiled, so the numbers stay the same to the bit. Whoever has set JAX's own
  options (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false, or jax.config) keeps them; a folder that
  cannot be written is left alone.
  """
  if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
    return
  import filelock

  try:
    here = folder()
    here.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs of others would run as this user
    with filelock.FileLock(here / '.lockfile', timeout=WAIT):  # JAX's, which it takes to read and to write
      for entry in here.glob('*-cache'):
        if not entry.with_name(entry.name.removesuffix('-cache') + '-atime').exists():
          entry.unlink()  # its writer was killed; JAX would warn of it for ever, and never write it again
  except (OSError, filelock.Timeout):
    return
  jax.config.update('jax_compilation_cache_max_size', LARGEST)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', WORTH)
  jax.config.update('jax_compilation_cache_dir', str(here))


@contextlib.contextmanager
def paused() -> Iterator[None]:
  """What is compiled in this block is neither taken from JAX's cache nor put there."""
  was = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  reset_cache()  # JAX asks once whether there is one
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', was)
    reset_cache()


def is_ours() -> bool:
  """Whether `keep` has chosen the folder, and nobody since has turned it off."""
  return bool(jax.config.jax_enable_compilation_cache) and jax.config.jax_compilation_cache_dir == str(folder())


def folder() -> Path:
  """$XDG_CACHE_HOME/tlx/compiled/MACHINE."""
  return cache_folder() / 'compiled' / identity.processor()
