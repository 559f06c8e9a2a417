"""A frozen backbone costs one forward pass: XLA's own count of the compiled train step, which is never run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx import catalog, pretrained, trees
from tlx.data import augment
from tlx.tasks.classification import Classification
from tlx.train import optimizer, state, step
from tlx.types import Preprocess

MODELS = ['efficientnet_test', 'resnet_test', pytest.param('efficientnet_lite0', marks=pytest.mark.slow)]
OTHERS = sorted(name for name in catalog.variants() if name.endswith('_test') and name not in MODELS)
PIXELS, BATCH, CLASSES = 96, 8, 5
# XLA's passes, which decide what is computed, all run; LLVM, which only makes it fast, need not.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def flops(function, *arguments, **options):
  """Of the compiled program."""
  found = jax.jit(function, **options).lower(*arguments).compile(QUICK).cost_analysis()
  return (found[0] if isinstance(found, list) else found)['flops']


def setting(name, strategy, **changes):
  """(recipe, phase, transformation, abstract state, abstract batch): shapes alone, no array is made."""
  module = pretrained.build(catalog.variant(name), CLASSES, dropout=0.2)
  side = getattr(module.backbone.config, 'size', PIXELS)
  recipe = step.Recipe(
    module, Classification(CLASSES, label_smoothing=0.1), Preprocess(size=side, crop=1.0), ema=0.99, **changes
  )
  phase = catalog.strategy(strategy).phases(module.backbone.names)[0]
  variables = pretrained.abstract(module)
  tx = optimizer.Optimizer('adamw', clip_norm=1.0).build(phase, 100, state.split(variables['params'], phase)[0])
  abstract = jax.eval_shape(lambda variables: state.create(variables, phase, tx, seed=0, ema=True), variables)
  batch = {
    'image': jax.ShapeDtypeStruct((BATCH, side, side, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    'mask': jax.ShapeDtypeStruct((BATCH,), bool),
    'aspect': jax.ShapeDtypeStruct((BATCH,), jnp.float32),
  }
  return recipe, phase, tx, abstract, batch


def train_flops(name, strategy, **changes):
  """Of the trainer's own step: clipped AdamW, gradient norm, moving average."""
  recipe, phase, tx, abstract, batch = setting(name, strategy, **changes)
  return flops(step.train_step(recipe, phase, tx), abstract, batch, donate_argnums=0)


@pytest.fixture(scope='module', params=MODELS)
def forward(request):
  """(model's name, FLOPs of its evaluation pass)."""
  return request.param, forward_flops(request.param)


def forward_flops(name):
  """Of an evaluation pass over the same batch of uint8 pixels."""
  recipe, _, _, abstract, batch = setting(name, 'linear_probe')
  evaluate = lambda variables, images: recipe.model.apply(variables, recipe.inputs(augment.to_float(images)))
  return flops(evaluate, abstract.variables, batch['image'])


def counted_iterations():
  """How often XLA's count includes the body of a scan of two iterations: once on a CPU of today's jax."""
  matmul = lambda x, w: (x @ w, None)
  x, w = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((2, 64, 64), jnp.float32)
  body = flops(lambda x, w: x @ w, x, x)
  return round(flops(lambda x, w: jax.lax.scan(matmul, x, w)[0], x, w) / body)


def test_a_probe_costs_a_forward_pass(forward):
  name, reference = forward
  ratio = train_flops(name, 'linear_probe') / reference
  print(f'{name}: forward {reference:.4g} FLOPs, linear probe {ratio:.4f}')
  assert 0.9 < ratio <= 1.05


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_a_probe_costs_a_forward_pass_in_every_family(name):
  test_a_probe_costs_a_forward_pass((name, forward_flops(name)))


def test_micro_batches_cost_no_more(forward):
  name, reference = forward
  # The scan's body, half the batch, may be counted once; all of the step times what is missing bounds the true cost
  # from above, because it also repeats what is outside the scan.
  missing = 2 / counted_iterations()
  ratio = missing * train_flops(name, 'linear_probe', micro_batches=2) / reference
  print(f'{name}: linear probe in two micro-batches {ratio:.4f} (counted {2 / missing:.0f} of 2)')
  assert 0.9 < ratio <= 1.05


def test_full_fine_tuning_costs_far_more(forward):
  """So the bound above can fail."""
  name, reference = forward
  ratio = train_flops(name, 'full') / reference
  print(f'{name}: full {ratio:.3f}')
  assert ratio >= 2.5


@pytest.mark.parametrize('name', [*MODELS, *OTHERS])
@pytest.mark.parametrize('strategy', ['linear_probe', 'partial:1', 'full'])
def test_optimizer_state_is_of_what_learns(name, strategy):
  _, phase, _, abstract, _ = setting(name, strategy)
  trainable, frozen = state.split(abstract.params, phase)
  counters = [x for x in jax.tree.leaves(abstract.opt_state) if not x.shape]
  moments = trees.size_in_bytes(abstract.opt_state) - trees.size_in_bytes(counters)
  assert moments == 2 * trees.size_in_bytes(trainable)  # Adam's two
  assert trees.size_in_bytes(abstract.ema) == trees.size_in_bytes(trainable)
  assert np.sign(trees.count(frozen)) == (strategy != 'full')
