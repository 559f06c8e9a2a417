"""Compiled steps outlive the process whole: a later run of the same step neither traces nor lowers it again.

JAX's own cache (`programs`) is asked with a program's text, which takes longer to make than to load what it stands
for: EfficientNet-Lite0's full step at 96 pixels, 3.4 s against 1.1. So the step itself is kept here, under all that it
is made from: recipe, phase, optimizer, shapes, and everything in `identity`.
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

LARGEST = 2**30  # bytes; what was used longest ago goes first
DIGEST = 32  # bytes of SHA-256 ahead of what they speak of
ADDRESS = re.compile(r' at 0x[0-9a-f]+')  # in the repr of what has none of its own: it says nothing of what it is


def kept(build: Callable[[], Any], *facts: Any) -> Any:
  """What `build` compiles, from the cache if it is there; facts: all it is made from, each with a repr that says so.

  Where nothing can be kept (an accelerator, several processes, pmap, a folder that cannot be written, a user's own JAX
  cache) it is simply built.
  """
  entry = _entry(facts)
  if entry is None:
    return build()
  with contextlib.suppress(Exception):  # whatever it is that cannot be loaded is built again
    return serialize_executable.deserialize_and_load(*_take(entry))
  with programs.paused():  # what XLA has loaded from there on a CPU it writes down without its functions
    built = build()
  if isinstance(built, jax.stages.Compiled):
    _put(entry, serialize_executable.serialize(built))
  return built


def number(count: Callable[[], float | None], *facts: Any) -> float | None:
  """What `count` finds, likewise."""
  entry = _entry(('number', facts))
  with contextlib.suppress(LookupError):
    return _take(entry)
  found = count()
  _put(entry, found)
  return found


def shapes(tree: Any) -> tuple:
  """Of a pytree of arrays: its structure, and of each leaf shape, dtype and where it lies."""
  leaves, structure = jax.tree.flatten(tree)
  return str(structure), [(x.shape, str(x.dtype), str(getattr(x, 'sharding', None))) for x in leaves]


def folder() -> Path:
  """Beside what JAX keeps of this machine."""
  return programs.folder().with_name(programs.folder().name + '-steps')


def _entry(facts: Any) -> Path | None:
  alone = jax.default_backend() == 'cpu' and jax.process_count() == 1  # all else is untried
  if not alone or not programs.is_ours() or ADDRESS.search(repr(facts)):
    return None
  return folder() / identity.key(facts)


def _take(entry: Path | None) -> Any:
  """Raises LookupError where it is not there, or not what was written: pickle never sees it then."""
  with contextlib.suppress(OSError):
    content = entry.read_bytes() if entry else b''
    if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]:
      entry.touch()
      return pickle.loads(content[DIGEST:])
  raise LookupError(entry)


def _put(entry: Path | None, value: Any) -> None:
  """Keeps it where that is possible; nobody who trains needs to hear where it is not."""
  if entry is None:
    return
  content = pickle.dumps(value)
  content = hashlib.sha256(content).digest() + content
  with contextlib.suppress(OSError):
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs of others would run as this user
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
