"""A frozen backbone costs one forward pass: XLA's own count of the compiled train step, which is never run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tlx_command
from tiny import matrix
from tiny import task as tiny_task

from tlx import catalog, pretrained, trees
from tlx.cost import certificate
from tlx.data import augment
from tlx.train import optimizer, state, step
from tlx.types import Preprocess

MODELS = matrix(['efficientnet_test', 'resnet_test', 'efficientnet_lite0'], ['efficientnet_test', 'resnet_test'])
OTHERS = sorted(name for name in catalog.variants() if name.endswith('_test') and name not in MODELS)
PIXELS, BATCH, CLASSES = 96, 8, 5
OPTIMIZER = optimizer.Optimizer('adamw', clip_norm=1.0)


def compiled(function, *arguments, **options):
  return jax.jit(function, **options).lower(*arguments).compile(certificate.QUICK)


def flops(function, *arguments, **options):
  return certificate.flops(compiled(function, *arguments, **options))


def counted(program):
  """FLOPs as XLA counts them, to whom the body of a loop may be one."""
  return program.cost_analysis()['flops']


def setting(name, **changes):
  """(recipe, abstract variables, abstract batch): shapes alone, no array is made."""
  module = pretrained.build(catalog.variant(name), CLASSES, dropout=0.2)
  side = module.backbone.config.size or PIXELS
  recipe = step.Recipe(
    module, tiny_task(CLASSES, label_smoothing=0.1), Preprocess(size=side, crop=1.0), ema=0.99, **changes
  )
  return recipe, pretrained.abstract(module), certificate.example_batch(recipe.task, BATCH, (side, side))


def first_phase(recipe, strategy):
  return catalog.strategy(strategy).phases(recipe.model.backbone.names)[0]


def train_cost(name, strategy, **changes):
  """Of the trainer's own step: clipped AdamW, gradient norm, moving average."""
  recipe, variables, batch = setting(name, **changes)
  return certificate.train_cost(recipe, first_phase(recipe, strategy), OPTIMIZER, variables, batch)


@pytest.fixture(scope='module', params=MODELS)
def forward(request):
  """(model's name, FLOPs of its evaluation pass)."""
  return request.param, forward_flops(request.param)


def forward_flops(name):
  return certificate.forward_flops(*setting(name))


def counted_iterations():
  """How often XLA's count includes the body of a scan of two iterations: once on a CPU of today's jax."""
  matmul = lambda x, w: (x @ w, None)
  x, w = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((2, 64, 64), jnp.float32)
  body = counted(compiled(lambda x, w: x @ w, x, x))
  return round(counted(compiled(lambda x, w: jax.lax.scan(matmul, x, w)[0], x, w)) / body)


def test_products_in_loops_count_as_often_as_they_are_done():
  square = jax.ShapeDtypeStruct((64, 64), jnp.float32)
  twice = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=2)[0]
  nested = lambda x: jax.lax.scan(lambda x, _: (twice(x) @ x, None), x, None, length=5)[0] @ x
  assert flops(nested, square) == pytest.approx((5 * (2 + 1) + 1) * 2 * 64**3, rel=0.001)


def test_a_probe_costs_a_forward_pass(forward):
  name, reference = forward
  ratio = train_cost(name, 'linear_probe').flops / reference
  print(f'{name}: forward {reference:.4g} FLOPs, linear probe {ratio:.4f}')
  assert 0.9 < ratio <= 1.05


@pytest.mark.full
@pytest.mark.parametrize('name', OTHERS)
def test_a_probe_costs_a_forward_pass_in_every_family(name):
  test_a_probe_costs_a_forward_pass((name, forward_flops(name)))


def test_micro_batches_cost_no_more(forward):
  name, reference = forward
  # The scan's body, half the batch, may be counted once; all of the step times what is missing bounds the true cost
  # from above, because it also repeats what is outside the scan.
  missing = 2 / counted_iterations()
  recipe, variables, batch = setting(name, micro_batches=2)
  program, _ = certificate.train_program(recipe, first_phase(recipe, 'linear_probe'), OPTIMIZER, variables, batch)
  ratio = missing * counted(program) / reference
  print(f'{name}: linear probe in two micro-batches {ratio:.4f} (counted {2 / missing:.0f} of 2)')
  assert 0.9 < ratio <= 1.05


def test_the_forward_pass_is_counted_without_being_compiled(forward):
  name, reference = forward
  assert certificate.forward_flops_uncompiled(*setting(name)) == pytest.approx(reference, rel=0.05)


def test_full_fine_tuning_costs_far_more(forward):
  """So the bound above can fail."""
  name, reference = forward
  ratio = train_cost(name, 'full').flops / reference
  print(f'{name}: full {ratio:.3f}')
  assert ratio >= 2.5


@pytest.mark.parametrize('name', matrix([*MODELS[:2], 'vit_test'], ['vit_test']))
def test_partial_costs_the_forward_and_the_backward_of_the_suffix(name):
  """The reference is put together from a prefix and a suffix that share nothing with the trainer's step."""
  (recipe, variables, _), learning = setting(name), 2
  # Of 64, or the optimizer shows, whose cost no batch changes.
  batch = certificate.example_batch(recipe.task, 64, recipe.preprocess.shape)
  names, phase = recipe.model.backbone.names, first_phase(recipe, f'partial:{learning}')
  boundary, images = names[-learning - 1], batch['image']
  inside = {collection: tree['backbone'] for collection, tree in variables.items()}

  def prefix(inside, images):
    return recipe.model.backbone.apply(inside, recipe.inputs(augment.to_float(images)), stop=boundary)[boundary]

  def suffix(params, others, x, labels):
    features, _ = recipe.model.backbone.apply(
      {**others, 'params': params['backbone']}, x, train=True, start=boundary, mutable=['batch_stats']
    )
    pooled = {'pooled': recipe.model.backbone.pool(features[names[-1]])}
    logits = recipe.model.head.apply({'params': params['head']}, pooled)
    return recipe.task.losses(logits, jax.nn.one_hot(labels, CLASSES)).mean()

  others = {name: tree for name, tree in inside.items() if name != 'params'}
  x = jax.eval_shape(prefix, inside, images)
  trainable, _ = state.split(variables['params'], phase)
  learns = flops(jax.value_and_grad(suffix), trainable, others, x, batch['target']['label'])
  expected = flops(prefix, inside, images) + learns
  ratio = certificate.train_cost(recipe, phase, OPTIMIZER, variables, batch).flops / expected
  print(f'{name}: partial:{learning} {ratio:.4f} of forward and backward of the suffix')
  assert 0.95 < ratio < 1.05


@pytest.mark.parametrize(
  ('name', 'strategy'),
  [
    pytest.param('resnet_test', 'linear_probe', marks=pytest.mark.full),
    pytest.param('vit_test', 'partial:1', marks=pytest.mark.full),
    ('vit_test', 'full'),
  ],
)
def test_devices_exchange_gradients_of_what_learns_alone(name, strategy):
  """No batch norm is in training mode in these; the 12 bytes are the loss, the accuracy and the count."""
  done = tlx_command('cost', '--model', name, '--strategy', strategy, '--devices', 4, '--num-classes', 5, '--json')
  found = json.loads(done.stdout)
  assert found['devices'] == 4
  assert found['allreduce_bytes'] == 4 * found['trainable_parameters'] + 12


@pytest.mark.slow
def test_what_is_kept_for_the_backward_pass_belongs_to_what_learns():
  probe, last, full = (
    train_cost('resnet_test', name).activation_bytes for name in ('linear_probe', 'partial:1', 'full')
  )
  assert probe < 0.01 * last < 0.01 * full


@pytest.mark.parametrize('name', matrix([*MODELS[:2], *OTHERS]))
@pytest.mark.parametrize('strategy', ['linear_probe', 'partial:1', 'full'])
def test_optimizer_state_is_of_what_learns(name, strategy):
  recipe, variables, _ = setting(name)
  phase = first_phase(recipe, strategy)
  tx = OPTIMIZER.build(phase, 100, state.split(variables['params'], phase)[0])
  abstract = jax.eval_shape(lambda variables: state.create(variables, phase, tx, seed=0, ema=True), variables)
  trainable, frozen = state.split(abstract.params, phase)
  counters = [x for x in jax.tree.leaves(abstract.opt_state) if not x.shape]
  moments = trees.size_in_bytes(abstract.opt_state) - trees.size_in_bytes(counters)
  assert moments == 2 * trees.size_in_bytes(trainable)  # Adam's two
  assert trees.size_in_bytes(abstract.ema) == trees.size_in_bytes(trainable)
  assert np.sign(trees.count(frozen)) == (strategy != 'full')
