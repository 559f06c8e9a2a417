"""Whether a compiled step fits in memory, asked before it runs; and into how many parts a batch would have to go."""

import os
from typing import Any

import jax

from tlx.types import TlxError


def flops(program: jax.stages.Compiled) -> float:
  """The compiler's count, of one device; the body of a loop counts once on some platforms."""
  found = program.cost_analysis()
  return (found[0] if isinstance(found, list) else found)['flops']


def peak_bytes(program: jax.stages.Compiled) -> int:
  """Arguments, results that reuse none of them, and temporaries, on one device."""
  return _lasting(program) + program.memory_analysis().temp_size_in_bytes


def check(program: Any, batch_size: int, micro_batches: int) -> None:
  """Raises TlxError where the step needs more than the device has, naming the micro-batches that would fit.

  program: of `jit`; what `pmap` gives is compiled by its first call, and passes.
  """
  there = limit(jax.local_devices()[0])
  if not hasattr(program, 'memory_analysis') or peak_bytes(program) <= there:
    return
  temporary = program.memory_analysis().temp_size_in_bytes
  needs = f'a step needs {_gigabytes(peak_bytes(program))} on each device, which has {_gigabytes(there)}'
  parts = [k for k in range(micro_batches + 1, batch_size // jax.device_count() + 1) if batch_size % k == 0]
  for k in parts:  # activations are most of what is temporary, and shrink with the part
    if _lasting(program) + temporary * micro_batches // k <= there:
      raise TlxError(f'{needs}; --micro-batches {k} should fit (gradients are the same), and so should a smaller image')
  raise TlxError(f'{needs}; choose a smaller model or image, or a strategy that freezes more')


def limit(device: jax.Device) -> int:
  """Bytes that a program may use there: the accelerator's, or this machine's memory."""
  stats = device.memory_stats() or {}
  return stats['bytes_limit'] if 'bytes_limit' in stats else memory('SC_PHYS_PAGES', unknown=2**62)


def memory(pages: str, unknown: int) -> int:
  """Bytes of this machine's memory by the system's name for its pages, or `unknown` where the system does not say."""
  try:
    return os.sysconf(pages) * os.sysconf('SC_PAGE_SIZE')
  except (ValueError, OSError, AttributeError):
    return unknown


def _lasting(program: jax.stages.Compiled) -> int:
  memory = program.memory_analysis()
  return memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _gigabytes(count: int) -> str:
  return f'{count / 1e9:,.2f} GB'
