"""What the bits of a result depend on beside its inputs: this program, its libraries, this machine, its settings."""

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
HARMLESS = ('cache', 'async_dispatch')  # in the names of JAX's settings: where and when, not what is computed


def key(*facts: Any) -> str:
  """A hash of facts, by their repr, of this program and of this machine: a name for what is computed from them."""
  return hashlib.sha256(repr((facts, _program(), _machine())).encode()).hexdigest()[:32]


@functools.cache
def _program() -> tuple:
  """Every line of this package, so that nobody who changes a layer takes what the old one gave; what it stands on."""
  root, digest = Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
  return digest.hexdigest(), [importlib.metadata.version(name) for name in LIBRARIES]


def _machine() -> tuple:
  """What another number of devices, another kind of them, or other settings would compute with other bits."""
  device = jax.devices()[0]
  share = jax.process_index(), jax.process_count(), jax.device_count()
  chosen = {name: value for name, value in jax.config.values.items() if not any(h in name for h in HARMLESS)}
  return (
    processor(), device.device_kind, device.client.platform_version, share, sorted(chosen.items()),
    [os.environ.get(name) for name in FLAGS],
  )  # fmt: skip


@functools.cache
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
