"""The heads of torchvision's segmentation models on every family that returns maps, from shapes alone."""

import jax
import jax.numpy as jnp
import pytest
from tiny import NAMES

from tlx import catalog, trees
from tlx.heads import deeplabv3, fcn, lraspp
from tlx.nn import segmentation
from tlx.nn.levels import Level, levels, read
from tlx.nn.model import Backbone
from tlx.types import UsageError

CLASSES = 5
HEADS = (deeplabv3, fcn, lraspp)
LEVELS = (
  Level('stem', 4, 8), Level('a', 4, 16), Level('b', 8, 32), Level('c', 8, 32), Level('d', 8, 64), Level('e', 8, 128),
)  # fmt: skip  # of a network that dilates


@pytest.fixture(scope='module', params=NAMES)
def features(request):
  """(levels, abstract features) of a tiny backbone."""
  backbone = Backbone(catalog.variant(request.param).config)
  side = backbone.config.size
  images = jax.ShapeDtypeStruct((2, *((side, side) if side else (64, 96)), 3), jnp.float32)
  run = lambda x: backbone.init_with_output(jax.random.key(0), x, taps=True)[0]
  return levels(backbone), jax.eval_shape(run, images)


def run(head, features, train):
  """Abstract (logits, changed collections), with the parameters that evaluation mode makes, and these."""

  def both(features):
    variables = head.init(jax.random.key(0), features)
    rngs = {'dropout': jax.random.key(1)}
    return head.apply(variables, features, train, mutable=['batch_stats', 'aux'], rngs=rngs), variables['params']

  return jax.eval_shape(both, features)


@pytest.mark.parametrize('kind', HEADS, ids=lambda kind: kind.__name__.rpartition('.')[2])
def test_logits_at_the_resolution_of_a_level(kind, features):
  found, maps = features
  options = {} if kind is lraspp else {'aux': True}
  head = kind.Head(CLASSES, found, **options)
  read_all = lambda maps: {level.layer: read(maps, level) for level in found}
  grids = {layer: x.shape[1:3] for layer, x in jax.eval_shape(read_all, maps).items()}
  wanted = set(grids.values()) if kind is lraspp else {grids[found[-1].layer]}
  for train in (False, True):
    (logits, changed), params = run(head, maps, train)
    assert logits.shape in {(2, *grid, CLASSES) for grid in wanted} and logits.dtype == jnp.float32
    second = changed.get('aux', {}).get('output', ())
    assert [y.shape[-1] for y in second] == [CLASSES] * (train and 'aux' in options)
  assert any(path.startswith('aux/logits') for path in trees.flatten(params)) == ('aux' in options)
  hash(head)


def test_no_maps_is_said():
  for kind in HEADS:
    with pytest.raises(UsageError, match='the backbone returns no maps'):
      kind.Head(CLASSES).init(jax.random.key(0), {})


def test_a_layer_that_is_not_there_is_said():
  features = {level.layer: jnp.zeros((1, 4, 4, level.channels)) for level in LEVELS}
  for head in (fcn.Head(CLASSES, LEVELS, aux=True, aux_layer='f'), lraspp.Head(CLASSES, LEVELS, fine='f')):
    with pytest.raises(UsageError, match="no map 'f'; it has stem, a, b, c, d, e"):
      head.init(jax.random.key(0), features)


def test_which_maps_are_read():
  """By width, since in a network that dilates the strides of the last stages are one."""
  same = (Level('block0', 16, 8, 1), Level('block1', 16, 8, 1), Level('norm', 16, 8, 1))
  assert segmentation.earlier(LEVELS).layer == 'd' and segmentation.at_stride(LEVELS, 8).layer == 'd'
  assert segmentation.earlier(same).layer == segmentation.at_stride(same, 8).layer == 'block1'
  strided = (Level('a', 4, 8), Level('b', 8, 16), Level('c', 8, 16), Level('d', 16, 32), Level('e', 32, 64))
  assert segmentation.earlier(strided).layer == 'd' and segmentation.at_stride(strided, 8).layer == 'c'
  assert segmentation.at_stride(strided, 6).layer == 'a' and segmentation.at_stride(strided, 2).layer == 'a'


@pytest.mark.parametrize(
  ('stride', 'rates', 'expected'),
  [(8, None, (12, 24, 36)), (16, None, (6, 12, 18)), (32, None, (3, 6, 9)), (16, (4, 2), (4, 2)), (16, (), ())],
)
def test_rates_follow_the_stride(stride, rates, expected):
  assert deeplabv3.Head(CLASSES, (Level('a', stride, 8),), rates=rates).dilations() == expected


def test_whole_models_name_a_variant_and_a_layout():
  for kind in HEADS:
    for name, row in kind.MODELS.items():
      assert row.backbone in catalog.variants() and row.checkpoint.layout in kind.LAYOUTS
      assert row.checkpoint.variant == name and row.checkpoint.preprocess.crop == 1
