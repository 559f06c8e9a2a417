"""Every family keeps the one idea: an ordered list of named layers, and one table of weights for both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomised

import tlx
from tlx import catalog, labels, pretrained, trees
from tlx.types import Source, UsageError
from tlx.weights import rules

TINY = [name for name in catalog.variants() if name.endswith('_test')]
OFTEN = ('efficientnet_test', 'resnet_test', 'vit_test')
IMAGES = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)


def often(name):
  """No mark for what every run of the tests takes the time for."""
  return () if name in OFTEN else pytest.mark.slow


@pytest.fixture(scope='module', params=TINY)
def model(request):
  return built(request.param)


def built(name):
  """The variant with five classes, every tensor random."""
  variant = catalog.variant(name)
  module = pretrained.build(variant, 5)
  preprocess = tlx.Preprocess(getattr(variant.config, 'size', 64), 1.0)
  variables = jax.tree.map(jnp.asarray, randomised(pretrained.abstract(module)))
  return tlx.Pretrained(module, variables, preprocess, (), Source(variant.name))


def test_every_family_has_a_tiny_variant():
  assert {catalog.variant(name).family.__name__.split('.')[-1] for name in TINY} == set(catalog.names('models'))


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=() if name in TINY else pytest.mark.slow) for name in catalog.variants()]
)
def test_layouts_name_every_leaf_once(name):
  variant = catalog.variant(name)
  like = trees.flatten(pretrained.abstract(pretrained.build(variant, 10)))
  for layout in variant.family.LAYOUTS.values():
    table = list(layout(variant.config))
    sources = [r.source for r in table]
    assert len(set(sources)) == len(sources)
    assert rules.by_target(table).keys() == like.keys()


def test_every_leaf_lies_in_one_layer_and_none_is_empty(model):
  names = model.module.backbone.names
  assert len(set(names)) == len(names) and labels.HEAD not in names
  assert {labels.layer_of(path) for path in trees.flatten(model.variables['params'])} == {*names, labels.HEAD}


def test_features_are_the_layers_in_order(model):
  features = tlx.features(model.module, model.variables, IMAGES)
  assert tuple(features) == (*model.module.backbone.names, 'pooled')
  assert features['pooled'].shape == (2, model.module.backbone.config.width)


def test_prefix_and_suffix_make_the_whole(model):
  backbone, names = model.module.backbone, model.module.backbone.names
  variables = {name: tree['backbone'] for name, tree in model.variables.items() if 'backbone' in tree}
  whole = backbone.apply(variables, IMAGES)
  for middle in names[:-1]:
    prefix = backbone.apply(variables, IMAGES, stop=middle)
    suffix = backbone.apply(variables, prefix[middle], start=middle)
    assert (*prefix, *suffix) == names
    np.testing.assert_array_equal(suffix[names[-1]], whole[names[-1]])


def test_unknown_layer_is_named(model):
  with pytest.raises(UsageError, match='no such layer: nowhere; the backbone has stem'):
    model.module.backbone.apply({'params': {}}, IMAGES, stop='nowhere')


def test_write_then_read_gives_the_same_bits(model):
  variant = catalog.variant(model.source.variant)
  for layout in variant.family.LAYOUTS.values():
    table = tuple(layout(variant.config))
    back, dropped = rules.read(rules.write(model.variables, table), table, model.variables)
    jax.tree.map(np.testing.assert_array_equal, back, model.variables)
    assert not dropped


def test_save_then_load_gives_the_same_logits(model, tmp_path):
  tlx.save(tmp_path / 'm', model.module, model.variables, source=model.source, class_names=list('abcde'))
  again = tlx.load(str(tmp_path / 'm'))
  assert tuple(again.class_names) == tuple('abcde') and again.module == model.module
  np.testing.assert_array_equal(
    again.module.apply(again.variables, IMAGES), model.module.apply(model.variables, IMAGES)
  )


def test_fresh_head_starts_at_zero_and_the_backbone_stays(model, tmp_path):
  tlx.save(tmp_path / 'm', model.module, model.variables, source=model.source)
  fresh = tlx.load(str(tmp_path / 'm'), num_classes=3)
  old, new = (trees.flatten(loaded.variables['params']) for loaded in (model, fresh))
  assert new['head/logits/kernel'].shape[-1] == 3
  for path, leaf in new.items():
    if 'logits' in path.split('/'):  # of a second head, too
      assert not np.any(leaf)
    else:
      np.testing.assert_array_equal(leaf, old[path], err_msg=path)


def test_no_head_gives_pooled_features(model, tmp_path):
  tlx.save(tmp_path / 'm', model.module, model.variables, source=model.source)
  bare = tlx.load(str(tmp_path / 'm'), num_classes=0)
  expected = tlx.features(model.module, model.variables, IMAGES)['pooled']
  np.testing.assert_array_equal(bare.module.apply(bare.variables, IMAGES), expected)


def test_evaluation_leaves_the_statistics_alone(model):
  _, changed = model.module.apply(model.variables, IMAGES, mutable=['batch_stats'])
  jax.tree.map(np.testing.assert_array_equal, changed.get('batch_stats', {}), model.variables.get('batch_stats', {}))


def test_only_the_layers_in_training_mode_move_their_statistics(model):
  last = model.module.backbone.names[-1]
  _, changed = model.module.apply(
    model.variables, IMAGES, train={last}, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}
  )
  before = trees.flatten(model.variables.get('batch_stats', {}))
  after = trees.flatten(changed.get('batch_stats', {}))
  moved = {labels.layer_of(path) for path, x in after.items() if not np.array_equal(x, before[path])}
  assert moved <= {last}


@pytest.mark.parametrize('name', [pytest.param(name, marks=often(name)) for name in TINY])
def test_works_under_jit_grad_vmap_and_in_bfloat16(name):
  model = built(name)
  apply = jax.jit(lambda v, x: model.module.apply(v, x))
  logits = apply(model.variables, IMAGES)
  assert logits.dtype == jnp.float32 and logits.shape == (2, 5)
  each = jax.vmap(lambda x: model.module.apply(model.variables, x[None])[0])(IMAGES)
  np.testing.assert_allclose(each, logits, rtol=1e-4, atol=1e-4)
  gradient = jax.grad(lambda x: model.module.apply(model.variables, x).sum())(IMAGES)
  assert np.isfinite(gradient).all() and np.any(gradient)
  half = apply(model.variables, IMAGES.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, logits, atol=0.1 * np.abs(logits).max())


def test_all_problems_are_listed_at_once(model):
  variant = catalog.variant(model.source.variant)
  table = tuple(variant.family.LAYOUTS['timm'](variant.config))
  tensors = rules.write(model.variables, table)
  first, second, *_ = tensors
  del tensors[first]
  tensors[second] = np.zeros((3, 1, 4), np.float32)
  tensors['stranger'] = np.zeros(2, np.float32)
  with pytest.raises(rules.WeightMismatchError) as error:
    rules.read(tensors, table, model.variables, where='file -> model')
  text = str(error.value)
  assert text.startswith('file -> model: 3 problems') and all(name in text for name in (first, second, 'stranger'))


def test_models_are_found_by_pattern_and_misspellings_get_a_suggestion():
  assert tlx.list_models('resnet1*') == [
    'resnet101', 'resnet101d', 'resnet10t', 'resnet14t', 'resnet152', 'resnet152d', 'resnet18', 'resnet18d'
  ]  # fmt: skip
  with pytest.raises(UsageError, match='did you mean resnet50'):
    tlx.load('resnet_50')
