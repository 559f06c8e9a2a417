"""Whole SegFormers against those of transformers, every tensor random, on oblong images.

Largest errors of `pytest -m parity -n 0 -s tests/parity/test_heads_transformers.py` with jax 0.10.2, torch 2.13.0
and transformers 5.24.0, each as a share of its tensor's largest value: in float64 logits 2e-15, statistics 1e-15,
gradients 4e-10 (of biases ahead of the batch norm in training mode, whose true gradient is zero; others 2e-11); in
float32 logits 7e-7.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import reference

import tlx
from tlx import catalog, pretrained, trees
from tlx.heads import segformer
from tlx.nn.levels import levels
from tlx.nn.model import Backbone, TransferModel
from tlx.weights import read_tensors, rules

CLASSES, WIDTH = 7, 20
SHAPE = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_attention_heads=[1, 2, 3, 4])
SIZES = ((64, 96), (75, 50))  # maps that halve at each stride, and maps that do not
EXACT = 1e-9  # float64, of each tensor's largest value
SINGLE = 1e-4  # float32


class Pair(NamedTuple):
  theirs: Any  # a torch module
  tensors: reference.Tensors  # as its file has them
  ours: tlx.Pretrained
  table: tuple[rules.Rule, ...]


def table_of(module: TransferModel, layout: str) -> tuple[rules.Rule, ...]:
  return tuple(pretrained.modules.tables(catalog.variant('mit_b0'), module)[layout])


def without_dropout(module: TransferModel) -> TransferModel:
  """Masks of dropout are drawn alike by no two libraries."""
  return module.clone(head=module.head.clone(dropout=0.0))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('segformer')


@pytest.fixture(scope='module')
def of_transformers(folder) -> Pair:
  reference.library('transformers.modeling_utils')  # imports torchvision
  transformers = reference.library('transformers')
  config = transformers.SegformerConfig(**SHAPE, decoder_hidden_size=WIDTH, num_labels=CLASSES)
  theirs = transformers.SegformerForSemanticSegmentation(config).eval()
  reference.draw(theirs)
  theirs.save_pretrained(folder)
  ours = tlx.load(str(folder))
  assert ours.module.head.dropout == config.classifier_dropout_prob and ours.source.task == 'segmentation'
  ours = ours._replace(module=without_dropout(ours.module))
  return Pair(theirs, read_tensors(folder), ours, table_of(ours.module, ours.source.layout))


def target(size: tuple[int, int]) -> np.ndarray:
  """int64 [2, h / 4, w / 4], rounded up: a class for each place of the logits."""
  return np.random.default_rng(1).integers(0, CLASSES, (2, *(-(-side // 4) for side in size)))


@pytest.mark.parity
@pytest.mark.parametrize('mode', ['eval', 'train'])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_logits_statistics_and_gradients(size, mode, of_transformers, tmp_path):
  ours, theirs, options = of_transformers.ours, of_transformers.theirs, {'table': of_transformers.table}
  options |= {'labels': target(size), 'renamed': lambda found: reference.as_saved(theirs, found, tmp_path)}
  errors = reference.float64_errors(ours, theirs, reference.images(size), train=mode == 'train', **options)
  print(f'\n{size} {mode}:', *(f'{part} {worst.error:.1e} {worst.name};' for part, worst in errors.items()))
  assert not {part: worst for part, worst in errors.items() if worst.error >= EXACT}


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
def test_the_same_tensors_come_back(of_transformers):
  found = of_transformers
  back = rules.write(found.ours.variables, found.table, found.ours.source.dropped)
  assert back.keys() == found.tensors.keys()
  assert all(back[name].tobytes() == x.tobytes() and back[name].shape == x.shape for name, x in found.tensors.items())


@pytest.mark.parity
def test_our_folder_in_transformers(of_transformers, folder, tmp_path):
  torch = reference.library('torch')
  ours = tlx.load(str(folder))
  tlx.save(tmp_path, ours)
  before, after = read_tensors(folder), read_tensors(tmp_path)
  assert before.keys() == after.keys() and all(before[name].tobytes() == after[name].tobytes() for name in before)
  model, told = type(of_transformers.theirs).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(told.values()), told
  images = reference.to_torch(reference.images((64, 96)))
  with torch.no_grad():
    np.testing.assert_array_equal(model.eval()(images).logits, of_transformers.theirs(images).logits)
  assert tlx.load(str(tmp_path)).module == ours.module


@pytest.mark.parity
def test_a_fine_tuned_one_in_transformers(of_transformers, folder, tmp_path):
  torch = reference.library('torch')
  ours = tlx.load(str(folder), num_classes=3)
  tlx.save(tmp_path, ours._replace(class_names=('sky', 'road', 'tree')))
  model, told = type(of_transformers.theirs).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(told.values()), told
  assert model.config.id2label == {0: 'sky', 1: 'road', 2: 'tree'}
  images = reference.images((64, 96))
  with torch.no_grad():
    expected = np.moveaxis(model.eval()(reference.to_torch(images)).logits.numpy(), 1, -1)
  found = reference.compiled(ours.module.apply, ours.variables, images)
  assert reference.relative(np.asarray(found), expected) < SINGLE


@pytest.mark.parity
def test_another_head_stays(of_transformers, folder, tmp_path):
  other = tlx.load(str(folder), head='fcn', num_classes=3)
  tlx.save(tmp_path, other)
  again = tlx.load(str(tmp_path))
  assert again.module == other.module
  jax.tree.map(np.testing.assert_array_equal, dict(again.variables), dict(other.variables))


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
  backbone = Backbone(variant.config)
  module = TransferModel(backbone, segformer.Head(row.num_classes, levels(backbone), **row.options))
  variables = pretrained.abstract(module)
  assert trees.count(variables['params']) == sum(x.numel() for x in theirs.parameters())
  assert rules.by_target(table_of(module, row.checkpoint.layout)).keys() == trees.flatten(variables).keys()
  described = segformer.of_config(theirs.config.to_dict() | {'architectures': [type(theirs).__name__]})
  assert described.backbone == row.backbone and described.num_classes == row.num_classes
  assert dataclasses.replace(variant.config, **described.backbone_options) == variant.config
  assert segformer.Head(150, **described.options) == segformer.Head(150, **row.options)
