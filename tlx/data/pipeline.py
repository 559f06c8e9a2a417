"""Batches from a source: shuffle, shard, decode, transform, batch, prefetch; built on grain.

A batch is a pure function of (seed, step). Shards take slices of the same global batch, workers only change when it is
made, and starting at any step costs nothing, so a resumed run sees the pixels that it would have seen.
Parallelism is by threads, which share the pictures of a batch: Pillow decodes and resizes outside Python's global lock,
and nothing is forked beside JAX.
"""

import concurrent.futures
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from tlx.data import decode
from tlx.types import Batch, DataSource, Geometry, Target, Task, TlxError, UsageError

log = logging.getLogger(__name__)

POLL = 0.005  # seconds between two looks whether the device is still busy
AHEAD = 2  # batches in the making at once, so that no thread is idle while the last pictures of one are made


def train_batches(
  source: DataSource,
  *,
  task: Task | None = None,
  batch_size: int,
  seed: int,
  transform: Callable | None = None,
  load: Callable[[np.ndarray], Batch] | None = None,
  start_step: int = 0,
  class_balanced: bool = False,
  views: int = 1,
  workers: int = 0,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
  """Endless shuffled batches; every epoch has its own order, and a batch may cross the border of two epochs.

  Args:
    task: what makes targets of the annotations; None = class ids alone, as target label int32 [b].
    batch_size: of the global batch, over all shards.
    transform: `transforms.evaluation(...)` or `transforms.canvas(...)`.
    load: positions in the split, -1 for padding -> their part of a batch; in place of `transform`.
    views: of each example, for `load`: it is given position * views + one of them, drawn anew in every step.
    start_step: step of the first batch.
    class_balanced: draw the class uniformly, then one of its examples, both with replacement.
    workers: threads that make pictures ahead; 0 makes each batch when it is asked for.
    shard: (index, count); this iterator gives the index-th slice of every global batch.
  Returns: an iterator with get_state() and set_state() (a dict that JSON can hold) over dicts of image uint8
    [b, h, w, 3], mask bool [b] (False, zero pixels and a blank target where an image could not be decoded), geometry
    float32 [b, 6] (the fields of a `Geometry`) and target.
  Raises: UsageError for an empty split, for a batch size that the shards do not divide, and for balanced classes where
    an image has not one class.
  """
  import grain

  part = _slice(batch_size, shard)
  if not len(source):
    raise UsageError('the training split is empty')
  # grain adds the epoch to its seed: hashed, or epoch 1 of seed 0 would be epoch 0 of seed 1.
  grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
  positions = grain.MapDataset.range(len(source)).seed(grain_seed)
  if class_balanced and source.labels is None:
    raise UsageError('--sampling balanced: it draws by the class of an image, and these images have more than one')
  if class_balanced:
    members = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    order = positions.repeat().random_map(lambda _, rng: rng.choice(members[rng.integers(len(members))]))
  else:
    order = positions.shuffle().repeat()
  load = load or _Loader(source, task or ClassIds(), transform, workers)
  chosen = order.batch(batch_size)
  if views > 1:
    chosen = chosen.random_map(lambda indices, rng: indices * views + rng.integers(views, size=batch_size))
  batches = chosen.map(lambda indices: load(indices[part]))
  iterator = _iterate(batches, workers)
  iterator.set_state({'next_index': start_step})
  return iterator


def eval_batches(
  source: DataSource,
  *,
  task: Task | None = None,
  batch_size: int,
  transform: Callable | None = None,
  load: Callable[[np.ndarray], Batch] | None = None,
  workers: int | None = None,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
  """Every example once and in order; the last batch is filled with zeros and mask False.

  Batches are those of `train_batches` and also have index int32 [b]: the position in the split, -1 for padding. An
  image that cannot be decoded has mask False and its own index. Every shard gives the same number of batches.
  task: as there. workers: as there; None = `cores()`.
  """
  import grain

  part = _slice(batch_size, shard)
  workers = cores() if workers is None else workers
  load = load or _Loader(source, task or ClassIds(), transform, workers)

  def batch(step):
    indices = np.arange(step * batch_size, (step + 1) * batch_size)[part]
    indices = np.where(indices < len(source), indices, -1)
    return load(indices) | {'index': indices.astype(np.int32)}

  return _iterate(grain.MapDataset.range(-(-len(source) // batch_size)).map(batch), workers)


class Prefetch:
  """Runs `put` (host -> device) on the batches of an iterator in a background thread, `depth` batches ahead.

  An exception of the iterator or of `put` is raised by the `next` that would have given the batch. `waited` is the time
  in seconds that the consumer spent waiting; with `after`, only that in which the device had nothing to do.
  `get_state` is the iterator's state after the last batch consumed, not after the last one fetched.
  """

  def __init__(self, iterator: Iterable, put: Callable[[Any], Any] = lambda batch: batch, depth: int = 2):
    self.waited = 0.0
    self._iterator, self._put = iter(iterator), put
    self._state = self._read_state()
    self._queue = queue.Queue(maxsize=depth)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, name='tlx-prefetch', daemon=True)
    self._thread.start()

  def __iter__(self):
    return self

  def __next__(self) -> Any:
    return self.after(())

  def after(self, running: Any) -> Any:
    """`next`, when the arrays of the pytree `running` are perhaps still being computed.

    A loop that sends steps to the device ahead of time is here long before the device has come to need the batch.
    """
    if self._stop.is_set():
      raise StopIteration
    item, state, error = self._take(jax.tree.leaves(running))
    if error is not None:
      self.close()
      raise error
    self._state = state
    return item

  def get_state(self) -> dict:
    return self._state

  def close(self) -> None:
    """Stops the thread, frees what it fetched and closes the iterator; may be called twice."""
    self._stop.set()
    while self._thread.is_alive():
      self._drain()
      self._thread.join(0.01)
    self._drain()
    if hasattr(self._iterator, 'close'):
      self._iterator.close()  # or batches would be made ahead for nobody, beside an evaluation

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _take(self, running: list):
    while True:
      start = time.perf_counter()
      busy = not all(array.is_ready() for array in running)
      try:
        entry = self._queue.get(timeout=POLL if busy else None)
      except queue.Empty:
        continue
      if not busy:
        self.waited += time.perf_counter() - start
      return entry

  def _run(self):
    try:
      for batch in self._iterator:
        if not self._offer((self._put(batch), self._read_state(), None)):
          return
      self._offer((None, None, StopIteration()))
    except BaseException as error:  # it belongs to the consumer
      self._offer((None, None, error))

  def _offer(self, entry) -> bool:
    while not self._stop.is_set():
      try:
        self._queue.put(entry, timeout=0.05)
        return True
      except queue.Full:
        pass
    return False

  def _drain(self):
    while not self._queue.empty():
      self._queue.get_nowait()

  def _read_state(self) -> dict:
    return self._iterator.get_state() if hasattr(self._iterator, 'get_state') else {}


def device_prefetch(iterator: Iterable, put: Callable[[Any], Any], depth: int = 2) -> Prefetch:
  """`Prefetch` by its usual name."""
  return Prefetch(iterator, put, depth)


class ClassIds:
  """Stands for a task where a tool wants nothing but class ids; -1 where an image has not one class."""

  dense = False

  def encode(self, annotation: Any, geometry: Geometry, shape: tuple[int, int]) -> Target:
    return {'label': np.int32(annotation if isinstance(annotation, int | np.integer) else -1)}

  def blank(self, shape: tuple[int, int]) -> Target:
    return {'label': np.int32(0)}


class Targets:
  """Positions in a split -> their targets alone, [b, ...] each, without reading an image; -1 is padding."""

  def __init__(self, source: DataSource, task: Task, transform: Callable):
    self.source, self.task, self.transform = source, task, transform
    self.blank = task.blank(transform.shape)

  def __call__(self, positions: Sequence[int]) -> dict[str, np.ndarray]:
    return self.stack([self.of(i) if i >= 0 else self.blank for i in positions])

  def held(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The same, with the targets of all positions made at once and kept in memory."""
    everything = self([*range(len(self.source)), -1])  # the last one is the padding's
    return lambda positions: {name: x[positions] for name, x in everything.items()}

  def of(self, index: int) -> Target:
    size = self.source.size(index) if self.task.dense else self.transform.shape
    return self.task.encode(self.source.annotation(index), self.transform.geometry(*size), self.transform.shape)

  def stack(self, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    return {name: np.stack([target[name] for target in targets]).astype(x.dtype) for name, x in self.blank.items()}


class _Loader:
  """Positions in a split -> one batch; a position of -1 is padding."""

  def __init__(self, source: DataSource, task: Task, transform: Callable, workers: int):
    self.source, self.transform = source, transform
    self.targets = Targets(source, task, transform)
    self.failed = set()  # positions already reported
    self.map = concurrent.futures.ThreadPoolExecutor(workers, 'tlx-load').map if workers > 1 else map

  def __call__(self, indices: np.ndarray) -> dict[str, Any]:
    count, shape, targets = len(indices), self.transform.shape, []
    batch = {
      'image': np.zeros((count, *shape, 3), np.uint8),
      'mask': np.zeros(count, bool),
      'geometry': np.tile(np.float32([*shape, 0, 0, *shape]), (count, 1)),
    }
    for row, result in enumerate(self.map(self._load, indices.tolist())):
      if result is not None:
        batch['image'][row], batch['geometry'][row], target = result
        batch['mask'][row] = True
      targets.append(self.targets.blank if result is None else target)
    return batch | {'target': self.targets.stack(targets)}

  def _load(self, index: int) -> tuple[np.ndarray, Geometry, Target] | None:
    if index < 0:
      return None
    try:
      example = self.source[index]
      image = example.image
      if isinstance(image, bytes):
        image = decode.picture(image, min_size=self.transform.min_size)
      else:
        image = Image.fromarray(image)
      height, width = self.source.size(index) if self.targets.task.dense else (image.height, image.width)
      geometry = self.transform.geometry(height, width)
      target = self.targets.task.encode(example.annotation, geometry, self.transform.shape)
      return self.transform(image), geometry, target
    except (TlxError, OSError) as error:  # one bad file must not end a run of hours
      if index not in self.failed:
        self.failed.add(index)
        log.warning('example %d is left out: %s', index, error)
      return None


def _slice(batch_size: int, shard: tuple[int, int]) -> slice:
  index, count = shard
  if batch_size < 1 or batch_size % count:
    raise UsageError(f'batch size {batch_size} cannot be divided among {count} shards; next: a multiple of {count}')
  size = batch_size // count
  return slice(index * size, (index + 1) * size)


def _iterate(batches, workers: int):
  import grain

  ahead = min(workers, AHEAD)
  return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)))


def cores() -> int:
  """Threads that a process should have for its pictures: one a core that it may run on, at most 16.

  A job may be given few of a machine's cores. Opening a file holds Python's lock for 0.13 ms and a photograph of 500 x
  375 takes 2.2 ms in all, by processor time, so that more than 17 threads would wait for one another.
  """
  may_run = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count() or 1)
  return min(16, len(may_run))
