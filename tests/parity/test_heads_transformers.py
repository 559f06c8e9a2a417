"""Whole SegFormers against transformers' and segmentation_models_pytorch's, every tensor random, on oblong images.

Largest errors of `pytest -m parity -n 0 -s tests/parity/test_heads_transformers.py` with jax 0.10.2, torch 2.13.0,
transformers 5.24.0 and segmentation_models_pytorch 0.6.0, each as a share of its tensor's largest value: in
float64 logits 3e-15, statistics 1e-15, gradients 4e-10 (of biases ahead of the batch norm in training mode, whose true
gradient is zero; others 2e-11); in float32 logits 8e-7.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
import reference

import tlx
from tlx import catalog, trees
from tlx.heads import segformer
from tlx.models import mit
from tlx.nn.levels import levels
from tlx.nn.model import Backbone
from tlx.types import Source
from tlx.weights import read_tensors, rules

CLASSES, WIDTH = 7, 20
SHAPE = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_attention_heads=[1, 2, 3, 4])
SIZES = ((64, 96), (75, 50))  # maps that halve at each stride, and maps that do not
EXACT = 1e-9  # float64, of each tensor's largest value
SINGLE = 1e-4  # float32
AUTHORS = 1e-6  # epsilon of the norms of blocks and stages in segmentation_models_pytorch


class Whole(nn.Module):
  """A backbone and a head on its maps."""

  backbone: Backbone
  head: nn.Module

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    return self.head(self.backbone(x, train=train, taps=True), train)


class Pair(NamedTuple):
  theirs: Any  # a torch module
  tensors: reference.Tensors  # as its file has them
  ours: tlx.Pretrained
  table: tuple[rules.Rule, ...]


def whole(config: mit.MiTConfig, **options: Any) -> Whole:
  backbone = Backbone(config)
  return Whole(backbone, segformer.Head(levels=levels(backbone), **options))


def table_of(model: Whole, layout: str) -> tuple[rules.Rule, ...]:
  """The backbone's rules without its classifier, and the head's."""
  names = segformer.LAYOUTS[layout]
  own = (rule for rule in mit.LAYOUTS[names.backbone](model.backbone.config) if '/backbone/' in rule.target)
  return (*(rule._replace(source=names.prefix + rule.source) for rule in own), *names.head(model.head))


def abstract(model: Whole) -> Any:
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))


def pair(theirs: Any, tensors: reference.Tensors, model: Whole, layout: str) -> Pair:
  table = table_of(model, layout)
  variables, dropped = rules.read(tensors, table, abstract(model))
  source = Source('mit', layout, dropped=dropped)
  return Pair(theirs, tensors, tlx.Pretrained(model, variables, tlx.Preprocess(), (), source), table)


@pytest.fixture(scope='module')
def of_transformers(tmp_path_factory) -> Pair:
  reference.library('transformers.modeling_utils')  # imports torchvision
  transformers = reference.library('transformers')
  config = transformers.SegformerConfig(**SHAPE, decoder_hidden_size=WIDTH, num_labels=CLASSES)
  theirs = transformers.SegformerForSemanticSegmentation(config).eval()
  reference.draw(theirs)
  folder = tmp_path_factory.mktemp('segformer')
  theirs.save_pretrained(folder)
  model = whole(mit.of_transformers(config.to_dict()), num_classes=CLASSES, width=WIDTH, dropout=0.0)
  return pair(theirs, read_tensors(folder), model, 'transformers')


@pytest.fixture(scope='module')
def of_smp() -> Pair:
  smp = reference.library('segmentation_models_pytorch')
  widths, depths, heads = (tuple(sizes) for sizes in SHAPE.values())
  small = {'embed_dims': widths, 'depths': depths, 'num_heads': heads, 'out_channels': [3, 0, *widths]}
  arguments = dict(encoder_weights=None, decoder_segmentation_channels=WIDTH, classes=CLASSES, upsampling=1)
  with pytest.MonkeyPatch.context() as patch:
    for name, value in small.items():
      patch.setitem(smp.encoders.encoders['mit_b0']['params'], name, value)
    theirs = smp.Segformer('mit_b0', **arguments).eval()
  reference.draw(theirs)
  model = whole(mit.MiTConfig(depths, widths, heads, epsilon=AUTHORS), num_classes=CLASSES, width=WIDTH, dropout=0.0)
  tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
  return pair(theirs, tensors, model, 'smp_nvidia')


def target(size: tuple[int, int]) -> np.ndarray:
  """int64 [2, h / 4, w / 4], rounded up: a class for each place of the logits."""
  return np.random.default_rng(1).integers(0, CLASSES, (2, *(-(-side // 4) for side in size)))


def check_float64(what: str, found: Pair, size: tuple[int, int], train: bool, **options: Any) -> None:
  errors = reference.float64_errors(
    found.ours, found.theirs, reference.images(size), train=train, labels=target(size), table=found.table, **options
  )
  print(f'\n{what}:', *(f'{part} {worst.error:.1e} {worst.name};' for part, worst in errors.items()))
  assert not {part: worst for part, worst in errors.items() if worst.error >= EXACT}


@pytest.mark.parity
@pytest.mark.parametrize('mode', ['eval', 'train'])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_logits_statistics_and_gradients(size, mode, of_transformers, tmp_path):
  renamed = lambda found: reference.as_saved(of_transformers.theirs, found, tmp_path)
  check_float64(f'transformers {size} {mode}', of_transformers, size, mode == 'train', renamed=renamed)


@pytest.mark.parity
@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_those_of_smp(mode, of_smp):
  check_float64(f'smp {mode}', of_smp, (64, 96), mode == 'train')  # it takes multiples of 32 only


@pytest.mark.parity
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_float32(size, of_transformers):
  model, images = of_transformers.ours, reference.images(size)
  expected = reference.their_pass(of_transformers.theirs, images, train=False, dtype='float32', labels=target(size))
  found = reference.compiled(model.module.apply, model.variables, images)
  assert found.shape == expected.logits.shape and found.dtype == np.float32
  error = reference.relative(np.asarray(found), expected.logits)
  print(f'\nfloat32 {size}: {error:.1e}')
  assert error < SINGLE


@pytest.mark.parity
@pytest.mark.parametrize('library', ['of_transformers', 'of_smp'])
def test_the_same_tensors_come_back(library, request):
  found = request.getfixturevalue(library)
  back = rules.write(found.ours.variables, found.table, found.ours.source.dropped)
  assert back.keys() == found.tensors.keys()
  assert all(back[name].tobytes() == x.tobytes() and back[name].shape == x.shape for name, x in found.tensors.items())


@pytest.mark.parity
@pytest.mark.parametrize('name', ['segformer_b0', 'segformer_b2'])  # the others repeat their blocks
def test_published_models_have_the_shapes_of_transformers(name):
  reference.library('transformers.modeling_utils')
  transformers, torch = reference.library('transformers'), reference.library('torch')
  row = segformer.MODELS[name]
  variant = catalog.variant(row.backbone)
  shape = dict(zip(('depths', 'hidden_sizes'), (list(variant.config.depths), list(variant.config.widths))))
  width = row.options['width']
  with torch.device('meta'):
    theirs = transformers.SegformerForSemanticSegmentation(
      transformers.SegformerConfig(**shape, decoder_hidden_size=width, num_labels=row.num_classes)
    )
  model = whole(variant.config, num_classes=row.num_classes, **row.options)
  variables = abstract(model)
  assert trees.count(variables['params']) == sum(x.numel() for x in theirs.parameters())
  assert rules.by_target(table_of(model, row.checkpoint.layout)).keys() == trees.flatten(variables).keys()
