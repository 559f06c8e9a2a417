"""Whether a compiled step fits in memory, asked before it runs; and what would: in parts, or keeping less."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from tlx import processes
from tlx.train.step import Recipe
from tlx.types import TlxError


def peak_bytes(program: jax.stages.Compiled) -> int:
  """Arguments, results that reuse none of them, and temporaries, on one device."""
  memory = program.memory_analysis()
  return _lasting(memory) + memory.temp_size_in_bytes


def fit(build: Callable[[Recipe], Any], recipe: Recipe, batch_size: int, choose: bool = False) -> tuple[Any, Recipe]:
  """A compiled step that fits, and its recipe: the one given or, to `choose`, with the fewest micro-batches.

  build: compiles the step of a recipe. What `pmap` gives is compiled by its first call, and is taken as it is.
  Raises TlxError where the step needs more than there is, naming what was found to fit: more micro-batches, else remat.
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
  """The recipe's program, then those that may fit where it does not, in the order of what they cost in time."""
  most = batch_size // jax.device_count()
  for remat in sorted({recipe.remat, True}):
    start = dataclasses.replace(recipe, remat=remat)
    program = build(start)
    yield start, program
    # Activations are most of what is temporary, and at best shrink with the part.
    memory = program.memory_analysis()
    temporary, lasting = memory.temp_size_in_bytes, _lasting(memory)
    for parts in range(recipe.micro_batches + 1, most + 1):
      if most % parts == 0 and _agreed(lasting + temporary * recipe.micro_batches // parts):
        other = dataclasses.replace(start, micro_batches=parts)
        yield other, build(other)


def _fits(program: Any) -> bool:
  return not hasattr(program, 'memory_analysis') or _agreed(peak_bytes(program))


def _agreed(needed: int) -> bool:
  """Whether so many bytes fit on the devices of every process: all of them have to compile the same."""
  return not processes.largest(int(needed > limit(jax.local_devices()[0])))


def _options(recipe: Recipe, other: Recipe) -> str:
  """What to type to get from one to the other."""
  remat = ['--remat'] if other.remat > recipe.remat else []
  parts = [f'--micro-batches {other.micro_batches}'] if other.micro_batches > recipe.micro_batches else []
  return ' '.join(remat + parts)


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


def _lasting(memory: Any) -> int:
  return memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _gigabytes(count: int) -> str:
  return f'{count / 1e9:,.2f} GB'
