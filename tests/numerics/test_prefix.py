"""The frozen prefix computed once gives the run that computing it in every pass gives."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import built

import tlx
from tlx import catalog, trees
from tlx.actions import finetune as action
from tlx.data import augment, decode, transforms
from tlx.prefix import boundary

QUICK = {'image_size': 32, 'epochs': 3, 'batch_size': 8, 'augment': 'none', 'eval_every': 0.34}


def first_phase(module, strategy):
  return catalog.strategy(strategy).phases(module.backbone.names)[0]


@pytest.mark.parametrize('name', ['resnet_test', 'vit_test', 'squeezenet_test'])
def test_where_the_frozen_layers_end(name):
  module = built(name).module
  names = module.backbone.names
  end = lambda strategy: boundary.boundary(module, first_phase(module, strategy))
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
    pytest.param('linear_probe', 'disk', marks=pytest.mark.full),
    pytest.param('partial:2', 'memory', marks=pytest.mark.full),
  ],
)
def test_the_run_is_the_same(finetune, strategy, cache):
  options = {'strategy': strategy, 'optimizer': 'sgd', 'lr': 0.05, 'dropout': 0.2}
  kept, plain = finetune(cache=cache, **options), finetune(cache='off', **options)
  assert kept[0].metrics['prefix_seconds'] > plain[0].metrics['prefix_seconds']
  same(kept, plain)


@pytest.mark.full
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


@pytest.mark.parametrize(('views', 'order'), [(1, [0, 1, 2]), (2, [0, 3, 1, 4, 2, 5])])
def test_views_of_an_image_stay_together(views, order):
  rest = dict.fromkeys(('image', 'mask', 'geometry'))
  batches = [rest | {'index': np.int32([1, 0])}, rest | {'index': np.int32([-1, 2])}]
  found = lambda batch: {'pooled': np.float32(batch['draw'])[:, None]}
  step = lambda _, b: ((), {'index': b['index'], 'mask': b['index'] != 1, 'features': found(b)})
  parts = boundary.parts(step, None, batches, lambda batch: batch, examples=3, views=views)
  values, mask = boundary.gather(parts, 3 * views)
  assert values['pooled'][:, 0].tolist() == order and mask.tolist() == [draw % 3 != 1 for draw in order]


def test_a_batch_of_features_is_taken_by_position():
  labels = np.int32([5, 6, 7, 0])  # the last one is the padding's
  values, mask = {'pooled': np.arange(3.0)[:, None]}, np.array([True, True, False])
  features = boundary.Features(values, mask, lambda positions: {'label': labels[positions]})
  part = features.load(np.array([1, -1, 2]))
  assert part['image']['pooled'].shape == (3, 1) and part['image']['pooled'][[0, 2], 0].tolist() == [1, 2]
  assert part['target']['label'].tolist() == [6, 0, 7] and part['mask'].tolist() == [True, False, False]


@pytest.fixture
def views(tiny_models, tiny_images, tmp_path):
  """A function of options: the `PhaseInputs` of a phase, without training; its features are computed, not found."""
  from tlx.prefix.compute import Settings
  from tlx.prefix.phase_inputs import Inputs
  from tlx.report import terminal
  from tlx.train import loop

  def call(data=tiny_images, family='efficientnet', strategy='linear_probe', **options):
    given = {**QUICK, 'cache': 'memory', 'strategy': strategy, **options}
    e = tlx.Experiment(tiny_models[family], f'folder:{data}', out=str(tmp_path / 'run'), **given)
    prepared = action.prepare(e, terminal.Console(quiet=True))
    recipe, place = action.recipe(prepared), prepared.placement
    x = prepared.experiment
    settings = Settings(x.batch_size, x.seed, x.workers, x.cache, x.cache_views, x.sampling, x.compile)
    inputs = Inputs(settings, prepared.data.splits, recipe, place, tmp_path / 'run/features', print)
    stretch = loop.stretches(prepared.phases, prepared.steps)[0]
    return inputs.of(stretch, place.put_state(dict(prepared.pretrained.variables))), prepared, recipe

  return call


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_features_have_the_dtype_that_the_layer_gives(views, dtype):
  of = lambda strategy: jax.tree.leaves(next(views(strategy=strategy, dtype=dtype)[0].batches(0))['image'])[0].dtype
  assert of('partial:2') == dtype
  assert of('linear_probe') == 'float32'  # pooling and the head are in float32 whatever the layers compute in


@pytest.mark.slow
def test_each_batch_draws_one_of_the_views_that_the_training_step_would_make(views):
  """With the same numbers, the step's own augmentation gives these features; all views are drawn, at every restart."""
  view, prepared, recipe = views(augment='light', cache_views=3)
  source, size = prepared.data.splits['train'], prepared.experiment.image_size
  canvas, key = transforms.canvas((round(size * 8 / 7),) * 2), jax.random.fold_in(jax.random.key(0), boundary.STREAM)
  photos = [decode.decode(source[i].image, min_size=canvas.min_size // 2) for i in range(30)]
  pixels, aspects = zip(*[(canvas(x), x.shape[1] / x.shape[0]) for x in photos])
  module, variables = prepared.pretrained.module, prepared.pretrained.variables
  expected = []
  for k in range(3):
    drawn = augment.augment_batch(
      key, np.stack(pixels), np.float32(aspects), recipe.augment, (size, size), np.arange(30) + 30 * k
    )[0]
    expected.append(module.apply(variables, recipe.inputs(drawn), method='features')['pooled'])
  expected = np.stack(expected)  # [view, image, d]
  batches = view.batches(0)
  seen, first = np.zeros((3, 30), int), [next(batches) for _ in range(60)]
  for batch in first:
    distance = np.abs(expected[:, :, None] - np.asarray(batch['image']['pooled'])).max(axis=-1)  # [view, image, b]
    assert distance.min(axis=(0, 1)).max() < 1e-4
    for row in range(8):
      k, i = np.unravel_index(distance[..., row].argmin(), (3, 30))
      assert source.labels[i] == batch['target']['label'][row]
      seen[k, i] += 1
  batches.close()
  assert (seen.sum(axis=0) == 16).all()  # epochs
  assert np.abs(seen.sum(axis=1) - 160).max() < 40 and (seen > 0).mean() > 0.95  # 480 draws among 3, 16 for an image
  again = view.batches(17)
  np.testing.assert_array_equal(next(again)['image']['pooled'], first[17]['image']['pooled'])
  again.close()


def test_what_views_cannot_do_is_refused_in_a_line(finetune):
  for options, line in (
    ({'augment': 'none'}, '--cache-views 4: without augmentation all views are the same; add --augment light'),
    ({'augment': 'medium'}, '--cache-views 4: no fresh pixels to mix; add --mixup 0'),
    ({'augment': 'light', 'cache': 'off'}, '--cache-views 4: --cache off keeps none; leave it out'),
    ({'augment': 'light', 'cache_views': -1}, '--cache-views -1: must be 0 or more'),
  ):
    with pytest.raises(tlx.UsageError) as error:
      finetune(strategy='linear_probe', **{'cache_views': 4, **options})
    assert str(error.value) == line
