"""Batches are a pure function of (seed, step), whatever the workers, shards and restarts; none is lost or doubled."""

import io
import itertools
import json
import os
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from tlx.data import pipeline, transforms
from tlx.data.split import Labelled
from tlx.tasks import classification
from tlx.types import Example, Preprocess, UsageError

CANVAS = transforms.canvas(8)
TASK = classification.Task(('rare', 'common'))
EVALUATION = transforms.evaluation(Preprocess(size=8))


class Source(Labelled):
  """Images whose pixels are their own position; class 0 is rare."""

  def __init__(self, count=23):
    self.count, self.labels = count, (np.arange(count) >= 2).astype(np.int32)

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return Example(np.full((4, 4 + index % 3, 3), index, np.uint8), int(self.labels[index]), str(index))


def train(steps, **options):
  options = {'batch_size': 6, 'transform': CANVAS, 'seed': 0} | options
  return list(itertools.islice(pipeline.train_batches(Source(), task=TASK, **options), steps))


def positions(batches):
  return np.concatenate([b['image'][:, 0, 0, 0] for b in batches])


def equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      jax.tree.map(np.testing.assert_array_equal, a[name], b[name])


def test_contract():
  (batch,) = train(1)
  kinds = {name: (x.dtype.name, x.shape) for name, x in ({**batch, **batch['target']}).items() if name != 'target'}
  assert kinds == {
    'image': ('uint8', (6, 8, 8, 3)),
    'label': ('int32', (6,)),
    'mask': ('bool', (6,)),
    'geometry': ('float32', (6, 6)),
  }
  index = batch['image'][:, 0, 0, 0].astype(int)
  np.testing.assert_allclose(batch['geometry'][:, 1] / batch['geometry'][:, 0], (4 + index % 3) / 4)
  np.testing.assert_array_equal(batch['target']['label'], Source().labels[index])
  assert batch['mask'].all()


def test_every_epoch_has_every_example_in_its_own_order():
  order = positions(train(23)).reshape(6, 23)  # 23 batches of 6 = 6 epochs of 23
  for epoch in order:
    assert sorted(epoch) == list(range(23))
  assert len({tuple(epoch) for epoch in order}) == 6
  assert not (positions(train(23, seed=1)).reshape(6, 23)[:5] == order[1:]).all()


@pytest.mark.parametrize('balanced', [False, True])
def test_batches_of_one_go_on_without_end(balanced):
  ones, sixes = (train(138 // n, batch_size=n, class_balanced=balanced) for n in (1, 6))
  np.testing.assert_array_equal(positions(ones), positions(sixes))


@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('workers', [1, 3])
def test_workers_change_nothing(workers, balanced):
  equal(train(9, class_balanced=balanced), train(9, workers=workers, class_balanced=balanced))


@pytest.mark.parametrize('workers', [None, 0, 1, 3])
def test_workers_change_nothing_in_evaluation(workers):
  batches = lambda workers: pipeline.eval_batches(Source(), batch_size=6, transform=EVALUATION, workers=workers)
  equal(list(batches(0)), list(batches(workers)))


def test_the_pictures_of_one_batch_are_made_side_by_side():
  together = threading.Barrier(3, timeout=30)  # breaks unless three threads are in it at once

  class Waiting(Source):
    def __getitem__(self, index):
      together.wait()
      return super().__getitem__(index)

  options = {'batch_size': 3, 'transform': EVALUATION}
  equal(
    list(pipeline.eval_batches(Waiting(3), workers=3, **options)), list(pipeline.eval_batches(Source(3), **options))
  )


def test_few_batches_are_made_ahead_whatever_the_number_of_workers():
  read = []

  class Counted(Source):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  batches = pipeline.train_batches(Counted(), batch_size=2, transform=CANVAS, seed=0, workers=16)
  next(batches)
  time.sleep(0.2)  # let it run ahead as far as it will
  assert len(read) <= 2 * (1 + pipeline.AHEAD)


def test_workers_by_default_are_the_cores_that_the_process_may_use(monkeypatch):
  for count, expected in ((1, 1), (7, 7), (100, 16)):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _, count=count: set(range(count)), raising=False)
    assert pipeline.cores() == expected


def test_a_training_batch_decodes_a_photograph_at_reduced_scale_and_evaluation_does_not():
  file = io.BytesIO()
  Image.effect_mandelbrot((640, 320), (-2, -1, 1, 1), 50).convert('RGB').save(file, 'JPEG')

  class Photograph(Source):
    def __getitem__(self, index):
      return Example(file.getvalue(), 0, '')

  class Seen:
    def __init__(self, transform):
      self.transform, self.shape, self.min_size = transform, transform.shape, transform.min_size
      self.geometry, self.grey = transform.geometry, transform.grey

    def __call__(self, picture):
      sizes.add(picture.size)
      return self.transform(picture)

  sizes = set()
  for transform, size in ((transforms.canvas(40), (160, 80)), (transforms.evaluation(Preprocess(size=40)), (640, 320))):
    sizes.clear()
    next(pipeline.train_batches(Photograph(), batch_size=2, transform=Seen(transform), seed=0))
    assert sizes == {size}


@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('count', [2, 3])
def test_shards_are_slices_of_the_global_batch(count, balanced):
  shards = [train(9, shard=(i, count), class_balanced=balanced) for i in range(count)]
  joined = [
    jax.tree.map(lambda *each: np.concatenate(each), *parts) for parts in zip(*shards, strict=True)
  ]
  equal(joined, train(9, class_balanced=balanced))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('balanced', [False, True])
def test_resuming_at_a_step_and_from_a_state(workers, balanced):
  options = {'workers': workers, 'class_balanced': balanced}
  whole = train(12, **options)
  equal(train(5, start_step=7, **options), whole[7:])
  iterator = pipeline.train_batches(Source(), batch_size=6, transform=CANVAS, seed=0, **options)
  for _ in range(4):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  other = pipeline.train_batches(Source(), batch_size=6, transform=CANVAS, seed=0, **options)
  other.set_state(state)
  equal([next(other) for _ in range(8)], whole[4:])


def test_starting_late_is_instant():
  start = time.perf_counter()
  (batch,) = train(1, start_step=10**9)
  assert batch['mask'].all() and time.perf_counter() - start < 2


def test_class_balanced_draws_classes_alike():
  labels = np.concatenate([b['target']['label'] for b in train(200, class_balanced=True)])
  assert abs(labels.mean() - 0.5) < 0.05  # 1200 draws: the standard error is 0.014
  drawn = positions(train(200, class_balanced=True))
  assert set(drawn) == set(range(23))


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('size', [1, 4, 22, 23, 24, 60])
def test_evaluation_counts_every_example_once_and_in_order(size, count):
  if size % count:
    with pytest.raises(UsageError, match='divided'):
      pipeline.eval_batches(Source(), batch_size=size, transform=EVALUATION, shard=(0, count))
    return
  shards = [
    list(pipeline.eval_batches(Source(), batch_size=size, transform=EVALUATION, shard=(i, count))) for i in range(count)
  ]
  assert len({len(s) for s in shards}) == 1
  index = np.concatenate([b['index'] for step in zip(*shards, strict=True) for b in step])
  np.testing.assert_array_equal(index[:23], np.arange(23))
  assert (index[23:] == -1).all() and len(index) % size == 0
  for batch in itertools.chain(*shards):
    np.testing.assert_array_equal(batch['mask'], batch['index'] >= 0)
    np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], np.maximum(batch['index'], 0))
    assert not batch['image'][~batch['mask']].any() and batch['index'].dtype == np.int32


def test_an_empty_training_split_is_refused():
  with pytest.raises(UsageError, match='empty'):
    pipeline.train_batches(Source(0), batch_size=2, transform=CANVAS, seed=0)


def test_prefetch_gives_the_same_batches_and_the_state_of_the_consumer():
  inner = pipeline.train_batches(Source(), batch_size=6, transform=CANVAS, seed=0)
  with pipeline.device_prefetch(inner, lambda b: b | {'put': threading.current_thread().name}, depth=3) as batches:
    got = [next(batches) for _ in range(4)]
    time.sleep(0.1)  # let it run ahead
    state = batches.get_state()
  assert {b.pop('put') for b in got} == {'tlx-prefetch'}
  equal(got, train(4))
  again = pipeline.train_batches(Source(), batch_size=6, transform=CANVAS, seed=0)
  again.set_state(state)
  equal([next(again)], train(5)[4:])
  assert not [t for t in threading.enumerate() if t.name == 'tlx-prefetch']


def test_prefetch_ends_with_its_iterator_and_passes_errors_on():
  assert list(pipeline.Prefetch(range(5))) == list(range(5))
  batches = pipeline.Prefetch(range(5), lambda x: 1 // (2 - x))
  assert [next(batches), next(batches)] == [0, 1]
  with pytest.raises(ZeroDivisionError):
    next(batches)
  with pytest.raises(StopIteration):
    next(batches)


def test_prefetch_measures_the_wait():
  def slow():
    for i in range(3):
      time.sleep(0.05)
      yield i

  starved = pipeline.Prefetch(slow())
  assert list(starved) == [0, 1, 2] and 0.1 < starved.waited < 1
  with pipeline.Prefetch(range(100)) as fed:
    time.sleep(0.1)
    next(fed)
    assert fed.waited < 0.05


def test_closing_a_prefetch_closes_its_iterator():
  closed = threading.Event()

  def endless():
    try:
      yield from itertools.count()
    finally:
      closed.set()

  with pipeline.Prefetch(endless()) as batches:
    assert next(batches) == 0 and not closed.is_set()
  assert closed.is_set()


def test_the_wait_counts_only_while_the_device_has_nothing_to_do(monkeypatch):
  clock, wanted = SimpleNamespace(now=0), threading.Event()
  monkeypatch.setattr(pipeline, 'time', SimpleNamespace(perf_counter=lambda: clock.now))

  def slow():
    wanted.wait(30)
    clock.now += 5
    yield 'batch'
    yield 'ready'

  looks = iter([False, False, False, True, False])

  def is_ready():
    clock.now += 100
    if ready := next(looks):
      wanted.set()
    return ready

  with pipeline.Prefetch(slow()) as batches:
    assert batches.after({'loss': SimpleNamespace(is_ready=is_ready)}) == 'batch'
    assert batches.waited == 105  # the last look, and what the batch then took
    assert batches.after([SimpleNamespace(is_ready=is_ready)]) == 'ready' and batches.waited == 105
