"""Checks that a compiled step fits in memory; otherwise finds the micro-batches or remat setting that do."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from tlx import processes
from tlx.train.step import Recipe
from tlx.types import TlxError


def peak_bytes(program: jax.stages.Compiled) -> int:
  """Bytes of memory that a program needs on one device: arguments, temporaries, and results in new buffers."""
  memory = program.memory_analysis()
  return _lasting(memory) + memory.temp_size_in_bytes


def fit(build: Callable[[Recipe], Any], recipe: Recipe, batch_size: int, choose: bool = False) -> tuple[Any, Recipe]:
  """Compiles a step that fits in memory.

  A step of `pmap` is not checked, because its first call compiles it.

  Args:
    build: compiles the step of a recipe.
    recipe: of the step.
    batch_size: images per step, over all devices.
    choose: whether to use more micro-batches if the recipe does not fit: the fewest that do.

  Returns:
    (step, its recipe).

  Raises:
    TlxError: if the step does not fit. It names options that fit: more micro-batches, or remat if those do not help.
  """
  tried = _programs(build, recipe, batch_size)
  _, first = next(tried)
  if _fits(first):
    return first, recipe
  there = limit(jax.local_devices()[0])
  needs = f'a step needs {_gigabytes(peak_bytes(first))} on each device, which has {_gigabytes(there)}'
  for other, program in tried:
    if not _fits(program):
      continue
    if choose and other.remat == recipe.remat:
      return program, other
    raise TlxError(f'{needs}; {_options(recipe, other)} needs {_gigabytes(peak_bytes(program))}, a smaller image less')
  raise TlxError(f'{needs}; choose a smaller model or image, or a strategy that freezes more')


def _programs(build: Callable[[Recipe], Any], recipe: Recipe, batch_size: int) -> Iterator[tuple[Recipe, Any]]:
  """The recipe's program, then programs that may need less memory: more micro-batches first, then remat."""
  most = batch_size // jax.device_count()
  for remat in sorted({recipe.remat, True}):
    start = dataclasses.replace(recipe, remat=remat)
    program = build(start)
    yield start, program
    # Temporaries are mostly activations, which at best shrink in proportion to the micro-batch. This estimate saves
    # compiling what cannot fit.
    memory = program.memory_analysis()
    temporary, lasting = memory.temp_size_in_bytes, _lasting(memory)
    for parts in range(recipe.micro_batches + 1, most + 1):
      if most % parts == 0 and _agreed(lasting + temporary * recipe.micro_batches // parts):
        other = dataclasses.replace(start, micro_batches=parts)
        yield other, build(other)


def _fits(program: Any) -> bool:
  return not hasattr(program, 'memory_analysis') or _agreed(peak_bytes(program))


def _agreed(needed: int) -> bool:
  """Whether so many bytes fit on the devices of every process, because all must compile the same program."""
  return not processes.largest(int(needed > limit(jax.local_devices()[0])))


def _options(recipe: Recipe, other: Recipe) -> str:
  """The command-line options that turn one recipe into the other."""
  remat = ['--remat'] if other.remat > recipe.remat else []
  parts = [f'--micro-batches {other.micro_batches}'] if other.micro_batches > recipe.micro_batches else []
  return ' '.join(remat + parts)


def limit(device: jax.Device) -> int:
  """Bytes that a program may use on a device: the accelerator's own, or else the machine's memory."""
  stats = device.memory_stats() or {}
  return stats['bytes_limit'] if 'bytes_limit' in stats else memory('SC_PHYS_PAGES', unknown=2**62)


def memory(pages: str, unknown: int) -> int:
  """Bytes of this machine's memory.

  Args:
    pages: a name for `os.sysconf`: 'SC_PHYS_PAGES' for all memory, 'SC_AVPHYS_PAGES' for free memory.
    unknown: the result on systems without this name.

  Returns:
    Number of bytes.
  """
  try:
    return os.sysconf(pages) * os.sysconf('SC_PAGE_SIZE')
  except (ValueError, OSError, AttributeError):
    return unknown


def _lasting(memory: Any) -> int:
  """Bytes of arguments and results; a result that reuses an argument's buffer counts once."""
  return memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _gigabytes(count: int) -> str:
  return f'{count / 1e9:,.2f} GB'
