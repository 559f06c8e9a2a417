"""Stores compiled steps on disk, so that a later run of the same step needs neither tracing nor lowering.

JAX's own cache (`programs`) uses the program's text as its key, so it needs the lowered program. For
EfficientNet-Lite0's full step at 96 pixels, tracing and lowering take 3.4 s; loading the executable takes 1.1 s. This
cache uses the inputs of the step as its key instead: recipe, phase, optimizer, shapes, and everything in `identity`.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from tlx import files, words
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
  with _damage_said(entry):
    return serialize_executable.deserialize_and_load(*pickle.loads(_take(entry)))
  with programs.paused():  # on a CPU, XLA serialises a program from JAX's cache without its functions
    built = build()
  if isinstance(built, jax.stages.Compiled):
    _put(entry, pickle.dumps(serialize_executable.serialize(built)))
  return built


def number(count: Callable[[], float | None], *facts: Any) -> float | None:
  """Loads a number from the cache, or computes it with `count` and stores it. `facts` as in `kept`."""
  entry = _entry(('number', facts))
  if entry is None:
    return count()
  with _damage_said(entry):
    found = json.loads(_take(entry))
    return found if found is None else float(found)
  found = count()
  _put(entry, json.dumps(found).encode())
  return found


@contextlib.contextmanager
def _damage_said(entry: Path) -> Iterator[None]:
  """Ends the block at an entry that is missing, or that cannot be loaded for any reason; a warning says the latter."""
  try:
    yield
  except FileNotFoundError:
    pass
  except Exception as error:
    reason = ' '.join(str(error).split())[:100] or type(error).__name__
    files.warn_once(f'the cached {entry} is damaged ({words.shown(reason)}); tlx makes it again')


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


def _take(entry: Path) -> bytes:
  """Reads an entry. Raises OSError or ValueError if it is missing, damaged, or from another user.

  So pickle sees only what this user wrote.
  """
  if problem := files.exposed(entry.parent):
    raise OSError(problem)
  content = files.read_private(entry)
  if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
    raise ValueError('its hash differs')
  with contextlib.suppress(OSError):
    entry.touch()
  return content[DIGEST:]


def _put(entry: Path, content: bytes) -> None:
  """Stores an entry if possible. It reports no failure, because training does not depend on it."""
  content = hashlib.sha256(content).digest() + content
  with contextlib.suppress(OSError):
    if not files.make_private(entry.parent):
      _make_room(len(content))
      with files.replacing(entry) as file:
        os.chmod(file.name, 0o600)  # whatever the umask
        file.write(content)


def _make_room(needed: int) -> None:
  found = sorted(((path.stat(), path) for path in folder().iterdir()), key=lambda each: each[0].st_mtime)
  total = sum(stat.st_size for stat, _ in found) + needed
  for stat, path in found:
    if total > LARGEST:
      path.unlink(missing_ok=True)
      total -= stat.st_size
