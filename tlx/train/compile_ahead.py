"""Compiles the next phase's step while this phase trains, so that the accelerator does not wait for it."""

import contextlib
import threading
from collections.abc import Callable

import jax


def compile_aside(build: Callable[[], object]) -> None:
  """Compiles a program in a background thread, to fill JAX's persistent cache.

  It drops the program and ignores errors. The phase compiles the same program again when it starts: it then finds it in
  the cache, or raises the same error where the user sees it.

  Args:
    build: compiles the program.
  """

  def quietly() -> None:
    with contextlib.suppress(Exception):
      build()

  threading.Thread(target=quietly, name='tlx-compile', daemon=True).start()


def gains() -> bool:
  """Whether compiling ahead helps.

  It does not without a cache, on a CPU (its cores are busy with training), or with several processes (all must compile
  in the same order).
  """
  return bool(jax.config.jax_compilation_cache_dir) and jax.default_backend() != 'cpu' and jax.process_count() == 1
