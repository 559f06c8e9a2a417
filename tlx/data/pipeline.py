"""Makes batches of a source: shuffle, shard, decode, transform, batch and prefetch, built on grain.

A batch is a pure function of (seed, step). Shards take slices of the same global batch, the number of workers does not
change a batch, and an iterator starts at any step without cost. So a resumed run sees the same pixels.
Threads share the work of a batch. Pillow decodes and resizes outside Python's global lock, and forked processes do not
work well with JAX.
"""

import concurrent.futures
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from tlx.data import decode, unreadable
from tlx.types import Batch, DataSource, Geometry, Target, Task, TlxError, UsageError

EPOCHS = 2**31  # endless; grain's own endless length overflows when it is divided into batches of one
POLL = 0.005  # seconds between two checks whether the device is busy
AHEAD = 2  # batches made at once, so that no thread is idle while the last pictures of a batch are decoded


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
  """Makes endless shuffled batches. Every epoch has its own order, and a batch may contain the end of one epoch.

  Args:
    source: the training split.
    task: makes targets of the annotations; None = class ids only, as target label int32 [b].
    batch_size: of the global batch, over all shards.
    seed: random seed.
    transform: `transforms.evaluation(...)` or `transforms.canvas(...)`.
    load: makes a batch of positions in the split (-1 = padding); it replaces `transform`.
    views: of each example, for `load`: it gets position * views + v with a new random v in every step.
    start_step: number of steps to skip.
    class_balanced: draws a class uniformly, then one of its examples, both with replacement.
    workers: threads that decode ahead; 0 makes each batch on request.
    shard: (index, count); the iterator gives the index-th slice of every global batch.

  Returns:
    An iterator with get_state() and set_state() (a dict of JSON values). A batch has image uint8 [b, h, w, 3], mask
    bool [b], geometry float32 [b, 6] (the fields of a `Geometry`) and target. An image that cannot be decoded has mask
    False, zero pixels and a blank target.

  Raises:
    UsageError: for an empty split, a batch size that does not divide by the shards, and `class_balanced` if images do
      not have exactly one class.
  """
  import grain

  part = _slice(batch_size, shard)
  if not len(source):
    raise UsageError('the training split is empty')
  # grain adds the epoch to its seed. Without the hash, epoch 1 of seed 0 would equal epoch 0 of seed 1.
  grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
  positions = grain.MapDataset.range(len(source)).seed(grain_seed)
  if class_balanced and source.labels is None:
    raise UsageError('--sampling balanced: it draws by the class of an image, and these images have more than one')
  if class_balanced:
    members = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    order = positions.repeat(EPOCHS).random_map(lambda _, rng: rng.choice(members[rng.integers(len(members))]))
  else:
    order = positions.shuffle().repeat(EPOCHS)
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
  """Makes batches with every example once, in order. The last batch is padded with zeros and mask False.

  Args:
    source: the split.
    task: as in `train_batches`.
    batch_size: of the global batch, over all shards.
    transform: as in `train_batches`.
    load: as in `train_batches`.
    workers: as in `train_batches`; None = `cores()`.
    shard: as in `train_batches`. Every shard gives the same number of batches.

  Returns:
    An iterator. Batches are those of `train_batches`, and also have index int32 [b]: the position in the split, -1 for
    padding. An image that cannot be decoded has mask False and its own index.
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
  """An iterator that moves batches to the device in a background thread, ahead of their use.

  `next` raises an exception of the iterator or of `put` in place of the batch.

  Args:
    iterator: of batches.
    put: host batch -> device batch.
    depth: number of batches ahead.

  Attributes:
    waited: seconds that the consumer waited; with `after`, only those in which the device was idle.
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
    """The next batch. Time in which the device still computes the arrays of `running` does not count as waiting.

    JAX runs asynchronously, so that the loop asks for a batch long before the device needs it.
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
    """The iterator's state after the last batch that was consumed, not after the last one fetched ahead."""
    return self._state

  def close(self) -> None:
    """Stops the thread, frees its batches and closes the iterator. A second call does nothing more."""
    self._stop.set()
    while self._thread.is_alive():
      self._drain()
      self._thread.join(0.01)
    self._drain()
    if hasattr(self._iterator, 'close'):
      self._iterator.close()  # otherwise its threads make more batches during an evaluation

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
    except BaseException as error:  # `next` raises it
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
  """Makes a `Prefetch`, under the name that other libraries use."""
  return Prefetch(iterator, put, depth)


class ClassIds:
  """A minimal task for tools that need only class ids. The id is -1 if an image does not have exactly one class."""

  dense = False

  def encode(self, annotation: Any, geometry: Geometry, shape: tuple[int, int]) -> Target:
    return {'label': np.int32(annotation if isinstance(annotation, int | np.integer) else -1)}

  def blank(self, shape: tuple[int, int]) -> Target:
    return {'label': np.int32(0)}


class Targets:
  """Makes the targets of positions in a split without reading images: {name: [b, ...]}. Position -1 is padding."""

  def __init__(self, source: DataSource, task: Task, transform: Callable):
    self.source, self.task, self.transform = source, task, transform
    self.blank = task.blank(transform.shape)

  def __call__(self, positions: Sequence[int]) -> dict[str, np.ndarray]:
    return self.stack([self.of(i) if i >= 0 else self.blank for i in positions])

  def held(self) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Makes the targets of all positions now and keeps them in memory. Returns a function of positions."""
    everything = self([*range(len(self.source)), -1])  # position -1 selects the last one, which is padding
    return lambda positions: {name: x[positions] for name, x in everything.items()}

  def of(self, index: int) -> Target:
    """The target of one example."""
    size = self.source.size(index) if self.task.dense else self.transform.shape
    return self.task.encode(self.source.annotation(index), self.transform.geometry(*size), self.transform.shape)

  def stack(self, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """Stacks the targets of a batch, in the dtypes of the blank target."""
    return {name: np.stack([target[name] for target in targets]).astype(x.dtype) for name, x in self.blank.items()}


class _Loader:
  """Makes a batch of positions in a split; -1 is padding."""

  def __init__(self, source: DataSource, task: Task, transform: Callable, workers: int):
    self.source, self.transform = source, transform
    self.targets = Targets(source, task, transform)
    self.unreadable = unreadable.of(source)
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
    example = None
    try:
      example = self.source[index]
      image = example.image
      if isinstance(image, bytes):
        image = decode.picture(image, min_size=self.transform.min_size, scale=self.transform.grey)
      else:
        image = Image.fromarray(image)
      height, width = self.source.size(index) if self.targets.task.dense else (image.height, image.width)
      geometry = self.transform.geometry(height, width)
      target = self.targets.task.encode(example.annotation, geometry, self.transform.shape)
      loaded = self.transform(image), geometry, target
      self.unreadable.read()
      return loaded
    except (TlxError, OSError, MemoryError) as error:  # one bad file must not end a long run
      self.unreadable.failed(index, example and example.name, error)
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
  """Number of threads to decode pictures: the cores that this process may use, at most 16.

  A job may use only some of a machine's cores. A photograph of 500 x 375 pixels takes 2.2 ms of processor time, of
  which opening the file holds Python's lock for 0.13 ms. So more than 17 threads would wait for each other.
  """
  may_run = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(os.cpu_count() or 1)
  return min(16, len(may_run))
