"""What the bits of a result depend on besides its inputs: tlx's code, its libraries, the machine, and settings."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'dm-pix', 'numpy', 'pillow')
FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
HARMLESS = ('cache', 'async_dispatch')  # JAX settings with these words in their names do not change results


def key(*facts: Any) -> str:
  """Makes a name for a result: a hash of the facts' reprs, of tlx's code and libraries, and of the machine."""
  return hashlib.sha256(repr((facts, _program(), _machine())).encode()).hexdigest()[:32]


@functools.cache
def _program() -> tuple:
  """A hash of every line of this package, and the versions of its libraries. Any change of the code gives a new key."""
  root, digest = Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
  return digest.hexdigest(), [importlib.metadata.version(name) for name in LIBRARIES]


def _machine() -> tuple:
  """The kind and number of devices and JAX's settings: with others, results have other bits."""
  device = jax.devices()[0]
  share = jax.process_index(), jax.process_count(), jax.device_count()
  chosen = {name: value for name, value in jax.config.values.items() if not any(h in name for h in HARMLESS)}
  return (
    processor(), device.device_kind, device.client.platform_version, share, sorted(chosen.items()),
    [os.environ.get(name) for name in FLAGS],
  )  # fmt: skip


@functools.cache
def processor() -> str:
  """A hash of the processor's instruction sets, because machines that share a home folder may have different ones.

  JAX's own keys distinguish accelerators, but not processors.
  """
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    kind = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):  # this system has no /proc/cpuinfo
    kind = platform.processor()
  return hashlib.sha256(f'{platform.machine()} {kind}'.encode()).hexdigest()[:12]
