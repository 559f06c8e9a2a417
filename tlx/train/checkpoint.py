"""Saves and restores the state of a run with orbax, in the background, atomically and with checks.

Each checkpoint stores the hashes of its files and a checksum of each array. `restore` moves a damaged checkpoint to
another folder, warns, and takes the one before it. Any other reading error stops the run and leaves the checkpoint
where it is. With several processes, process 0 lists, hashes, writes and moves files in a folder that all processes see;
an error in one process is an error in all.
"""

import concurrent.futures
import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tlx import files
from tlx.train.checkpoint_errors import brief, silence, undecodable
from tlx.types import TlxError

STEP = re.compile(r'0|[1-9][0-9]{0,8}')  # names of checkpoints: numbers of steps below 10^9


class Restored(NamedTuple):
  """A restored checkpoint."""

  state: Any
  step: int  # the last step before the checkpoint was saved
  meta: Mapping[str, Any]  # JSON values that were saved with the state


class Damaged(Exception):
  """The files of a checkpoint differ from what was saved."""


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: of the checkpoints; the first save makes it.
    keep: number of checkpoints to keep, the newest ones.
    warn: receives the warnings.
  """

  def __init__(self, folder: Path, *, keep: int = 2, warn: Callable[[str], None] = print):
    self.folder, self.keep, self.warn = Path(folder).absolute(), keep, warn
    self._opened, self._sealing = None, None
    self._worker = concurrent.futures.ThreadPoolExecutor(1)  # starts no thread before the first save

  @property
  def _manager(self):
    """Orbax's manager. It is opened on first use, after `restore` has moved damaged checkpoints away."""
    if self._opened is None:
      import orbax.checkpoint as ocp

      silence()
      options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, create=True, cleanup_tmp_directories=True)
      with self._writing():
        self._opened = ocp.CheckpointManager(self.folder, options=options)
    return self._opened

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Copies the state to the host and writes it in the background. It does nothing if `step` is saved already.

    Args:
      step: number of the last step.
      state: pytree of arrays.
      meta: JSON values to save with the state.

    Raises:
      TlxError: if this save or the one before it failed.
    """
    import orbax.checkpoint as ocp

    self.wait()
    if step in self._manager.all_steps():
      return
    flat = _flat(state)
    meta = {**meta, 'fingerprint': fingerprint(state), 'leaves': _leaves(flat)}
    with self._writing():
      self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(meta)))
    if jax.process_index() == 0:
      self._sealing = self._worker.submit(self._seal, step)

  def _seal(self, step: int) -> None:
    """Hashes the files after orbax has given the checkpoint its final name. It runs in the background."""
    self._manager.wait_until_finished()
    files.seal(self.folder / str(step))

  def restore(self, like: Callable[[Mapping[str, Any]], Any]) -> Restored | None:
    """Reads the newest checkpoint that is not damaged, and moves damaged ones to 'damaged_checkpoints'.

    Args:
      like: maps the saved `meta` to the abstract state: leaves are jax.ShapeDtypeStruct with a sharding.

    Returns:
      The checkpoint; None if there is none.

    Raises:
      TlxError: if the checkpoint cannot be read, or holds another state than `like` describes. It stays where it is.
    """
    _alike(self._set_strangers_aside)
    while (step := self._newest()) is not None:
      try:
        sealed = _alike(self._verify, step)
        return _alike(self._read, step, like, sealed)
      except Damaged as error:
        self.warn(f'checkpoint {step} is damaged ({error}): set aside, trying the one before it')
        _alike(self._set_aside, step)
        if self._opened:
          self._opened.reload()
    return None

  def _newest(self) -> int | None:
    """The newest step that process 0 sees, because other processes may see an old listing of the folder."""
    steps = _gathered(np.int32(_alike(self._last_listed)))
    return int(steps[0]) if steps[0] >= 0 else None

  def _last_listed(self) -> int:
    return max((int(name) for name in self._names() if STEP.fullmatch(name)), default=-1)

  def _names(self) -> list[str]:
    try:
      return [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
    except OSError as error:
      raise TlxError(
        f'cannot list {self.folder}: {brief(error)}; mend that and run the same command again'
      ) from error

  def _set_strangers_aside(self) -> None:
    """Moves files and folders aside that no step names: orbax would take some for checkpoints newer than all others."""
    if jax.process_index():
      return
    for name in self._names():
      if name.isdigit() and not (STEP.fullmatch(name) and (self.folder / name).is_dir()):
        self.warn(f'{self.folder / name} is not a checkpoint of this program: set aside')
        self._set_aside(name)

  def _verify(self, step: int) -> bool:
    """Whether the checkpoint has hashes, and they match. False if the run was killed before it wrote the hashes."""
    folder = self.folder / str(step)
    with self._reading(step, sealed=True):
      if not folder.is_dir():
        raise TlxError(
          f'process {jax.process_index()} does not see {folder}, which process 0 does: choose an --out on a file '
          'system that all processes share'
        )
      sealed = (folder / files.SEAL).is_file()
      if sealed and jax.process_index() == 0 and (problem := files.broken(folder)):
        raise Damaged(problem)
      return sealed

  def _read(self, step: int, like: Callable[[Mapping[str, Any]], Any], sealed: bool) -> Restored:
    import orbax.checkpoint as ocp

    def read(**item):
      with contextlib.closing(_reader()) as reader:
        return reader.restore(self.folder / str(step), args=ocp.args.Composite(**item))

    with self._reading(step, sealed):
      meta = read(meta=ocp.args.JsonRestore())['meta']
      stored, saved = meta['leaves'], meta['fingerprint']
    with self._reading(step, sealed=True):  # an error of `like` is not damage
      abstract = self._fitting(step, like, meta, stored)
    with self._reading(step, sealed):
      flat = read(state=ocp.args.StandardRestore(_flat(abstract)))['state']
      state = jax.tree.unflatten(jax.tree.structure(abstract), [flat[name] for name in _flat(abstract)])
      if fingerprint(state) != saved:
        raise Damaged('its bits differ from those that were saved')
    return Restored(state, step, meta)

  def _fitting(self, step: int, like: Callable, meta: Mapping[str, Any], stored: Mapping[str, str]) -> Any:
    """The program's abstract state. Raises TlxError if the checkpoint holds another one."""
    try:
      abstract = like(meta)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise self._misfit(step, f'it has none for phase {meta.get("phase")} ({brief(error)})') from error
    here = _leaves(_flat(abstract))
    names = [name for name in {**stored, **here} if stored.get(name) != here.get(name)]
    if names:
      name, more = names[0], f' (and {len(names) - 1} more)' * (len(names) > 1)
      raise self._misfit(step, f'{name} is {stored.get(name, "missing")} there, {here.get(name, "missing")} here{more}')
    return abstract

  def _misfit(self, step: int, why: str) -> TlxError:
    return TlxError(
      f'checkpoint {step} in {self.folder} holds another state than this program makes: {why}; it stays where it is: '
      'resume with the program and model that wrote it, or choose another --out'
    )

  @contextlib.contextmanager
  def _reading(self, step: int, sealed: bool):
    """Raises Damaged or TlxError in place of a reader's error. If the hashes match, it is never Damaged."""
    try:
      yield
    except (Damaged, TlxError):
      raise
    except Exception as error:
      if not sealed and undecodable(error):
        raise Damaged(brief(error)) from error
      raise TlxError(
        f'could not read checkpoint {step} in {self.folder}, which stays as it is: {brief(error)}; mend that '
        '(too little memory, too few open files, no right to read, another version?) and run the same command again'
      ) from error

  def _set_aside(self, step: int | str) -> None:
    aside = self.folder.parent / 'damaged_checkpoints' / str(step)
    if jax.process_index() == 0:
      try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(self.folder / str(step), aside)
      except OSError as error:
        raise TlxError(
          f'could not move the damaged {self.folder / str(step)} to {aside}: {brief(error)}; move it '
          'yourself and run the same command again'
        ) from error

  def latest(self) -> int | None:
    """Waits for the last save, and returns the step of the newest checkpoint, or None. Raises TlxError if it failed."""
    self.wait()
    return self._manager.latest_step()

  def wait(self) -> None:
    """Waits until everything is on disk. Raises TlxError if the last save failed."""
    if self._opened is None:
      return
    sealing, self._sealing = self._sealing, None
    with self._writing():
      self._manager.wait_until_finished()
      if sealing:
        sealing.result()

  def close(self) -> None:
    """Waits for the last save and frees the threads. It ignores errors."""
    with contextlib.suppress(Exception):
      self.wait()
    self._worker.shutdown()
    if self._opened:
      with contextlib.suppress(Exception):
        self._opened.close()

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except TlxError:
      raise
    except Exception as error:
      raise TlxError(
        f'could not save a checkpoint in {self.folder}: {brief(error)}; the checkpoints before it are whole: '
        'mend that (is the disk full?) and run the same command again to resume'
      ) from error


def _reader():
  """Orbax's reader without waiting for other processes, so that a process that fails alone can report it (`_alike`)."""
  import orbax.checkpoint as ocp

  silence()
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=own, active_processes={own}, barrier_sync_key_prefix=f'process_{own}'
  )
  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone)),
    multiprocessing_options=alone,
  )


def _alike(function: Callable, *arguments: Any) -> Any:
  """Calls a function on every process. If one process fails, all raise the worst error: TlxError before Damaged."""
  result, problem = None, None
  try:
    result = function(*arguments)
  except (Damaged, TlxError) as error:
    problem = error
  if jax.process_count() > 1:
    kinds = (None, Damaged, TlxError)
    kind = 0 if problem is None else 2 if isinstance(problem, TlxError) else 1
    rows = _gathered(np.frombuffer((bytes([kind]) + str(problem).encode()[:999]).ljust(1000), np.uint8))
    worst = max((row.tobytes() for row in rows), key=lambda row: row[0])
    problem = kinds[worst[0]] and kinds[worst[0]](worst[1:].decode(errors='replace').rstrip())
  if problem:
    raise problem
  return result


def _gathered(value: np.ndarray) -> np.ndarray:
  """Stacks the values of all processes: [processes, ...]."""
  return np.reshape(multihost_utils.process_allgather(value), (jax.process_count(), *value.shape))


def fingerprint(tree: Any) -> list[int]:
  """Computes a checksum of each leaf. It changes if any bit changes or values swap places.

  Args:
    tree: pytree of arrays with 1, 2 or 4 bytes per value.

  Returns:
    One uint32 value per leaf, in the order of `jax.tree.leaves`.
  """
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
  """{path: leaf}, so that the stored files do not depend on our classes."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.').replace('/', '.'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }


def _leaves(flat: Mapping[str, Any]) -> dict[str, str]:
  """{path: dtype and shape}, such as 'float32[3, 5]'."""
  return {name: f'{leaf.dtype}{list(leaf.shape)}' for name, leaf in flat.items()}
