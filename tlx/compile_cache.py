"""Compiled programs outlive the process: JAX's persistent cache, on unless somebody chose otherwise."""

import hashlib
import platform
from pathlib import Path

import jax

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


def folder() -> Path:
  """$XDG_CACHE_HOME/tlx/compiled/MACHINE."""
  return cache_folder() / 'compiled' / processor()


def processor() -> str:
  """A hash of what this machine's processor can do: machines that share a home may differ in it.

  JAX's own keys tell accelerators apart, but not processors.
  """
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    kind = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):  # not on this system
    kind = platform.processor()
  return hashlib.sha256(f'{platform.machine()} {kind}'.encode()).hexdigest()[:12]
