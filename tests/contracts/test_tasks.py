"""Every task, found by listing the folder: padding counts for nothing, parts add up, a run goes from data to report."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import matrix, side

import tlx
from tlx import catalog, pretrained, trees
from tlx.actions import runs
from tlx.actions.evaluate import evaluate
from tlx.actions.predict import predict
from tlx.data import augment
from tlx.evaluate import exact
from tlx.train import optimizer, sharding, state, step
from tlx.types import DatasetInfo, Geometry, Preprocess

SHAPE, SIZE, CLASSES = (40, 48), 6, 3
RNG = np.random.default_rng(0)
ANNOTATIONS = {  # of an image of SHAPE
  'classification': lambda: int(RNG.integers(CLASSES)),
  'multilabel': lambda: np.flatnonzero(RNG.integers(0, 2, CLASSES)).tolist(),
  'segmentation': lambda: RNG.choice([0, 1, 2, 255], SHAPE).astype(np.uint8),
}
TASKS = catalog.names('tasks')


@pytest.fixture(params=TASKS)
def task(request):
  names = tuple(f'class {i}' for i in range(CLASSES))
  info = DatasetInfo('x', names, {'train': (5, 3, 2)}, SHAPE, task=request.param)
  return catalog.task(request.param).bind(info)


def name_of(task) -> str:
  return type(task).__module__.split('.')[2]


def targets(task, count=SIZE):
  geometry = Geometry(*SHAPE, 0, 0, *SHAPE)
  made = [task.encode(ANNOTATIONS[name_of(task)](), geometry, SHAPE) for _ in range(count)]
  return {name: np.stack([target[name] for target in made]) for name in made[0]}


def model_of(task) -> tlx.Pretrained:
  head = None if task.default_head == 'linear' else task.default_head
  module = pretrained.build(catalog.variant('mobilenetv1_test'), CLASSES, head=head)
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *SHAPE, 3)))
  return tlx.Pretrained(module, variables, Preprocess(SHAPE, 1.0, mode='squash'), task.class_names, None)


def batch_of(task, count=SIZE):
  rng = np.random.default_rng(1)
  return {
    'image': rng.integers(0, 256, (count, *SHAPE, 3), dtype=np.uint8),
    'mask': np.ones(count, bool),
    'geometry': np.tile(np.float32([*SHAPE, 0, 0, *SHAPE]), (count, 1)),
    'target': targets(task, count),
    'index': np.arange(count, dtype=np.int32),
  }


def test_every_task_is_known_here():
  assert set(ANNOTATIONS) == set(TASKS), 'give this test an annotation of the new task'


def test_a_blank_target_has_the_shapes_and_dtypes_of_a_real_one(task):
  real, blank = targets(task, 1), task.blank(SHAPE)
  assert {n: (x.shape[1:], x.dtype) for n, x in real.items()} == {n: (x.shape, x.dtype) for n, x in blank.items()}


def test_padding_counts_for_nothing_and_parts_add_up(task):
  model, batch = model_of(task), batch_of(task)
  outputs = jax.jit(model.module.apply)(model.variables, augment.to_float(batch['image']))
  mask = np.arange(SIZE) < SIZE - 2
  keep = lambda tree, part: jax.tree.map(lambda x: x[part], tree)
  spoilt = jnp.where(mask.reshape(-1, *[1] * (outputs.ndim - 1)), outputs, 1e3)
  other = jax.tree.map(lambda x: np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, np.roll(x, 1, 0)), batch['target'])
  loss, weight = task.loss(outputs, batch['target'], mask)
  assert task.loss(spoilt, other, mask)[0] == pytest.approx(float(loss), rel=1e-6) and weight > 0
  parts = [task.loss(keep(outputs, s), keep(batch['target'], s), mask[s]) for s in (slice(0, 2), slice(2, None))]
  assert sum(float(p[0]) for p in parts) == pytest.approx(float(loss), rel=1e-5)
  assert sum(float(p[1]) for p in parts) == float(weight)
  summed = lambda o, t, m: jax.device_get(task.evaluate(o, t, m))
  (whole, rows), (again, _) = summed(outputs, batch['target'], mask), summed(spoilt, other, mask)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, again)
  halves = [summed(keep(outputs, s), keep(batch['target'], s), mask[s])[0] for s in (slice(0, 3), slice(3, None))]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), exact.merge(*halves), whole)
  real = {name: x[mask] for name, x in rows.items()} | {'index': np.arange(mask.sum())}
  found = task.summary(exact.merge(whole, jax.tree.map(np.zeros_like, whole)), real)
  assert set(task.metrics) <= found.keys() and found['count'] == mask.sum() and task.primary in task.metrics


@pytest.mark.parametrize('learns', matrix(['linear_probe', 'full'], ['full']))
def test_a_step_is_the_same_by_micro_batches_and_by_pmap_and_keeps_what_is_frozen(task, learns):
  model, batch = model_of(task), batch_of(task)
  (phase,) = catalog.strategy(learns).phases(model.module.backbone.names)
  tx = optimizer.Optimizer('sgd', 0.1, warmup=0.0).build(phase, 4, state.split(model.variables['params'], phase)[0])
  made = step.Recipe(model.module, task, model.preprocess, norm_statistics='frozen')
  start = state.create(model.variables, phase, tx, seed=0, ema=False)
  results = []
  for kind, parts in (('jit', 1), ('jit', 2), ('pmap', 1)):
    if parts > 1 and any('head' in path for path in trees.flatten(model.variables.get('batch_stats', {}))):
      continue  # batch norms of a head see another batch in each part
    place = sharding.make(kind)
    placed, given = place.put_state(start), place.put_batch(batch)
    compiled = place.train(step.train_step(dataclasses.replace(made, micro_batches=parts), phase, tx), placed, given)
    after, metrics = compiled(placed, given)
    results.append((jax.device_get(place.one(after)), jax.device_get(place.one(metrics))))
  for after, metrics in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), metrics, results[0][1])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, after.params, results[0][0].params)
  after, old = results[0][0], model.variables
  moved = [p for p, x in trees.flatten(after.params).items() if not np.array_equal(x, trees.flatten(old['params'])[p])]
  assert moved and all(path.startswith('head') for path in moved) == (learns == 'linear_probe')
  kept = {p: x for p, x in trees.flatten(after.batch_stats).items() if p.startswith('backbone')}
  for path, x in kept.items():
    np.testing.assert_array_equal(x, trees.flatten(old['batch_stats'])[path])


def test_mixing_is_refused_or_gives_a_target_of_shares(task):
  target = {name: jnp.asarray(x) for name, x in targets(task).items()}
  mixed = task.mix(target, jnp.ones(SIZE))
  if mixed is not None:  # a share of one is the target as it was
    outputs = jnp.asarray(RNG.normal(size=(SIZE, CLASSES)), jnp.float32)
    mask = np.ones(SIZE, bool)
    assert float(task.loss(outputs, mixed, mask)[0]) == pytest.approx(float(task.loss(outputs, target, mask)[0]))


def folder_of(name, root):
  """A data set of the task, as a user would bring it; its spec."""
  rng = np.random.default_rng(0)

  def picture(path, colours):
    pixels = rng.integers(0, 100, (*SHAPE, 3), dtype=np.uint8)
    for c in colours:
      pixels[:, c * 16 : (c + 1) * 16, c] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)

  table = []
  for i in range(18):
    split, colours = ('train', 'val')[i % 3 == 2], sorted({i // 3 % CLASSES, int(rng.integers(CLASSES))})
    if name == 'classification':
      picture(root / split / 'rgb'[colours[0]] / f'{i}.png', colours[:1])
    elif name == 'multilabel':
      picture(root / f'{i}.png', colours)
      table.append(f'{i}.png,{";".join("rgb"[c] for c in colours)},{split}')
    else:
      picture(root / split / 'images' / f'{i}.png', colours)
      mask = np.full(SHAPE, 3, np.uint8)
      for c in range(CLASSES):
        mask[:, c * 16 : (c + 1) * 16] = c if c in colours else 3
      mask[:2] = 255
      (root / split / 'masks').mkdir(parents=True, exist_ok=True)
      Image.fromarray(mask).save(root / split / 'masks' / f'{i}.png')
  if table:
    (root / 'tags.csv').write_text('\n'.join(['file,tags,split', *table]))
  return {'classification': 'folder', 'multilabel': 'tags', 'segmentation': 'masks'}[name] + f':{root}'


def quick(name):
  """Options of a run of seconds."""
  narrow = {'image_size': '40x48', 'head': 'unet(widths=(8, 8, 8, 8, 8))'}
  seen = narrow if name == 'segmentation' else {'image_size': 32}
  return {'epochs': 2, 'batch_size': 6, 'optimizer': 'sgd', 'lr': 0.1, 'workers': 1, **seen}


@pytest.mark.parametrize('name', matrix(TASKS, ['multilabel', 'segmentation']))
def test_from_data_to_report(name, tiny_model, tmp_path):
  data = folder_of(name, tmp_path / 'data')
  experiment = tlx.Experiment(tiny_model, data, out=str(tmp_path / 'run'), **quick(name))
  result = tlx.finetune(experiment, quiet=True)
  run, task = tmp_path / 'run', runs.task_of(runs.load_run(tmp_path / 'run'))
  assert result.metrics['count'] == 6 and 0 <= result.metrics[task.primary] <= 1
  assert json.loads((run / 'experiment.json').read_text())['task'].startswith(name)
  again = evaluate(run)
  assert again[task.primary] == pytest.approx(result.metrics[task.primary], abs=1e-6)
  page = (run / 'report.html').read_text()
  assert all(f'<section id="{s.name.lower()}">' in page for s in task.sections({'folder': run, **EMPTY}))
  photo = next((tmp_path / 'data').rglob('*.png'))
  (found,) = predict(str(run), [photo], out=tmp_path / 'out')
  assert found['classes'] and found['classes'][0]['name'] in result.pretrained.class_names
  if task.dense:
    assert np.asarray(Image.open(found['mask'])).shape == SHAPE and np.asarray(Image.open(found['overlay'])).ndim == 3


@pytest.mark.full
@pytest.mark.parametrize('name', TASKS)
def test_a_probe_on_kept_features_gives_the_same_numbers(name, tiny_model, tmp_path):
  data = folder_of(name, tmp_path / 'data')
  probes = [
    tlx.finetune(
      tlx.Experiment(
        tiny_model, data, 'linear_probe', str(tmp_path / cache), augment='none', cache=cache, **quick(name)
      ),
      quiet=True,
    ).metrics
    for cache in ('memory', 'off')
  ]
  task = runs.task_of(runs.load_run(tmp_path / 'off'))
  assert probes[0][task.primary] == pytest.approx(probes[1][task.primary], abs=1e-4)
  assert probes[0]['loss'] == pytest.approx(probes[1]['loss'], rel=1e-3) and probes[0]['prefix_seconds'] > 0


EMPTY = {'evaluation': {}, 'result': {}, 'mistakes': [], 'metrics': [], 'experiment': {'data': {}}}


def test_a_head_of_ones_own(tiny_model, tiny_images, tmp_path):
  import flax.linen as nn

  class Own(nn.Module):
    @nn.compact
    def __call__(self, features, train=False):
      return nn.Dense(3, name='out')(features['pooled'])

  quick = {'epochs': 2, 'batch_size': 8, 'image_size': 32, 'augment': 'none', 'workers': 1}
  e = tlx.Experiment(tiny_model, f'folder:{tiny_images}', 'linear_probe', str(tmp_path / 'run'), head=Own(), **quick)
  result = tlx.finetune(e, quiet=True)
  head = result.pretrained.variables['params']['head']
  assert result.metrics['trainable_parameters'] == sum(x.size for x in jax.tree.leaves(head))
  with pytest.raises(tlx.UsageError, match=r'pass it: tlx.load\(..., head=...\)'):
    tlx.load(str(tmp_path / 'run/model'))
  again = tlx.load(str(tmp_path / 'run/model'), head=Own())
  jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(result.pretrained.variables))


HEADS = ('mlp(hidden=8)', 'mlp(hidden=8, pool=max)', 'linear(pool=flatten)', 'linear(pool=max)')


@pytest.mark.parametrize('spec', HEADS)
def test_other_heads_of_a_classifier_come_back(spec, tmp_path):
  variant = catalog.variant('mobilenetv1_test')
  module = pretrained.build(variant, 5, head=spec)
  shape = (side(module), side(module))
  variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *shape, 3)))
  preprocess = Preprocess(shape[0], 1.0)
  tlx.save(tmp_path / 'm', module, variables, preprocess=preprocess, class_names=tuple('abcde'))
  again = tlx.load(str(tmp_path / 'm'))
  images = RNG.normal(size=(2, *shape, 3)).astype(np.float32)
  apply = lambda module, variables: jax.jit(module.apply)(variables, images)
  np.testing.assert_array_equal(apply(again.module, again.variables), apply(module, variables))
  assert tuple(again.class_names) == tuple('abcde')


def test_options_that_a_task_or_head_lacks_are_one_line_each(tiny_model, tiny_images, tmp_path):
  given = {'model': tiny_model, 'data': f'folder:{tiny_images}', 'out': str(tmp_path / 'run')}
  for options, line in (
    ({'task': 'segmentation'}, 'has labels for classification, not for segmentation'),
    ({'task': 'segmentatoin'}, 'did you mean segmentation'),
    ({'head': 'unett'}, 'did you mean unet'),
    ({'head': 'unet(width=3)'}, 'has no option width'),
    ({'head_hidden': 64}, '--head-hidden: the head linear has no such option'),
    ({'image_size': '40by48'}, 'give a side such as 224'),
    ({'pool': 'min'}, 'no pool'),
  ):
    with pytest.raises(tlx.UsageError, match=line.replace('(', r'\(')):
      tlx.finetune(tlx.Experiment(**given, **options), quiet=True)


def test_all_that_masks_cannot_do_is_said_at_once(tiny_model, tmp_path):
  """And nothing is written where the options are wrong."""
  data, out = folder_of('segmentation', tmp_path / 'data'), tmp_path / 'run'
  common = quick('segmentation')

  def lines(**options):
    with pytest.raises(tlx.UsageError) as caught:
      tlx.finetune(tlx.Experiment(tiny_model, data, out=str(out), **(common | options)), quiet=True)
    return str(caught.value).splitlines()

  options = {'mixup': 0.2, 'label_smoothing': 0.1, 'pool': 'max', 'head_hidden': 4, 'randaugment': 2}
  problems = lines(**options)
  assert {line.split()[0].strip(':') for line in problems} == {f'--{name.replace("_", "-")}' for name in options}
  assert len(problems) == len(options)
  (problem,) = lines(image_size=2)
  assert problem.startswith('--image-size 2x2: the backbone reduces by ')
  assert lines(epochs=1, batch_size=12) == ['1 step is too few for 2 phases; give more epochs, or a smaller batch size']
  assert not out.exists()
