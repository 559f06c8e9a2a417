"""Every family keeps the one idea: an ordered list of named layers, and one table of weights for both directions."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import FAMILIES, built, matrix
from tiny import NAMES as TINY

import tlx
from tlx import catalog, labels, pretrained, trees, weights
from tlx.actions import finetune
from tlx.nn.model import Config
from tlx.pretrained import modules
from tlx.report import terminal
from tlx.types import Source, TlxError, UsageError
from tlx.weights import records, rules

IMAGES = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)


def usual(variant):
  """The layout that `tlx.save` writes where the weights have no source: timm's, unless timm lacks the family."""
  return next(iter(variant.family.LAYOUTS))


@pytest.fixture(scope='module', params=TINY)
def every(request):
  """For what costs little."""
  return built(request.param)


@pytest.fixture(scope='module', params=matrix(TINY))
def model(request):
  return built(request.param)


def test_every_family_has_a_tiny_variant():
  assert {catalog.variant(name).family.__name__.split('.')[-1] for name in TINY} == set(catalog.names('models'))


def test_every_config_has_the_optional_fields():
  for variant in catalog.variants().values():
    config = variant.config
    assert Config in type(config).__mro__, f'{type(config).__name__} does not inherit from tlx.nn.model.Config'
    assert config.size is None or config.size >= config.smallest
    fields = {field.name for field in dataclasses.fields(config)}
    assert (config.size is not None) <= ('size' in fields), f'{variant.name}: --image-size cannot change its size'
    assert (config.aux_classes is not None) <= ('aux_classes' in fields)
    assert (config.output_stride is not None) <= ('output_stride' in fields)


@pytest.mark.parametrize('name', matrix(catalog.variants()))
def test_layouts_name_every_leaf_once(name):
  variant = catalog.variant(name)
  like = trees.flatten(pretrained.abstract(pretrained.build(variant, 10)))
  tables, _ = rules.tables(variant.family.LAYOUTS, variant.config)
  assert usual(variant) in tables
  assert usual(variant) == 'timm' or 'timm' not in variant.family.LAYOUTS
  for table in tables.values():
    sources = [r.source for r in table]
    assert len(set(sources)) == len(sources)
    assert rules.by_target(table).keys() == like.keys()


def test_every_leaf_lies_in_one_layer_and_none_is_empty(every):
  names = every.module.backbone.names
  assert len(set(names)) == len(names) and labels.HEAD not in names
  assert {labels.layer_of(path) for path in trees.flatten(every.variables['params'])} == {*names, labels.HEAD}


def test_features_are_the_layers_in_order(every):
  order = []

  def look(variables):
    features = tlx.features(every.module, variables, IMAGES)
    order.extend(features)
    return features

  shapes = jax.eval_shape(look, every.variables)
  assert tuple(order) == (*every.module.backbone.names, 'pooled')
  assert shapes['pooled'].shape == (2, every.module.backbone.config.width)


def test_prefix_and_suffix_make_the_whole(model):
  backbone, names = model.module.backbone, model.module.backbone.names
  variables = {name: tree['backbone'] for name, tree in model.variables.items() if 'backbone' in tree}
  whole = backbone.apply(variables, IMAGES)
  for middle in names[:-1]:
    prefix = backbone.apply(variables, IMAGES, stop=middle)
    suffix = backbone.apply(variables, prefix[middle], start=middle)
    assert (*prefix, *suffix) == names
    np.testing.assert_array_equal(suffix[names[-1]], whole[names[-1]])


def test_the_model_goes_on_from_any_layer(model):
  features = tlx.features(model.module, model.variables, IMAGES)
  whole = model.module.apply(model.variables, IMAGES)
  spatial = modules.sees_map(model.module)
  for name in (model.module.backbone.names[0], model.module.backbone.names[-1], *['pooled'] * (not spatial)):
    np.testing.assert_array_equal(model.module.apply(model.variables, features[name], start=name), whole)


def test_unknown_layer_is_named(every):
  with pytest.raises(UsageError, match='no such layer: nowhere; the backbone has stem'):
    every.module.backbone.apply({'params': {}}, IMAGES, stop='nowhere')


def test_write_then_read_gives_the_same_bits(every):
  variant = catalog.variant(every.source.variant)
  for table in rules.tables(variant.family.LAYOUTS, variant.config)[0].values():
    back, dropped = rules.read(rules.write(every.variables, table), table, every.variables)
    jax.tree.map(np.testing.assert_array_equal, back, every.variables)
    assert not dropped


def smallest_with_layouts():
  """The smallest variant that has a layout which no tiny one of its family has, with the layout."""
  for family in map(lambda name: catalog.find('models', name), catalog.names('models')):
    tables = {name: rules.tables(family.LAYOUTS, config)[0] for name, config in family.VARIANTS.items()}
    for layout in family.LAYOUTS:
      names = [name for name in tables if layout in tables[name]]
      if not set(names) & set(TINY):
        name = min(names, key=lambda name: family.FIGURES[name].parameters)
        yield pytest.param(name, layout, marks=() if name == 'convnext_atto' else pytest.mark.full)


@pytest.mark.parametrize('name, layout', list(smallest_with_layouts()))
def test_layouts_that_no_tiny_variant_has_are_written_and_read(name, layout):
  variant = catalog.variant(name)
  like = pretrained.abstract(pretrained.build(variant, 5))
  flat = {
    path: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) for path, leaf in trees.flatten(like).items()
  }
  table = tuple(variant.family.LAYOUTS[layout](variant.config))
  back, _ = rules.read(rules.write(trees.unflatten(flat), table), table, like)
  jax.tree.map(np.testing.assert_array_equal, trees.flatten(back), flat)


def test_a_bias_that_torchvision_never_reads_comes_back_while_the_rest_is_the_same():
  variant = catalog.variant('swinv2_test')
  config = dataclasses.replace(variant.config, windows=(4, 4), size=32, pretrained=(0, 0))
  like = pretrained.abstract(pretrained.build(variant._replace(config=config), 5))
  table = tuple(variant.family.LAYOUTS['torchvision'](config))
  tensors = rules.write(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), like), table)
  name = 'features.1.0.attn.qkv.bias'
  query, key, value = np.split(tensors[name], 3)
  assert query.all() and not key.any() and value.all()
  tensors[name] = np.arange(len(tensors[name]), dtype=np.float32)
  variables, dropped = rules.read(tensors, table, like)
  back = rules.write(variables, table, dropped)
  assert back.keys() == tensors.keys() and all(np.array_equal(back[n], x) for n, x in tensors.items())
  tuned = rules.write(jax.tree.map(lambda x: x + 1, variables), table, dropped)
  np.testing.assert_array_equal(tuned[name].reshape(3, -1)[1], key)


def refusal(name, layout, source=None, folder='never'):
  """What `tlx.save` says; it must not have begun to write."""
  module = pretrained.build(catalog.variant(name), 5)
  with pytest.raises(UsageError) as error:
    tlx.save(folder, module, {}, source=source, layout=layout)
  assert '\n' not in str(error.value) and str(error.value).startswith(f'{name} cannot be written as {layout!r}: ')
  return str(error.value)


def test_a_layout_without_such_a_network_says_so(monkeypatch):
  def torchvision(config):
    raise rules.NoLayoutError('torchvision has no such vit')
    yield

  monkeypatch.setitem(catalog.variant('vit_test').family.LAYOUTS, 'torchvision', torchvision)
  said = refusal('vit_test', 'torchvision')
  assert said.endswith(': torchvision has no such vit; it can as timm, torchvision_files, npz, big_vision')
  said = refusal('vit_test', 'keras')
  assert said.endswith(': its family has no such layout; it can as timm, torchvision_files, npz, big_vision')


@pytest.mark.parametrize(
  'name, layout, lacks',
  [
    ('convnextv2_tiny', 'torchvision', 'no ConvNeXt V2'),
    ('convnext_tiny_hnf', 'facebook', 'only timm has'),
    ('convnext_large_mlp', 'torchvision', 'only timm has'),
    ('resnet50d', 'transformers', 'no deep stems'),
    ('resnext50_32x4d', 'transformers_base', 'groups'),
    ('efficientnet_lite1', 'torchvision', 'without gates'),
    ('efficientnet_lite1', 'transformers', 'no EfficientNet-Lite'),
    ('efficientnetv2_rw_s', 'torchvision', 'without expansion'),
    ('tf_efficientnetv2_b0', 'torchvision', 'no EfficientNetV2-B0'),
    ('mobilenetv1_100h', 'keras', 'final convolution'),
    ('mobilenetv2_110d', 'transformers', 'no deeper'),
    ('tf_mobilenetv3_large_minimal_100', 'torchvision', 'no minimal'),
    ('deit3_small_patch16_224', 'transformers_base', 'no DeiT III'),
    ('deit_base_patch16_224', 'transformers', 'is the distilled one'),
    ('vit_small_patch14_dinov2', 'transformers_registers', 'with registers'),
    ('vit_small_patch14_reg4_dinov2', 'transformers_base', 'position apart'),
    ('resnet50d', 'torchvision', 'no deep stems'),
    ('swin_s3_tiny_224', 'torchvision', 'one window'),
    ('swinv2_tiny_window16_256', 'torchvision', 'patches or windows do not divide the map (8 by 16)'),
    ('swinv2_base_window12to16_192to256', 'torchvision', 'other windows'),
  ],
)
def test_what_a_library_lacks_is_not_written_for_it(name, layout, lacks):
  assert lacks in refusal(name, layout)


def test_no_layout_falls_back_to_the_names_of_timm():
  same = {(family, 'torchvision') for family in ('densenet', 'inception', 'resnet', 'squeezenet')}  # in timm or tlx
  for variant in catalog.variants().values():
    tables, _ = rules.tables(variant.family.LAYOUTS, variant.config)
    names = {layout: {rule.source for rule in table if rule.target} for layout, table in tables.items()}
    family = variant.family.__name__.rpartition('.')[-1]
    assert {(family, layout) for layout in names if layout != 'timm' and names[layout] == names.get('timm')} <= same


@pytest.mark.parametrize(
  'name, layout, source, expected',
  [
    ('vit_test', 'transformers', None, "transformers' config.json is kept, not made"),
    ('vit_test', 'transformers', Source('vit_test', 'transformers'), "transformers' config.json is kept, not made"),
    ('tf_efficientnet_b0', 'torchvision', None, 'weights in it are read as efficientnet_b0'),
    ('efficientnet_b5', 'torchvision', None, 'weights in it are read as tv_efficientnet_b5'),
    ('mobilenetv1_100', 'keras', None, 'weights in it are read as tf_mobilenetv1_100'),
  ],
)
def test_a_layout_that_would_make_another_network_of_it_says_so(name, layout, source, expected):
  assert expected in refusal(name, layout, source)


def test_a_shape_that_no_variant_has_is_not_written_as_one(tmp_path):
  config = dataclasses.replace(catalog.variant('vit_test').config, depth=3)
  module = pretrained.build(catalog.variant('vit_test')._replace(config=config), 5)
  with pytest.raises(UsageError, match='it is none of the variants.*pass the source that it was loaded with'):
    tlx.save(tmp_path / 'm', module, {})
  assert not (tmp_path / 'm').exists()


def counted(calls, function):
  def count(*args, **options):
    calls.append(function.__name__)
    return function(*args, **options)

  return count


def test_an_experiment_looks_its_model_up_once_and_reads_its_weights_once(tiny_models, tiny_images, monkeypatch):
  calls = []
  for name in ('fetch', 'read_config', 'open_tensors'):
    monkeypatch.setattr(weights, name, counted(calls, getattr(weights, name)))
  for family, size in (('vit', 48), ('resnet', 64)):  # its parameters depend on the size, and do not
    calls.clear()
    asked = tlx.Experiment(model=tiny_models[family], data=f'folder:{tiny_images}', image_size=size)
    prepared = finetune.prepare(asked, terminal.Console(quiet=True))
    assert prepared.pretrained.preprocess.size == size and prepared.experiment.image_size == size
    assert prepared.pretrained.module.backbone.config.size in (None, size)
    assert sorted(calls) == ['fetch', 'open_tensors', 'read_config']


def test_save_then_load_gives_the_same_logits(model, tmp_path):
  tlx.save(tmp_path / 'm', model.module, model.variables, source=model.source, class_names=list('abcde'))
  again = tlx.load(str(tmp_path / 'm'))
  assert tuple(again.class_names) == tuple('abcde') and again.module == model.module
  np.testing.assert_array_equal(
    again.module.apply(again.variables, IMAGES), model.module.apply(model.variables, IMAGES)
  )


def test_save_takes_all_that_load_returned(tmp_path):
  model = built('resnet_test')._replace(class_names=tuple('abcde'), preprocess=tlx.Preprocess(size=48, crop=0.9))
  about = {'source': model.source, 'preprocess': model.preprocess, 'class_names': model.class_names}
  tlx.save(tmp_path / 'parts', model.module, model.variables, **about)
  tlx.save(tmp_path / 'whole', model)
  for file in ('model.safetensors', 'config.json'):
    assert (tmp_path / 'whole' / file).read_bytes() == (tmp_path / 'parts' / file).read_bytes()
  zeros = jax.tree.map(jnp.zeros_like, model.variables)
  again = tlx.load(str(tlx.save(tmp_path / 'changed', model, zeros, class_names=tuple('vwxyz'))))
  assert again.class_names == tuple('vwxyz') and again.preprocess == model.preprocess
  assert not any(leaf.any() for leaf in jax.tree.leaves(again.variables))


@pytest.mark.parametrize(('family', 'pool'), [('resnet', 'avg'), ('vit', 'token'), ('siglip', 'map'), ('beit', 'avg')])
def test_arguments_that_timm_writes_are_read_and_do_not_outlive_a_change(family, pool, tiny_models, tmp_path):
  """timm 1.0.31 records every argument of the constructor, and prefers them to the fields beside them."""
  folder = shutil.copytree(tiny_models[family], tmp_path / 'theirs')
  config = json.loads((folder / 'config.json').read_text())
  arguments = {'num_classes': 7, 'in_chans': 3, 'global_pool': pool, **config.get('model_args', {})}
  write = lambda **changes: (folder / 'config.json').write_text(
    json.dumps(config | {'global_pool': pool, 'model_args': arguments | changes})
  )
  write()
  model = tlx.load(str(folder))
  expected = tlx.load(tiny_models[family])
  jax.tree.map(np.testing.assert_array_equal, model.variables, expected.variables)
  assert model.module == expected.module
  for classes in (None, 3):
    saved = tlx.save(tmp_path / str(classes), tlx.load(str(folder), num_classes=classes))
    record = json.loads((saved / 'config.json').read_text())
    assert 'num_classes' not in record['model_args'] and record['model_args']['global_pool'] == pool
    assert record['num_classes'] == tlx.load(str(saved)).module.head.num_classes == (classes or 7)
  write(global_pool='catavgmax', act_layer='silu')
  with pytest.raises(TlxError, match=f"act_layer, unknown to tlx; and for global_pool 'catavgmax', .* '{pool}' only"):
    tlx.load(str(folder))


def test_save_of_a_module_alone_is_refused(tmp_path):
  with pytest.raises(UsageError, match='a module alone has no weights'):
    tlx.save(tmp_path / 'm', built('resnet_test').module)
  assert not (tmp_path / 'm').exists()


def test_fresh_head_starts_at_zero_and_the_backbone_stays(every, tmp_path):
  tlx.save(tmp_path / 'm', every.module, every.variables, source=every.source)
  fresh = tlx.load(str(tmp_path / 'm'), num_classes=3)
  old, new = (trees.flatten(loaded.variables['params']) for loaded in (every, fresh))
  assert new['head/logits/kernel'].shape[-1] == 3
  for path, leaf in new.items():
    if 'logits' in path.split('/'):  # of a second head, too
      drawn = modules.sees_map(every.module) and path.endswith('/kernel')  # zeros behind a ReLU would never learn
      assert 0 < np.abs(leaf).max() < 0.1 if drawn else not np.any(leaf)
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


@pytest.mark.parametrize('name', matrix(TINY, ['resnet_test']))
def test_works_under_jit_grad_vmap_and_in_bfloat16(name):
  model = built(name)
  apply = jax.jit(lambda v, x: model.module.apply(v, x))
  logits = apply(model.variables, IMAGES)
  assert logits.dtype == jnp.float32 and logits.shape == (2, 5)
  each = jax.jit(jax.vmap(lambda x: model.module.apply(model.variables, x[None])[0]))(IMAGES)
  np.testing.assert_allclose(each, logits, rtol=1e-4, atol=1e-4)
  gradient = jax.jit(jax.grad(lambda x: model.module.apply(model.variables, x).sum()))(IMAGES)
  assert np.isfinite(gradient).all() and np.any(gradient)
  half = apply(model.variables, IMAGES.astype(jnp.bfloat16))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, logits, atol=0.1 * np.abs(logits).max())


def test_all_problems_are_listed_at_once(every):
  variant = catalog.variant(every.source.variant)
  table = tuple(variant.family.LAYOUTS[usual(variant)](variant.config))
  tensors = rules.write(every.variables, table)
  first, second, *_ = tensors
  del tensors[first]
  tensors[second] = np.zeros((3, 1, 4), np.float32)
  tensors['stranger'] = np.zeros(2, np.float32)
  with pytest.raises(rules.WeightMismatchError) as error:
    rules.read(tensors, table, every.variables, where='file -> model')
  text = str(error.value)
  assert text.startswith('file -> model: 3 problems') and all(name in text for name in (first, second, 'stranger'))


def test_a_config_that_tlx_lacks_is_refused_with_all_its_problems():
  config = {'model_type': 'swin', 'depths': [2, 2], 'hidden_act': 'relu', 'qkv_bias': False}
  records.require(config, {'depths': (2, 2), 'hidden_act': 'relu'})
  with pytest.raises(UsageError) as error:
    records.require(
      config, {'hidden_act': 'gelu', 'qkv_bias': True, 'depths': (2, 2)}, 'image_size 2 x 3, not a square'
    )
  assert str(error.value).startswith(
    "config.json describes a swin that tlx lacks: hidden_act 'relu', not 'gelu'; qkv_bias False, not True; "
    'image_size 2 x 3, not a square; choose another checkpoint'
  )


def test_models_are_found_by_pattern_and_misspellings_get_a_suggestion():
  assert tlx.list_models('resnet1*') == [
    'resnet101', 'resnet101d', 'resnet10t', 'resnet14t', 'resnet152', 'resnet152d', 'resnet18', 'resnet18d'
  ]  # fmt: skip
  with pytest.raises(UsageError, match='did you mean resnet50'):
    tlx.load('resnet_50')


@pytest.mark.parametrize('family', matrix(catalog.names('models'), FAMILIES))
def test_a_fresh_head_learns(family, tiny_models):
  module, variables, *_ = tlx.load(tiny_models[family], num_classes=3)
  images = np.random.default_rng(0).normal(size=(2, *pretrained.example(module).shape[1:])).astype(np.float32)
  last = module.backbone.names[-1] if modules.sees_map(module) else 'pooled'
  features = jax.jit(lambda variables, images: tlx.features(module, variables, images)[last])(variables, images)

  def loss(head):
    params = {**variables['params'], 'head': head}
    return jax.nn.log_softmax(module.apply({**variables, 'params': params}, features, start=last))[0, 1]

  gradient = jax.grad(loss)(variables['params']['head'])
  assert float(jnp.abs(gradient['logits']['kernel']).max()) > 0
