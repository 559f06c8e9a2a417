"""The map of a data set: every image once, like beside like, mistakes marked, and a page with the same figures."""

import json
import re

import numpy as np
import pytest
from tiny import built

from tlx.actions import explain, runs
from tlx.explain import data_map
from tlx.types import Example, UsageError


class Colours:
  """Red, green and blue pictures."""

  def __init__(self, count=30):
    self.labels = (np.arange(count) % 3).astype(np.int32)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    pixels = np.random.default_rng(index).integers(0, 60, (40, 40, 3), dtype=np.uint8)
    pixels[..., self.labels[index]] += 180
    return Example(pixels, int(self.labels[index]), str(index))


NAMES = ('red', 'green', 'blue')


@pytest.fixture(scope='module')
def model():
  return built('resnet_test')


def mapped(model, names=NAMES, count=30, most=100, seed=0):
  batches, total = explain.batches(Colours(count), model.preprocess, most, seed)
  return list(data_map.data_map(model, batches, names, total=total))


def embedded(found):
  page = re.search(r'id="data">(.*?)</script>', found.pages['map'], re.DOTALL)[1]
  return json.loads(page)


def test_colours_lie_apart_on_every_map(model):
  *_, first, last = mapped(model)
  assert list(last.figures) == ['images', 'neighbours_agree', 'pca', 'tsne'] and 'tsne' not in first.figures
  assert last.figures['images'] == 30 and last.figures['neighbours_agree'] == 1
  for name in ('pca', 'tsne'):
    assert last.figures[name]['neighbours_agree'] == 1 and 0.8 < last.figures[name]['trustworthiness'] <= 1
  assert (last.done, last.total) == (3, 3) and last.pictures['map'].shape[0] == data_map.SIDE


def test_the_page_holds_every_image_once_and_no_predictions_of_other_classes(model):
  found = embedded(mapped(model)[-1])
  assert sorted(found['index']) == list(range(30)) and found['prediction'] is None
  assert [found['label'][i] for i in np.argsort(found['index'])] == Colours().labels.tolist()
  assert all(0 <= x <= 1 for places in found['places'].values() for place in places for x in place)


def test_mistakes_are_those_of_the_model(model):
  named = model._replace(class_names=[*NAMES, 'other', 'none'])
  last = mapped(named, named.class_names)[-1]
  found = embedded(last)
  wrong = np.not_equal(found['label'], found['prediction'])
  assert last.figures['mistakes'] == wrong.sum() and last.figures['accuracy'] == pytest.approx(1 - wrong.mean())


def test_a_part_is_drawn_by_the_seed(model):
  drawn = [sorted(embedded(mapped(model, most=12, seed=seed)[-1])['index']) for seed in (0, 0, 1)]
  assert len(drawn[0]) == 12 and drawn[0] == drawn[1] != drawn[2]


def test_too_few(model):
  with pytest.raises(UsageError, match='3 images are too few'):
    mapped(model, count=3)


def test_names_cannot_break_out_of_the_page(model):
  last = mapped(model, ('</script><b>', 'green', 'blue'))[-1]
  assert '</script><b>' not in last.pages['map'] and embedded(last)['names'][0] == '</script><b>'


def test_neighbours_vote_by_rank():
  places = np.array([0, 1, 2, 3, 10, 11, 12, 13], np.float32)[:, None]
  assert data_map._agreement(places, np.repeat([0, 1], 4)) == 1
  assert data_map._agreement(places, np.tile([0, 1], 4)) < 0.5


def test_a_pretrained_model_has_no_data_of_its_own(tiny_model):
  with pytest.raises(UsageError, match='--data'):
    runs.data_of(tiny_model, None, 'validation')
