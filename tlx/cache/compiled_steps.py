"""Stores compiled steps on disk, so that a later run of the same step needs neither tracing nor lowering.

JAX's own cache (`programs`) uses the program's text as its key, so it needs the lowered program. For
EfficientNet-Lite0's full step at 96 pixels, tracing and lowering take 3.4 s; loading the executable takes 1.1 s. This
cache uses the inputs of the step as its key instead: recipe, phase, optimizer, shapes, and everything in `identity`.
"""

import contextlib
import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from tlx import files
from tlx.cache import identity, programs

LARGEST = 2**30  # maximum bytes of the folder; the least recently used entries are deleted first
DIGEST = 32  # bytes of SHA-256 at the start of an entry
ADDRESS = re.compile(r' at 0x[0-9a-f]+')  # a memory address in a repr makes it unusable as a key


def kept(build: Callable[[], Any], *facts: Any) -> Any:
  """Loads a compiled step from the cache, or builds and stores it.

  It only builds where storing is not possible: on an accelerator, with several processes, with pmap, with an unwritable
  folder, or if the user has set up JAX's cache.

  Args:
    build: compiles the step.
    facts: everything that the step depends on; the repr of each must identify it.

  Returns:
    The compiled step.
  """
  entry = _entry(facts)
  if entry is None:
    return build()
  with contextlib.suppress(Exception):  # an entry that cannot be loaded, for any reason, is built again
    return serialize_executable.deserialize_and_load(*_take(entry))
  with programs.paused():  # on a CPU, XLA serialises a program from JAX's cache without its functions
    built = build()
  if isinstance(built, jax.stages.Compiled):
    _put(entry, serialize_executable.serialize(built))
  return built


def number(count: Callable[[], float | None], *facts: Any) -> float | None:
  """Loads a number from the cache, or computes it with `count` and stores it. `facts` as in `kept`."""
  entry = _entry(('number', facts))
  with contextlib.suppress(LookupError):
    return _take(entry)
  found = count()
  _put(entry, found)
  return found


def shapes(tree: Any) -> tuple:
  """Facts about a pytree of arrays: its structure, and the shape, dtype and sharding of each leaf."""
  leaves, structure = jax.tree.flatten(tree)
  return str(structure), [(x.shape, str(x.dtype), str(getattr(x, 'sharding', None))) for x in leaves]


def folder() -> Path:
  """The folder of compiled steps, next to that of compiled programs."""
  return programs.folder().with_name(programs.folder().name + '-steps')


def _entry(facts: Any) -> Path | None:
  alone = jax.default_backend() == 'cpu' and jax.process_count() == 1  # other platforms are not tested
  if not alone or not programs.is_ours() or ADDRESS.search(repr(facts)):
    return None
  return folder() / identity.key(facts)


def _take(entry: Path | None) -> Any:
  """Loads an entry. Raises LookupError if it is missing or damaged; pickle never sees a damaged entry."""
  with contextlib.suppress(OSError):
    content = entry.read_bytes() if entry else b''
    if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]:
      entry.touch()
      return pickle.loads(content[DIGEST:])
  raise LookupError(entry)


def _put(entry: Path | None, value: Any) -> None:
  """Stores a value if possible. It reports no failure, because training does not depend on it."""
  if entry is None:
    return
  content = pickle.dumps(value)
  content = hashlib.sha256(content).digest() + content
  with contextlib.suppress(OSError):
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # a program from others would run as this user
    _make_room(len(content))
    with files.replacing(entry) as file:
      file.write(content)


def _make_room(needed: int) -> None:
  found = sorted(((path.stat(), path) for path in folder().iterdir()), key=lambda each: each[0].st_mtime)
  total = sum(stat.st_size for stat, _ in found) + needed
  for stat, path in found:
    if total > LARGEST:
      path.unlink(missing_ok=True)
      total -= stat.st_size
