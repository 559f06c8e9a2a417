"""The next phase's step is compiled while this one trains, so that an accelerator does not wait for it."""

import contextlib
import threading
from collections.abc import Callable

import jax


def compile_aside(build: Callable[[], object]) -> None:
  """Runs `build`, which compiles a program, in the background, for the persistent cache.

  The program itself is dropped: the phase compiles it when it comes, from the same text, and finds it in the cache. An
  error is left to the phase too, which meets it where somebody is told.
  """

  def quietly() -> None:
    with contextlib.suppress(Exception):
      build()

  threading.Thread(target=quietly, name='tlx-compile', daemon=True).start()


def gains() -> bool:
  """Not without a cache, not on a CPU, whose cores train, nor across processes, which compile in the same order."""
  return bool(jax.config.jax_compilation_cache_dir) and jax.default_backend() != 'cpu' and jax.process_count() == 1
