"""Images that cannot be read while a run goes on: a few are named and counted, many mean that the data are gone."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from tlx.data import pipeline, transforms, unreadable
from tlx.datasets import folder
from tlx.types import Preprocess, TlxError


@pytest.fixture
def pets(tmp_path):
  for split, count in (('train', 20), ('val', 4)):
    for label, name in enumerate(('cat', 'dog')):
      place = tmp_path / 'pets' / split / name
      place.mkdir(parents=True)
      for i in range(count):
        Image.fromarray(np.full((8, 8, 3), 100 * label + i, np.uint8)).save(place / f'{i}.png')
  return tmp_path / 'pets'


def evaluate(source, workers=0):
  batches = pipeline.eval_batches(
    source, batch_size=4, transform=transforms.evaluation(Preprocess(size=8)), workers=workers
  )
  return int(sum(batch['mask'].sum() for batch in batches))


def train(source, steps=40):
  batches = pipeline.train_batches(source, batch_size=4, transform=transforms.canvas(8), seed=0)
  return [next(batches) for _ in range(steps)]


def test_a_few_are_named_once_and_counted(pets, caplog):
  splits = folder.load(str(pets), seed=0).splits
  (pets / 'val/cat/1.png').unlink()
  (pets / 'train/dog/3.png').write_bytes(b'GIF89a')
  with caplog.at_level(logging.WARNING):
    assert [evaluate(splits['validation'], workers) for workers in (0, 2)] == [7, 7]
    train(splits['train'])
  gone, broken = (record.getMessage() for record in caplog.records)
  assert gone.startswith(f'{pets / "val/cat/1.png"} cannot be read and is left out (1 of 8 images): No such file')
  assert broken.startswith('train/dog/3.png cannot be read and is left out (1 of 40 images): ')
  assert 'example' not in caplog.text
  assert unreadable.summary(splits['train']).endswith('could not be read and did not count: train/dog/3.png')
  assert unreadable.summary(splits['validation']).startswith('1 of 8 images')


HARMS = {
  'all': (lambda root: shutil.rmtree(root), 'is gone while it is in use'),
  'a class': (lambda root: [shutil.rmtree(root / split / 'dog') for split in ('train', 'val')], 'dog is gone'),
  'files': (lambda root: [path.unlink() for path in root.rglob('*.png')], 'images cannot be read any more, such as'),
  'many': (
    lambda root: [path.write_bytes(b'') for path in root.rglob('*.png') if int(path.stem) % 4],
    'images cannot be read any more, such as',
  ),
}


@pytest.mark.parametrize('harm', HARMS)
@pytest.mark.parametrize('passes', ['train', 'evaluate'])
def test_data_that_are_gone_end_it_with_one_line(pets, harm, passes):
  splits = folder.load(str(pets), seed=0).splits
  act, expected = HARMS[harm]
  act(pets)
  with pytest.raises(TlxError, match=f'{expected}.*; next: bring the data back') as error:
    train(splits['train']) if passes == 'train' else evaluate(splits['validation'], workers=2)
  assert '\n' not in str(error.value) and 'png' in str(error.value)


def test_a_tiny_split_may_lose_one(pets):
  source = folder.load(str(pets), seed=0).splits['validation']
  found = unreadable.Unreadable(4)
  found.failed(0, 'a', FileNotFoundError('no'))
  found.failed(0, 'a', FileNotFoundError('no'))  # the same image in each epoch is one
  with pytest.raises(TlxError, match='2 of 4 images'):
    found.failed(1, 'b', FileNotFoundError('no'))
  assert unreadable.of(source) is unreadable.of(source)
  assert unreadable.of([1, 2]).size == 2  # a source that cannot be a key
