"""Every strategy on every family: what is frozen stays bitwise, what learns moves, and nothing is forgotten."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, FAMILIES, batch, built, matrix, side, task

from tlx import catalog, labels, trees
from tlx.train import loop, optimizer, sharding, state, step
from tlx.types import Preprocess, Strategy, UsageError

TINY = {catalog.variant(n).family.__name__.split('.')[-1]: n for n in catalog.variants() if n.endswith('_test')}
STRATEGIES = [catalog.example(name) for name in catalog.names('strategies')]
OFTEN = {  # each strategy with one family; the full matrix has all with all
  'efficientnet': ('linear_probe', 'lp_ft', 'gradual', 'partial:3'),
  'vit': ('full', 'scratch', 'layerwise_decay:0.8'),
}


@pytest.fixture(scope='module', params=matrix(TINY, FAMILIES))
def model(request):
  return dropping(request.param)


def dropping(family):
  """The family's tiny variant, with all that is random in training."""
  return built(TINY[family], dropout=0.2, drop_path=0.1)


def recipe(model, **changes):
  made = step.Recipe(model.module, task(), Preprocess(size=side(model.module), crop=1.0), ema=0.9)
  return dataclasses.replace(made, **changes)


def test_every_strategy_has_its_family():
  assert {spec for specs in OFTEN.values() for spec in specs} == set(STRATEGIES)


@pytest.mark.parametrize('spec', STRATEGIES)
def test_a_strategy_says_whether_it_starts_from_pretrained_weights(spec):
  strategy = catalog.strategy(spec)
  assert Strategy in type(strategy).__mro__ and strategy.pretrained == (spec != 'scratch')


@pytest.mark.parametrize('spec', STRATEGIES)
def test_phases_fill_the_run_and_label_every_leaf(model, spec):
  layers = model.module.backbone.names
  phases = catalog.strategy(spec).phases(layers)
  assert sum(phase.share for phase in phases) == pytest.approx(1)
  for phase in phases:
    assert set(phase.rates) <= {*layers, labels.HEAD} and labels.HEAD in phase.rates
    rows = optimizer.describe(model.variables['params'], phase, 1e-3)
    assert sum(row.parameters for row in rows) == trees.count(model.variables['params'])
    assert sum(row.tensors for row in rows) == len(trees.flatten(model.variables['params']))


@pytest.mark.parametrize(
  'family, spec',
  [
    pytest.param(family, spec, marks=() if spec in OFTEN.get(family, ()) else pytest.mark.full)
    for family in TINY
    for spec in STRATEGIES
  ],
)
def test_frozen_stays_bitwise_and_the_rest_learns(family, spec):
  model = dropping(family)
  before = jax.tree.map(np.array, model.variables)
  place = sharding.make('jit')
  current = None
  for phase in catalog.strategy(spec).phases(model.module.backbone.names)[:2]:
    trainable, _ = state.split(model.variables['params'], phase)
    # Weight decay and the moving average on: neither may touch what is frozen.
    tx = optimizer.Optimizer('adamw', 0.02, weight_decay=0.1, warmup=0.0).build(phase, 4, trainable)
    current = (
      state.create(model.variables, phase, tx, seed=0, ema=True) if current is None else state.enter(current, phase, tx)
    )
    placed = place.put_state(current)
    batches = [place.put_batch(batch(i, pixels=side(model.module))) for i in range(2)]
    compiled = place.train(step.train_step(recipe(model, micro_batches=2), phase, tx), placed, batches[0])
    for given in batches:
      placed, metrics = compiled(placed, given)
      assert np.isfinite(metrics['loss']) and metrics['grad_norm'] > 0
    current = placed
    frozen = lambda path, phase=phase: labels.layer_of(path) not in phase.rates
    for collection in ('params', 'batch_stats'):
      after, old = trees.flatten(current.variables[collection]), trees.flatten(before.get(collection, {}))
      averaged = trees.flatten(current.averaged[collection])
      assert after.keys() == old.keys()
      for path in after:
        if frozen(path):
          np.testing.assert_array_equal(after[path], old[path], err_msg=path)
          np.testing.assert_array_equal(averaged[path], old[path], err_msg=path)
        else:
          assert not np.array_equal(after[path], old[path]), f'{path} did not learn'


@pytest.mark.parametrize('family', matrix(['efficientnet', 'densenet'], ['efficientnet']))
@pytest.mark.parametrize('compiled', matrix(['jit', 'pmap'], ['jit']))
def test_stored_statistics_stay_while_scale_and_offset_learn(family, compiled):
  model = dropping(family)
  (phase,) = catalog.strategy('full').phases(model.module.backbone.names)
  tx = optimizer.Optimizer('sgd', 0.1, warmup=0.0).build(phase, 4, state.split(model.variables['params'], phase)[0])
  place = sharding.make(compiled)
  placed = place.put_state(state.create(model.variables, phase, tx, seed=0, ema=False))
  given = place.put_batch(batch(0, pixels=side(model.module)))
  step_of = lambda statistics: step.train_step(recipe(model, ema=0.0, norm_statistics=statistics), phase, tx)
  after, metrics = place.train(step_of('frozen'), placed, given)(placed, given)
  after, old = place.one(after), model.variables
  moved = lambda collection, trees_of: [
    path
    for path, leaf in trees.flatten(getattr(trees_of, collection)).items()
    if not np.array_equal(leaf, trees.flatten(old[collection])[path])
  ]
  assert not moved('batch_stats', after)
  assert any('/norm' in path and path.endswith(('scale', 'bias')) for path in moved('params', after))
  placed = place.put_state(state.create(model.variables, phase, tx, seed=0, ema=False))
  other, numbers = place.train(step_of('batch'), placed, given)(placed, given)
  assert moved('batch_stats', place.one(other))
  assert float(np.ravel(numbers['loss'])[0]) != float(np.ravel(metrics['loss'])[0])


def test_a_probe_learns_d_times_k_plus_k(model):
  (phase,) = catalog.strategy('linear_probe').phases(model.module.backbone.names)
  trainable, _ = state.split(model.variables['params'], phase)
  width = model.module.backbone.config.width
  assert trees.count(trainable) == width * CLASSES + CLASSES
  moments = optimizer.Optimizer().build(phase, 10, trainable).init(trainable)
  sizes = [x.size for x in jax.tree.leaves(moments) if x.ndim]
  assert sum(sizes) == 2 * trees.count(trainable)  # Adam's two moments of the head, and nothing for the backbone


def test_what_was_learning_keeps_its_moments(model):
  first, second = catalog.strategy('lp_ft').phases(model.module.backbone.names)
  params = model.variables['params']
  build = lambda phase: optimizer.Optimizer().build(phase, 10, state.split(params, phase)[0])
  old = state.create(model.variables, first, build(first), seed=0, ema=True)
  gradient = jax.tree.map(jnp.ones_like, state.split(params, first)[0])
  _, opt_state = build(first).update(gradient, old.opt_state, state.split(params, first)[0])
  new = state.enter(old.replace(opt_state=opt_state), second, build(second))
  by_label = new.opt_state[1].inner_states
  head, stem = (jax.tree.leaves(by_label[name]) for name in (labels.HEAD, 'stem'))
  assert int(head[0]) == 1 and all(np.any(x) for x in head)  # Adam's count and moments go on
  assert int(stem[0]) == 0 and not any(np.any(x) for x in stem)  # fresh ones start at zero
  assert all(int(x) == 0 for x in jax.tree.leaves(new.opt_state[2]))  # schedules begin with the phase


def test_stretches_cover_all_steps_and_give_each_phase_one(model):
  phases = catalog.strategy('gradual').phases(model.module.backbone.names)
  for steps in (len(phases), 7, 100, 1001):
    found = loop.stretches(phases, steps)
    assert found[0].start == 0 and found[-1].end == steps
    assert all(s.end > s.start for s in found)
    assert all(a.end == b.start for a, b in zip(found, found[1:]))


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('linear_prob', 'did you mean linear_probe'),
    ('partial', 'needs a number, for example partial:3'),
    ('partial:three', 'is no int'),
    ('full:3', 'takes no argument'),
    ('layerwise_decay:0', 'must lie in'),
  ],
)
def test_wrong_strategies_get_one_clear_line(spec, message):
  with pytest.raises(UsageError, match=message):
    catalog.strategy(spec)


def test_more_layers_than_there_are_is_refused(model):
  with pytest.raises(UsageError, match='choose 0 to'):
    catalog.strategy('partial:99').phases(model.module.backbone.names)
