"""Every head, found by listing the folder, works on every pyramid and any size, and names all that it holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomised

from tlx import catalog, trees
from tlx.cost.certificate import QUICK
from tlx.nn.levels import Level, choose, levels, pyramid
from tlx.nn.model import Backbone
from tlx.types import UsageError
from tlx.weights import rules

CLASSES = 5
KEY = jax.random.key(0)
FILES = {name: catalog.find('heads', name) for name in catalog.names('heads')}
HEADS = [name for name, file in FILES.items() if hasattr(file, 'LAYOUTS')]  # of dense tasks
SEVERAL = ('unet', 'fpn', 'deeplabv3plus', 'upernet')  # that read maps of two strides or more
BACKBONES = {  # the strides of their pyramids
  'resnet_test': (2, 4, 8, 16, 32), 'convnext_test': (4, 8, 16, 32), 'swin_test': (4, 8), 'efficientnet_test': (2, 4),
  'vgg_test': (1, 2, 4, 8),
}  # fmt: skip
SHORT = 'efficientnet_test'  # the fewest maps, so that programs are small
SIZES = ((64, 96), (70, 45), (33, 64))
EVERY = [(name, head) for head in HEADS for name in BACKBONES]


@functools.cache
def backbone(name: str) -> Backbone:
  return Backbone(catalog.variant(name).config)


@functools.cache
def levels_of(name: str) -> tuple[Level, ...]:
  return levels(backbone(name))


def made(head: str, name: str):
  return FILES[head].Head(CLASSES, levels_of(name))


@functools.cache
def features(name: str, size: tuple[int, int], dtype=jnp.float32) -> dict[str, jax.Array]:
  """Shapes of what the backbone gives for two images of that size, or of the one that it takes."""
  module = backbone(name)
  height, width = (module.config.size or side for side in size)

  def run(x):
    found = module.init_with_output(KEY, x, taps=True)[0]
    return {**found, 'pooled': module.pool(found[module.names[-1]])}

  return jax.eval_shape(run, jax.ShapeDtypeStruct((2, height, width, 3), dtype))


def drawn(shapes: dict[str, jax.Array], dtype=jnp.float32) -> dict[str, jax.Array]:
  rng = np.random.default_rng(0)
  return {name: jnp.asarray(rng.normal(size=x.shape), dtype) for name, x in shapes.items()}


def test_pyramids_are_those_that_the_tests_mean():
  assert {name: tuple(level.stride for level in pyramid(levels_of(name))) for name in BACKBONES} == BACKBONES


@pytest.mark.parametrize(('name', 'head'), EVERY)
def test_shapes(name, head):
  module = made(head, name)
  for size in SIZES[: 1 if backbone(name).config.size else None]:
    shapes = features(name, size)
    logits, variables = jax.eval_shape(lambda x: module.init_with_output(KEY, x), shapes)
    height, width = (backbone(name).config.size or side for side in size)
    assert logits.dtype == jnp.float32 and (logits.shape[0], logits.shape[3]) == (2, CLASSES)
    # As fine as one of the pyramid's maps, or as the image; borders may cost or add a place.
    strides = {1, *BACKBONES[name]}
    assert any(all(abs(n - side / s) <= 64 / s for n, side in zip(logits.shape[1:3], (height, width))) for s in strides)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def compiled(function, *arguments):
  """What it gives as one program, made fast to compile."""
  return jax.jit(function).lower(*arguments).compile(QUICK)(*arguments)


@pytest.mark.parametrize('head', HEADS)
def test_numbers(head):
  module = made(head, SHORT)
  x = drawn(features(SHORT, SIZES[1]))
  variables = randomised(jax.eval_shape(module.init, KEY, x))
  logits, unmoved = module.apply(variables, x, mutable=['batch_stats'])  # asks for no random key
  jax.tree.map(np.testing.assert_array_equal, unmoved.get('batch_stats', {}), variables.get('batch_stats', {}))
  np.testing.assert_allclose(compiled(module.apply, variables, x), logits, rtol=1e-4, atol=1e-4)
  half = compiled(module.apply, variables, {name: value.astype(jnp.bfloat16) for name, value in x.items()})
  assert half.dtype == logits.dtype == jnp.float32
  assert np.linalg.norm(half - logits) < 0.1 * np.linalg.norm(logits)


@pytest.mark.parametrize('head', HEADS)
def test_training(head):
  module = made(head, SHORT)
  x = drawn(features(SHORT, SIZES[1]))
  variables = randomised(jax.eval_shape(module.init, KEY, x))

  def loss(params, x):
    collections = ['batch_stats', 'aux']
    given = {**variables, 'params': params}
    logits, moved = module.apply(given, x, True, rngs={'dropout': KEY}, mutable=collections)
    return -jax.nn.log_softmax(logits)[..., 0].mean(), moved.get('batch_stats', {})

  (of_params, of_maps), moved = compiled(jax.grad(loss, (0, 1), has_aux=True), variables['params'], x)
  own = lambda tree: {path: leaf for path, leaf in trees.flatten(tree).items() if not path.startswith('aux/')}
  assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves((of_params, of_maps)))
  assert not [path for path, gradient in own(of_params).items() if path.endswith('kernel') and not np.any(gradient)]
  assert any(np.any(gradient) for gradient in of_maps.values())
  moved, before = own(moved), own(variables.get('batch_stats', {}))
  assert moved.keys() == before.keys()
  assert not [path for path in moved if np.array_equal(moved[path], before[path])]


@pytest.mark.parametrize('head', HEADS)
def test_backbones_of_one_map_or_of_none(head):
  shapes = features('vit_test', (64, 64))
  one = made(head, 'vit_test')
  if head in SEVERAL:
    with pytest.raises(
      UsageError, match=rf'{head} reads maps of 2 or more strides; the backbone has block1 \(stride 16'
    ):
      jax.eval_shape(one.init, KEY, shapes)
  else:
    logits, _ = jax.eval_shape(lambda x: one.init_with_output(KEY, x), shapes)
    assert (logits.shape[0], logits.shape[3]) == (2, CLASSES)
  with pytest.raises(UsageError, match='backbone'):
    jax.eval_shape(FILES[head].Head(CLASSES).init, KEY, shapes)


@pytest.mark.parametrize('head', HEADS)
def test_options_are_values(head):
  fields = FILES[head].Head.__dataclass_fields__.values()
  options = {f.name: f.default for f in fields if f.init and f.name not in ('num_classes', 'parent', 'name')}
  assert dataclasses.MISSING not in options.values()
  assert hash(made(head, 'resnet_test')) == hash(made(head, 'resnet_test'))


@pytest.mark.parametrize(('name', 'head'), EVERY)
def test_layouts_name_every_leaf_once(name, head):
  module = made(head, name)
  variables = jax.eval_shape(module.init, KEY, features(name, SIZES[0]))
  like = trees.flatten({collection: {'head': tree} for collection, tree in variables.items()})  # as in a model
  for rules_of in {layout.head for layout in FILES[head].LAYOUTS.values()}:
    try:
      table = tuple(rules_of(module))
    except rules.NoLayoutError:
      continue
    assert len({rule.source for rule in table}) == len(table)
    assert rules.by_target(table).keys() == like.keys()


@pytest.mark.parametrize('head', HEADS)
def test_the_table_of_whole_models_is_right(head):
  file = FILES[head]
  for name, row in file.MODELS.items():
    variant = catalog.variant(row.backbone)
    config = dataclasses.replace(variant.config, **row.backbone_options)
    assert row.options.keys() <= file.Head.__dataclass_fields__.keys(), name
    if row.checkpoint:
      layout = file.LAYOUTS[row.checkpoint.layout]
      assert layout.backbone in rules.tables(variant.family.LAYOUTS, config)[0], name


@pytest.mark.parametrize(
  ('head', 'name'),
  [pytest.param(head, name, marks=pytest.mark.slow) for head in HEADS for name in FILES[head].MODELS],
)
def test_whole_models_have_the_maps_that_their_heads_read(head, name):
  row = FILES[head].MODELS[name]
  module = Backbone(dataclasses.replace(catalog.variant(row.backbone).config, **row.backbone_options))
  side = module.config.size or 64
  shapes = jax.eval_shape(lambda x: module.init_with_output(KEY, x, taps=True)[0], jnp.zeros((1, side, side, 3)))
  of_head = FILES[head].Head(row.num_classes, levels(module), **row.options)
  logits, _ = jax.eval_shape(lambda x: of_head.init_with_output(KEY, x), shapes)
  assert logits.shape[3] == row.num_classes


FOUND = (
  Level('stem/conv', 2, 4), Level('stem', 4, 4), Level('stage0_block0', 4, 8), Level('stage0_block1', 4, 8),
  Level('stage1_block0', 8, 16), Level('stage10_block0', 16, 16),
)  # fmt: skip


def test_levels_are_chosen_by_layer_by_tap_and_by_stage():
  names = lambda chosen: [level.layer for level in chosen]
  assert names(choose(FOUND, head='x')) == ['stem/conv', 'stage0_block1', 'stage1_block0', 'stage10_block0']
  assert names(choose(FOUND, head='x', finest=4)) == ['stage0_block1', 'stage1_block0', 'stage10_block0']
  assert names(choose(FOUND, head='x', finest=16)) == names(choose(FOUND, head='x'))  # one level is not enough
  assert names(choose(FOUND, ('stem', 'stage1'), head='x')) == ['stem', 'stage1_block0']
  assert names(choose(FOUND, ('stem/conv', 'stage0', 'stage10'), head='x')) == [
    'stem/conv', 'stage0_block1', 'stage10_block0',
  ]  # fmt: skip
  assert names(choose(FOUND, ('stage0_block0', 'stage1'), head='x')) == ['stage0_block0', 'stage1_block0']


def test_levels_that_there_are_not_are_named():
  has = r'the backbone has stem/conv \(stride 2\), stage0_block1 \(stride 4\)'
  with pytest.raises(UsageError, match=rf'unet: no layer with a map is called stage2, norm; {has}'):
    choose(FOUND, ('stem', 'stage2', 'norm'), head='unet')
  with pytest.raises(
    UsageError, match=rf'strides must grow from layer to layer, got stem \(4\), stage0_block1 \(4\); {has}'
  ):
    choose(FOUND, ('stem', 'stage0'), head='unet')
  with pytest.raises(UsageError, match='the backbone has no layer that returns a map; choose a backbone with stages'):
    choose((), head='unet')


def test_wrong_options_of_a_head_are_named():
  shapes = features('resnet_test', SIZES[0])
  for head, options, message in (
    ('unet', {'interpolation': 'cubic'}, "interpolation 'cubic'; choose nearest or bilinear"),
    ('fpn', {'merge': 'mean', 'inner': 40}, "merge 'mean', not add or cat; inner 40, not a multiple of 32"),
  ):
    with pytest.raises(UsageError, match=message):
      jax.eval_shape(made(head, 'resnet_test').clone(**options).init, KEY, shapes)
