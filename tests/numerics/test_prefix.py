"""The frozen prefix computed once gives the run that computing it in every pass gives."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import built

import tlx
from tlx import catalog, trees
from tlx.cost import prefix

QUICK = {'image_size': 32, 'epochs': 3, 'batch_size': 8, 'augment': 'none', 'eval_every': 0.34}


def first_phase(module, strategy):
  return catalog.strategy(strategy).phases(module.backbone.names)[0]


@pytest.mark.parametrize('name', ['resnet_test', 'vit_test', 'squeezenet_test'])
def test_where_the_frozen_layers_end(name):
  module = built(name).module
  names = module.backbone.names
  end = lambda strategy: prefix.boundary(module, first_phase(module, strategy))
  assert end('linear_probe') == (names[-1] if name == 'squeezenet_test' else 'pooled')
  assert end('partial:2') == names[-3]
  assert end('full') is None and end(f'partial:{len(names)}') is None


@pytest.fixture(scope='module')
def finetune(tiny_models, tiny_images, tmp_path_factory):
  """A function of the family and options: (result, metrics.jsonl without the clock), of a quiet run."""

  def call(family='efficientnet', data=tiny_images, **options):
    out = tmp_path_factory.mktemp('runs') / 'run'
    experiment = tlx.Experiment(tiny_models[family], f'folder:{data}', out=str(out), **{**QUICK, **options})
    result = tlx.finetune(experiment, quiet=True)
    assert not (out / 'features').exists()
    lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    return result, [{k: v for k, v in line.items() if k != 'images_per_second'} for line in lines]

  return call


def same(a, b):
  """Both runs, up to what rounding in another program moves."""
  flat = [trees.flatten(jax.device_get(dict(run[0].pretrained.variables))) for run in (a, b)]
  for path in flat[0]:
    np.testing.assert_allclose(flat[0][path], flat[1][path], rtol=1e-4, atol=1e-5, err_msg=path)
  assert len(a[1]) == len(b[1])
  for line, other in zip(a[1], b[1]):
    assert line.keys() == other.keys()
    for name, value in line.items():
      assert value == (other[name] if isinstance(value, str) else pytest.approx(other[name], rel=1e-3, abs=1e-5)), name


@pytest.mark.parametrize(
  ('strategy', 'cache'),
  [
    ('linear_probe', 'memory'),
    ('partial:2', 'disk'),
    pytest.param('linear_probe', 'disk', marks=pytest.mark.slow),
    pytest.param('partial:2', 'memory', marks=pytest.mark.slow),
  ],
)
def test_the_run_is_the_same(finetune, strategy, cache):
  options = {'strategy': strategy, 'optimizer': 'sgd', 'lr': 0.05, 'dropout': 0.2}
  kept, plain = finetune(cache=cache, **options), finetune(cache='off', **options)
  assert kept[0].metrics['prefix_seconds'] > plain[0].metrics['prefix_seconds']
  same(kept, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('family', 'dtype'),
  [(name, 'float32') for name in catalog.names('models')] + [(name, 'bfloat16') for name in ('resnet', 'vit')],
)
def test_every_family(finetune, family, dtype, tiny_models):
  size = tlx.load(tiny_models[family]).preprocess.size
  options = {'family': family, 'strategy': 'partial:1', 'optimizer': 'sgd', 'lr': 0.01, 'dtype': dtype}
  kept, plain = (finetune(cache=cache, image_size=size, **options) for cache in ('disk', 'off'))
  assert kept[0].metrics['loss'] == pytest.approx(plain[0].metrics['loss'], rel=1e-4 if dtype == 'float32' else 3e-2)


def test_automatic_keeps_what_a_probe_sees_and_nothing_that_changes(finetune, capsys):
  probe = finetune(strategy='linear_probe')[0].metrics
  light = finetune(strategy='linear_probe', augment='light')[0].metrics
  assert probe['prefix_seconds'] > 0.05 > light['prefix_seconds']


@pytest.mark.slow
def test_phases_that_learn_more_go_back_to_images(finetune):
  kept, plain = (finetune(strategy='gradual', optimizer='sgd', lr=0.01, cache=cache) for cache in ('auto', 'off'))
  same(kept, plain)


def test_asking_for_features_of_changing_pixels_is_refused(finetune):
  with pytest.raises(tlx.UsageError, match='--cache memory: the augmentation makes new pixels'):
    finetune(strategy='linear_probe', augment='light', cache='memory')


def test_an_image_that_cannot_be_read_stays_out(finetune, tiny_images, tmp_path):
  data = shutil.copytree(tiny_images, tmp_path / 'images')
  good = sorted((data / 'train/red').iterdir())[0]
  good.write_bytes(good.read_bytes()[:200])  # the header is whole, so only decoding it finds out
  kept, plain = (
    finetune(data=data, strategy='linear_probe', optimizer='sgd', cache=cache) for cache in ('auto', 'off')
  )
  same(kept, plain)


def test_features_keep_their_file_until_the_run_is_done(tmp_path):
  batches = [{'index': np.array([2, 0]), 'mask': np.array([True, False])}, {'index': np.array([1, -1])}]
  step = lambda _, batch: ((), {'mask': np.ones(2, bool), 'features': np.float32(batch['index'])[:, None], **batch})
  where, labels = tmp_path / 'deep/features.npy', np.arange(3)
  first = prefix.compute(step, None, batches, labels, where)
  np.testing.assert_array_equal(first.values[:, 0], [0, 1, 2])
  np.testing.assert_array_equal(first.mask, [False, True, True])
  again = prefix.compute(None, None, [], labels, where)  # nothing is computed
  np.testing.assert_array_equal(again.values, first.values)
  np.testing.assert_array_equal(again.mask, first.mask)
  part = again.load(np.array([2, -1, 0]))
  assert part['features'].shape == (3, 1) and part['label'].tolist() == [2, 0, 0]
  assert part['mask'].tolist() == [True, False, False]
