"""The train step: the same numbers however a batch is cut or spread, padding without weight, and no hidden state."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import environment
from tiny import CLASSES, batch, built, matrix, side
from tiny import task as classifier

from tlx import catalog, pretrained, trees
from tlx.data.augment import PRESETS
from tlx.train import optimizer, sharding, state, step
from tlx.types import Phase, Preprocess

PIXELS, SIZE = 32, 8
TINY = 'efficientnet_test'
# Depthwise convolutions; with stochastic depth; dense ones; tokens; windows; a second head: all else has the same step.
KINDS = ('mobilenetv1_test', TINY, 'resnet_test', 'vit_test', 'swin_test', 'inception_test')
# Steps along the gradient and keeps it as its state: a difference of parameters would lose digits.
SGD = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda grads, _, params=None: (jax.tree.map(jnp.negative, grads), grads),
)
DEVICES = 4


class Frozen:
  """A model whose batch norms use their running statistics and which drops nothing, while all of it learns."""

  def __init__(self, module):
    self.module = module

  def apply(self, variables, images, *, train, **options):
    return self.module.apply(variables, images, train=False, **options)


def recipe(module, task=None, **changes):
  return dataclasses.replace(
    step.Recipe(module, task or classifier(), Preprocess(size=PIXELS, crop=1.0)), **changes
  )


def phase_of(strategy, module) -> Phase:
  return catalog.strategy(strategy).phases(module.backbone.names)[0]


def close(a, b, limit, floor=1e-12):
  """Largest difference over the largest value of each leaf, or over `floor`."""
  a, b = trees.flatten(a), trees.flatten(b)
  assert a.keys() == b.keys()
  for path, x in b.items():
    error = np.abs(np.asarray(a[path], np.float64) - np.asarray(x, np.float64)).max() / max(np.abs(x).max(), floor)
    assert error < limit, f'{path}: {error:.1e}'


def same(a, b):
  return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


def begin(variables, phase, tx=SGD, ema=False):
  return state.create(variables, phase, tx, seed=0, ema=ema)


def run(made, variables, phase, data, tx=SGD):
  """(state of the optimizer, which is SGD's gradient, new state, metrics) of one step."""
  new, metrics = jax.jit(step.train_step(made, phase, tx))(begin(variables, phase, tx, bool(made.ema)), data)
  return new.opt_state, new, metrics


@pytest.mark.parametrize('kind', matrix(['linear_probe', 'full'], ['linear_probe']))
def test_micro_batches_change_nothing(kind):
  """No batch norm trains: for it a micro-batch is another batch."""
  module, variables, *_ = built(TINY)
  learner = module if kind == 'linear_probe' else Frozen(module)
  made = recipe(learner, augment=dataclasses.replace(PRESETS['light'], mixup=0.2))
  data = batch() | {'mask': np.arange(SIZE) != 3}  # so that micro-batches differ in how many examples count
  results = [
    run(dataclasses.replace(made, micro_batches=n), variables, phase_of(kind, module), data) for n in (1, 2, 4)
  ]
  gradient, new, metrics = results[0]
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(gradient))
  assert metrics['count'] == SIZE - 1 and largest > 1e-3
  for other, state_of_other, numbers in results[1:]:
    close(state_of_other.params, new.params, 1e-5)
    close(numbers, metrics, 1e-5)
    close(other, gradient, 1e-5, floor=1e-2 * largest)  # leaves whose terms cancel keep fewer digits


@pytest.mark.parametrize('name', matrix(['vit_test', 'swin_test', 'convnext_test'], ['vit_test']))
def test_micro_batches_drop_the_same_values(name):
  """Models without batch norm: each example has its own mask of dropout and stochastic depth."""
  module, variables, *_ = built(name, dropout=0.3, drop_path=0.3)
  phase, data = phase_of('full', module), batch(pixels=side(module, 64))
  made = recipe(module, preprocess=Preprocess(size=side(module, 64), crop=1.0))
  (gradient, _, numbers), *others = (
    run(dataclasses.replace(made, micro_batches=n), variables, phase, data) for n in (1, 2, 4)
  )
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(gradient))
  for other, _, same_numbers in others:
    close(same_numbers, numbers, 1e-5)
    close(other, gradient, 1e-4, floor=1e-2 * largest)


@pytest.mark.parametrize('kind', ['linear_probe', 'full'])
def test_padding_has_no_influence(kind):
  module, variables, *_ = built(TINY)
  made, phase = recipe(module if kind == 'linear_probe' else Frozen(module), micro_batches=1), phase_of(kind, module)
  real = SIZE - 3
  data = batch() | {'mask': np.arange(SIZE) < real}
  other = batch(seed=1)
  replaced = lambda a, b: np.concatenate([a[:real], b[real:]])
  changed = data | {name: jax.tree.map(replaced, data[name], other[name]) for name in ('image', 'target', 'geometry')}
  compiled = jax.jit(step.train_step(made, phase, SGD))
  start = begin(variables, phase)
  (one, numbers), (two, same_numbers) = compiled(start, data), compiled(start, changed)
  assert not np.array_equal(data['image'], changed['image']) and same((one, numbers), (two, same_numbers))
  short, short_numbers = compiled(start, jax.tree.map(lambda x: x[:real], data))
  close(one.params, short.params, 1e-5)
  close(numbers, short_numbers, 1e-5)
  assert numbers['count'] == real


@pytest.mark.parametrize(
  'task',
  [
    classifier(CLASSES, label_smoothing=0.2),
    classifier(CLASSES, focal_gamma=2.0),
    classifier(CLASSES, class_weights=(0.5, 2.0, 1.0, 0.1, 3.0)),
  ],
  ids=['label_smoothing', 'focal_gamma', 'class_weights'],
)
def test_the_loss_is_the_tasks(task):
  """Loss and the head's gradient from the formulas, in numpy."""
  module, variables, *_ = built(TINY)
  data = batch() | {'mask': np.arange(SIZE) != 3}
  gradient, _, metrics = run(recipe(module, task), variables, phase_of('linear_probe', module), data)
  inputs = recipe(module).inputs(data['image'].astype(np.float32) / 255)
  pooled = np.asarray(pretrained.features(module, variables, inputs)['pooled'], np.float64)
  head = variables['params']['head']['logits']
  logits = pooled @ np.asarray(head['kernel'], np.float64) + np.asarray(head['bias'], np.float64)

  def loss(bias):
    z = logits + bias
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    hard = np.eye(CLASSES)[data['target']['label']]
    targets = hard * (1 - task.label_smoothing) + task.label_smoothing / CLASSES
    each = -(targets * (1 - np.exp(log_p)) ** task.focal_gamma * log_p).sum(-1)
    weights = np.array(task.class_weights or np.ones(CLASSES))[data['target']['label']]
    return (each * weights * data['mask']).sum() / data['mask'].sum()

  assert float(metrics['loss']) == pytest.approx(loss(0.0), rel=1e-5)
  numeric = [(loss(h) - loss(-h)) / 2e-5 for h in 1e-5 * np.eye(CLASSES)]
  np.testing.assert_allclose(gradient['head']['logits']['bias'], numeric, atol=1e-5)
  assert metrics['loss'] != pytest.approx(loss_of_plain(logits, data), rel=1e-4)


def loss_of_plain(logits, data):
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -(log_p[np.arange(SIZE), data['target']['label']] * data['mask']).sum() / data['mask'].sum()


@pytest.mark.slow
def test_bfloat16_keeps_what_is_stored_in_float32():
  module, variables, *_ = built(TINY)
  phase, tx = phase_of('full', module), optax.sgd(0.1, momentum=0.9)
  results = [
    run(recipe(module, dtype=dtype, ema=0.9), variables, phase, batch(), tx) for dtype in (jnp.float32, jnp.bfloat16)
  ]
  (_, _, exact), (_, new, metrics) = results
  for leaf in jax.tree.leaves(
    (new.params, new.batch_stats, new.opt_state, new.ema, metrics['loss'], metrics['grad_norm'])
  ):
    assert leaf.dtype == jnp.float32
  assert not same(new.batch_stats, variables['batch_stats'])
  assert metrics['loss'] != exact['loss'] and float(metrics['loss']) == pytest.approx(float(exact['loss']), rel=0.05)
  text = str(
    jax.make_jaxpr(lambda v, x: module.apply(v, x))(
      variables, recipe(module, dtype=jnp.bfloat16).inputs(jnp.ones((1, PIXELS, PIXELS, 3)))
    )
  )
  assert 'bf16' in text


def test_the_average_has_its_closed_form():
  module, variables, *_ = built(TINY)
  phase, tx, decay = phase_of('linear_probe', module), optax.sgd(0.5), 0.7
  compiled = jax.jit(step.train_step(recipe(module, ema=decay), phase, tx))
  current, seen = begin(variables, phase, tx, ema=True), [variables['params']['head']]
  for i in range(4):
    current, _ = compiled(current, batch(i))
    seen.append(current.params['head'])
  weights = [decay**4, *((1 - decay) * decay ** (4 - i) for i in range(1, 5))]
  expected = jax.tree.map(lambda *leaves: sum(w * np.asarray(x, np.float64) for w, x in zip(weights, leaves)), *seen)
  close(current.ema, {'head': expected}, 1e-6)
  assert not same(current.ema['head'], current.params['head'])


def test_a_step_is_pure_and_its_state_is_donated():
  module, variables, *_ = built(TINY, dropout=0.3)
  phase = phase_of('linear_probe', module)
  made = recipe(module, augment=dataclasses.replace(PRESETS['light'], mixup=0.2), ema=0.9)
  place, start = sharding.make('jit'), begin(variables, phase, ema=True)
  data = place.put_batch(batch())
  compiled = place.train(step.train_step(made, phase, SGD), place.put_state(start), data)
  old = [place.put_state(start) for _ in range(3)]
  (one, numbers), (two, again) = compiled(old[0], data), compiled(old[1], data)
  assert same((one, numbers), (two, again))
  # What was put from the host may share its memory and is copied once; from then on each step reuses the last one's.
  compiled(one, data)
  kept = [jax.tree_util.keystr(p) for p, x in jax.tree_util.tree_leaves_with_path(one) if not x.is_deleted()]
  # This file's SGD overwrites its state without reading it, so jit drops that argument instead of reusing it.
  assert all(name.startswith('.opt_state') for name in kept), kept
  assert not any(x.is_deleted() for x in jax.tree.leaves((start, data)))
  # The step's number alone makes the next draw another one.
  _, later = compiled(old[2].replace(step=place.put_state(jnp.int32(1))), data)
  assert later['loss'] != numbers['loss']


@pytest.mark.parametrize('name', [pytest.param(KINDS[0], marks=pytest.mark.slow), *matrix(KINDS[1:], ())])
def test_pmap_equals_jit(name):
  """Three steps of full fine-tuning on four devices: batch norm trains, masks and pictures are random."""
  done = subprocess.run(
    [sys.executable, __file__, name], capture_output=True, text=True, timeout=280,
    env=environment(DEVICES) | {'PYTHONPATH': f'{Path(__file__).parents[2]}:{Path(__file__).parents[1]}'},
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr


def compare_placements(name):
  """On one device and on all, by jit and by pmap: one set of numbers."""
  assert len(jax.devices()) == DEVICES
  module, variables, *_ = built(name, dropout=0.2, drop_path=0.2)
  pixels = side(module)
  phase, data = phase_of('full', module), [batch(i, pixels=pixels) for i in range(3)]
  augmented = dataclasses.replace(PRESETS['light'], mixup=0.2)
  made = recipe(module, preprocess=Preprocess(size=pixels, crop=1.0), augment=augmented, ema=0.9)
  trainable, _ = state.split(variables['params'], phase)
  # Not Adam, which divides the rounding of a zero gradient by its own size.
  tx = optimizer.Optimizer('sgd', 0.05, warmup=0.0).build(phase, 10, trainable)
  places = [sharding.make('jit'), sharding.make('pmap'), sharding.Jit(jax.devices()[:1])]
  results = [
    advance(place, step.train_step(made, phase, tx), begin(variables, phase, tx, ema=True), data) for place in places
  ]
  for numbers, after in results[1:]:
    for ours, theirs in zip(numbers, results[0][0]):
      close(ours, theirs, 5e-5)  # the third step's are of parameters that may differ by 1e-4
    for part in ('params', 'batch_stats', 'ema'):
      close(getattr(after, part), getattr(results[0][1], part), 1e-4)
  assert not same(results[0][1].params, variables['params'])


def advance(place, train_step, start, data):
  """(each step's metrics, the last state), off the devices."""
  current, numbers = place.put_state(start), []
  compiled = place.train(train_step, current, place.put_batch(data[0]))
  for part in data:
    current, metrics = compiled(current, place.put_batch(part))
    numbers.append(jax.device_get(place.one(metrics)))
  return numbers, jax.device_get(place.one(current))


if __name__ == '__main__':
  compare_placements(sys.argv[1])
