"""Saves and restores the state of a run with orbax: asynchronous, atomic, checked, in any phase.

Each checkpoint stores a fingerprint of its bits. A damaged one is set aside with a warning, never overwritten or
trusted, and the one before it is used.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tlx.types import TlxError


class Restored(NamedTuple):
  """A state, the step it was saved at, and what was stored beside it."""

  state: Any
  step: int
  meta: Mapping[str, Any]


class Checkpoints:
  """The checkpoints of one run, the newest `keep` of them."""

  def __init__(self, folder: Path, *, keep: int = 2, warn: Callable[[str], None] = print):
    self.folder, self.keep, self.warn = Path(folder).absolute(), keep, warn
    self._manager = self._open()

  def _open(self):
    import orbax.checkpoint as ocp

    logging.getLogger('absl').setLevel(logging.ERROR)  # orbax reports every save on several lines
    options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, create=True, cleanup_tmp_directories=True)
    with self._writing():
      return ocp.CheckpointManager(self.folder, options=options)

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Copies the state to the host and writes it in the background. Raises TlxError if this or the last save failed."""
    import orbax.checkpoint as ocp

    if step in self._manager.all_steps():
      return
    meta = {**meta, 'fingerprint': fingerprint(state)}
    with self._writing():
      self._manager.save(
        step, args=ocp.args.Composite(state=ocp.args.StandardSave(_flat(state)), meta=ocp.args.JsonSave(meta))
      )

  def restore(self, like: Callable[[Mapping[str, Any]], Any]) -> Restored | None:
    """The newest sound checkpoint, or None where there is none.

    like: from what was stored beside the state to its abstract form (ShapeDtypeStruct leaves with a sharding).
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        return self._read(step, like)
      except Exception as error:  # whatever a damaged file makes the readers raise
        self.warn(f'checkpoint {step} is damaged ({_brief(error)}): set aside, trying the one before it')
        self._set_aside(step)
    return None

  def _read(self, step: int, like: Callable[[Mapping[str, Any]], Any]) -> Restored:
    import orbax.checkpoint as ocp

    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
    abstract = like(meta)
    flat = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_flat(abstract))))[
      'state'
    ]
    state = jax.tree.unflatten(jax.tree.structure(abstract), [flat[name] for name in _flat(abstract)])
    if fingerprint(state) != meta['fingerprint']:
      raise TlxError('its bits differ from those that were saved')
    return Restored(state, step, meta)

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    aside = self.folder.parent / 'damaged_checkpoints' / str(step)
    if jax.process_index() == 0:
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      shutil.move(self.folder / str(step), aside)
    self._manager = self._open()

  def latest(self) -> int | None:
    """The step of the newest checkpoint."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when everything is on disk. Raises TlxError if a save failed."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for what is being written, whatever comes of it."""
    with contextlib.suppress(Exception):
      self._manager.wait_until_finished()
    with contextlib.suppress(Exception):
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except TlxError:
      raise
    except Exception as error:
      raise TlxError(
        f'could not save a checkpoint in {self.folder}: {_brief(error)}; the checkpoints before it are whole: '
        'mend that (is the disk full?) and run the same command again to resume'
      ) from error


def fingerprint(tree: Any) -> list[int]:
  """A checksum of each leaf's bits, in order; sensitive to every bit and to places changed."""
  return [int(x) for x in jax.device_get(_checksums(jax.tree.leaves(tree)))]


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: jax.Array) -> jax.Array:
  # Odd weights are invertible modulo 2^32, so a change of any single word changes the sum.
  bits = (
    jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize])
    .astype(jnp.uint32)
    .ravel()
  )
  weights = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435762) + jnp.uint32(1)
  return (bits * weights).sum(dtype=jnp.uint32)


def _flat(state: Any) -> dict[str, Any]:
  """Leaves by the path they have in the state: what orbax stores knows nothing of our classes."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.').replace('/', '.'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def _brief(error: BaseException) -> str:
  """The first line of an error, at most 160 characters."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
