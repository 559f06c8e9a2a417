"""SegFormer's head against the published formula, step by step, on the maps of several kinds of backbones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomised
from tiny import built

from tlx import catalog
from tlx.heads.segformer import MODELS, Head
from tlx.nn.levels import Level, levels
from tlx.nn.model import Backbone
from tlx.types import UsageError

CLASSES, WIDTH = 3, 8
SHAPES = {  # levels of a backbone, and the maps of one image that no stride divides
  'four': ((4, 6, 19, 13), (8, 5, 10, 7), (16, 9, 5, 4), (32, 4, 3, 2)),
  'three, wider than the head': ((8, 12, 6, 9), (16, 16, 3, 5), (32, 20, 2, 3)),
}  # stride, channels, height, width


def maps(name):
  rng = np.random.default_rng(0)
  found = tuple(Level(f'stage{stride}', stride, channels) for stride, channels, *_ in SHAPES[name])
  return found, {f'stage{s}': rng.normal(size=(2, *size, c)).astype(np.float32) for s, c, *size in SHAPES[name]}


def drawn(head, features):
  return randomised(jax.eval_shape(lambda x: head.init(jax.random.key(0), x), features))


def published(found, variables, features):
  """Project, enlarge, join from coarse to fine, convolve, normalise, rectify, classify."""
  params, statistics = variables['params'], variables['batch_stats']['norm']
  joined, size = [], features[found[0].layer].shape[1:3]
  for i, level in enumerate(found):
    x = features[level.layer] @ params['fuse'][f'project{i}']['kernel'] + params['fuse'][f'project{i}']['bias']
    joined.append(jax.image.resize(x, (len(x), *size, WIDTH), 'linear', antialias=False))
  x = jnp.concatenate(joined[::-1], axis=-1) @ params['fuse']['kernel']
  x = (x - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5) * params['norm']['scale'] + params['norm']['bias']
  return jnp.maximum(x, 0) @ params['logits']['kernel'][0, 0] + params['logits']['bias']


@pytest.mark.parametrize('name', SHAPES)
def test_kernels_multiplied_first_give_the_published_function(name):
  found, features = maps(name)
  head = Head(CLASSES, found, WIDTH)
  variables = drawn(head, features)
  with jax.enable_x64(True):
    variables, features = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, features))
    ours, expected = head.apply(variables, features), published(found, variables, features)
  assert ours.dtype == np.float64
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize('name', ['mit_test', 'resnet_test', 'swin_test', 'efficientnet_test'])
def test_works_on_any_backbone_with_stages(name):
  backbone = Backbone(catalog.variant(name).config)
  head = Head(CLASSES, levels(backbone), WIDTH)
  images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)
  features = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x, taps=True)[0], images)
  logits, variables = jax.eval_shape(lambda x: head.init_with_output(jax.random.key(0), x), features)
  finest = 64 // head.reads[0].stride
  assert logits.shape == (2, finest, finest, CLASSES) and logits.dtype == jnp.float32
  assert len(variables['params']['fuse']) == len(head.reads) + 1


@pytest.mark.parametrize('strides, read', [((2, 4, 8), (4, 8)), ((2, 4), (2, 4)), ((8, 16, 16), (8, 16))])
def test_reads_no_finer_maps_than_it_must(strides, read):
  head = Head(CLASSES, tuple(Level(f'layer{i}', stride, 3) for i, stride in enumerate(strides)))
  assert tuple(level.stride for level in head.reads) == read
  assert head.reads[-1].layer == f'layer{len(strides) - 1}'


def test_reads_the_last_map_of_each_stage_of_mit():
  config = catalog.variant('mit_test').config
  head = Head(CLASSES, levels(Backbone(config)), WIDTH)
  expected = [(f'stage{s}_block{depth - 1}', 4 * 2**s) for s, depth in enumerate(config.depths)]
  assert [(level.layer, level.stride) for level in head.reads] == expected


def test_the_norm_of_a_stage_is_inside_its_last_block():
  module, variables, *_ = built('mit_test')
  images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
  features = jax.jit(lambda v, x: module.apply(v, x, method='features'))(variables, images)
  for level in Head(CLASSES, levels(module.backbone)).reads:
    norm = variables['params']['backbone'][level.layer]['stage_norm']
    x = (np.asarray(features[level.layer]) - norm['bias']) / norm['scale']
    assert x.shape[1:] == (64 // level.stride, 96 // level.stride, level.channels)
    np.testing.assert_allclose(x.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(-1), 1, atol=1e-3)


def test_dropout_and_batch_statistics_are_for_training():
  found, features = maps('four')
  head = Head(CLASSES, found, WIDTH, dropout=0.5)
  variables = drawn(head, features)
  still, kept = head.apply(variables, features, mutable=['batch_stats'])
  jax.tree.map(np.testing.assert_array_equal, kept['batch_stats'], variables['batch_stats'])
  passes = [
    head.apply(variables, features, True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(seed)})
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(passes[0][0], passes[1][0])
  assert not np.array_equal(passes[0][0], passes[2][0]) and still.shape == passes[0][0].shape
  assert not np.array_equal(passes[0][1]['batch_stats']['norm']['mean'], variables['batch_stats']['norm']['mean'])


def test_a_backbone_without_a_pyramid_is_refused():
  found = levels(Backbone(catalog.variant('vit_test').config))
  with pytest.raises(UsageError, match=r'two or more strides.*; the backbone has block\d \(stride \d+\); choose'):
    Head(CLASSES, found).reads  # noqa: B018
  with pytest.raises(UsageError, match='the backbone has none; choose'):
    Head(CLASSES).reads  # noqa: B018


def test_published_models_name_a_backbone_and_their_terms():
  for name, row in MODELS.items():
    assert row.backbone in catalog.variants() and row.checkpoint.variant == row.backbone
    assert row.backbone.removeprefix('mit') == name.removeprefix('segformer')
    assert row.checkpoint.license == 'other' and row.checkpoint.preprocess.mode == 'squash'
