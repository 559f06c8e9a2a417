"""torchvision's whole segmentation models against ours, every tensor random: outputs, gradients, statistics and names.

The images are small, not square and not divisible by the strides. Dropout is silenced. Gradients are compared on
smaller backbones, which torchvision's code puts the same heads on.

Largest errors with jax 0.10.2, torch 2.13.0 and torchvision 0.28.0, each as a share of its tensor's largest value:
float64 logits 5e-14, statistics 2e-15, gradients 4e-13 (MobileNetV3 3e-8), float32 logits 5e-6.
"""

import copy
import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
import reference

from tlx import catalog
from tlx.nn import resize
from tlx.nn.levels import levels
from tlx.nn.model import Backbone
from tlx.types import WholeLayout
from tlx.weights import rules

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
HEADS = {head: catalog.find('heads', head) for head in ('deeplabv3', 'fcn', 'lraspp')}
MODELS = {
  name: head
  for head, folder in HEADS.items()
  for name, row in folder.MODELS.items()
  if row.checkpoint.layout == 'torchvision'
}
DEPTHS = (1, 1, 2, 2)  # blocks a stage of the smaller ResNet
FINE = 'stage1_block0'  # the first layer of stride 8 of the smaller MobileNetV3
CASES = [
  ('fcn_resnet50', 'eval'),
  ('fcn_resnet50', 'train'),
  ('deeplabv3_resnet50', 'train'),
  ('deeplabv3_mobilenet_v3_large', 'train'),
  ('lraspp_mobilenet_v3_large', 'train'),
]
SIZE = (65, 97)
EXACT, SINGLE = 1e-10, 1e-4  # float64 and float32, of each tensor's largest value
ROUNDED = 1e-7  # PyTorch's backward pass of the hard sigmoid holds 1/6 in float32 whatever its input


class Whole(nn.Module):
  """Images -> the logits at their size."""

  backbone: Backbone
  head: nn.Module

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    features = self.backbone(x, train=train, taps=True)
    return resize.bilinear(self.head(features, train), x.shape[1:3])


class Pair(NamedTuple):
  theirs: Any  # torchvision's model
  ours: Whole
  table: tuple[rules.Rule, ...]
  variables: dict


def made(name: str, smaller: bool) -> Any:
  """torchvision's, with the second head that its published weights have."""
  models, (head, _, backbone) = reference.library('torchvision').models, name.partition('_')
  if not smaller:
    second = {} if head == 'lraspp' else {'aux_loss': True}
    return getattr(models.segmentation, name)(weights=None, weights_backbone=None, **second)
  build = getattr(getattr(models.segmentation, head), f'_{head}_{"resnet" if "resnet" in name else "mobilenetv3"}')
  if 'resnet' in backbone:
    dilated = {'replace_stride_with_dilation': [False, True, True]}
    network = models.resnet.ResNet(models.resnet.Bottleneck, list(DEPTHS), **dilated)
  else:
    network = models.mobilenet_v3_small(dilated=True)
  return build(network, 21, *([] if head == 'lraspp' else [True]))


def built(name: str, smaller: bool) -> tuple[Whole, tuple[rules.Rule, ...]]:
  folder = HEADS[MODELS[name]]
  row = folder.MODELS[name]
  variant, options, changed = catalog.variant(row.backbone), dict(row.options), dict(row.backbone_options)
  if smaller and 'resnet' in name:
    changed['depths'] = DEPTHS
  elif smaller:
    variant = catalog.variant(row.backbone.replace('large', 'small'))
    options |= {option: FINE for option in ('fine', 'aux_layer') if option in options}
  config = dataclasses.replace(variant.config, **changed)
  backbone = Backbone(config)
  head = folder.Head(row.num_classes, levels(backbone), **options)
  layout = folder.LAYOUTS[row.checkpoint.layout]
  return Whole(backbone, head), joined(layout, variant.family.LAYOUTS[layout.backbone](config), head)


def joined(layout: WholeLayout, backbone: Any, head: nn.Module) -> tuple[rules.Rule, ...]:
  """The backbone's rules without its classifier, renamed, and the head's."""
  own = [rule for rule in backbone if not (rule.target or '').startswith('params/head/')]
  renamed = (rule._replace(source=layout.prefix + rule.source.removeprefix(layout.strip)) for rule in own)
  return (*renamed, *layout.head(head))


def pair(name: str, smaller: bool) -> Pair:
  theirs = made(name, smaller)
  reference.draw(theirs)
  ours, table = built(name, smaller)
  tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
  like = jax.eval_shape(ours.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *SIZE, 3), np.float32))
  return Pair(theirs, ours, table, rules.read(tensors, table, like)[0])


def images(count: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=(count, *SIZE, 3)).astype(np.float32)


def weights() -> np.ndarray:
  """Of the sum of all logits that is differentiated: of the head's, and of the second head's."""
  return np.random.default_rng(1).normal(size=(2, 3, *SIZE, 21))


def their_pass(model: Any, *, train: bool) -> reference.Pass:
  module = copy.deepcopy(model).double().train(train)
  reference.silence(module)
  outputs = module(reference.to_torch(images(3), torch.float64))
  chosen = [outputs[key] for key in ('out', 'aux')[: 1 + train] if key in outputs]
  sum((y * reference.to_torch(w, torch.float64)).sum() for y, w in zip(chosen, weights())).backward()
  gradients = {n: np.zeros(tuple(x.shape)) if x.grad is None else x.grad.numpy() for n, x in module.named_parameters()}
  statistics = {n: x.numpy() for n, x in module.named_buffers() if n.endswith(reference.STATISTICS)}
  return reference.Pass(np.stack([y.detach().numpy() for y in chosen]), gradients, statistics)


def our_pass(whole: Pair, *, train: bool) -> reference.Pass:
  def loss(params, others, x, weights):
    logits, moved = whole.ours.apply({'params': params, **others}, x, train, mutable=['batch_stats', 'aux'])
    chosen = [logits, *(resize.bilinear(second, SIZE) for second in jax.tree.leaves(moved.pop('aux', {})))]
    return sum((y * w).sum() for y, w in zip(chosen, weights)), (chosen, moved)

  variables = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(whole.variables))
  with jax.enable_x64(True):
    arguments = (variables.pop('params'), variables, images(3).astype(np.float64), weights())
    gradients, (chosen, moved) = reference.compiled(jax.grad(loss, has_aux=True), *arguments)
  assert {y.dtype.name for y in chosen} == {'float64'}
  named = (rules.write(jax.device_get(tree), whole.table) for tree in ({'params': gradients}, dict(moved)))
  return reference.Pass(np.stack([np.asarray(y).transpose(0, 3, 1, 2) for y in chosen]), *named)


@pytest.mark.parametrize(('name', 'mode'), CASES)
def test_logits_gradients_and_statistics(name, mode, monkeypatch):
  monkeypatch.setattr('tlx.nn.stochastic.Dropout.__call__', lambda self, x, train: x)
  whole, train = pair(name, smaller=True), mode == 'train'
  before = {n: x.numpy().copy() for n, x in whole.theirs.named_buffers() if n.endswith(reference.STATISTICS)}
  ours, theirs = our_pass(whole, train=train), their_pass(whole.theirs, train=train)
  assert len(ours.logits) == 1 + (train and not name.startswith('lraspp'))
  assert not [n for n, x in theirs.statistics.items() if np.array_equal(x, before[n]) == train]
  errors = {
    'logits': reference.compare({'': ours.logits}, {'': theirs.logits}),
    'statistics': reference.compare(ours.statistics, theirs.statistics),
    'gradients': reference.compare(ours.gradients, theirs.gradients, floor=1e-6),
  }
  print(f'\n{name} {mode}:', *(f'{what} {e.error:.1e} {e.name};' for what, e in errors.items()))
  limits = {'gradients': ROUNDED} if 'mobilenet' in name else {}
  assert not {what: worst for what, worst in errors.items() if worst.error >= limits.get(what, EXACT)}


@pytest.mark.parametrize('name', MODELS)
def test_the_same_tensors_come_back_and_float32_logits(name):
  whole = pair(name, smaller=False)
  expected = {name: x.numpy() for name, x in whole.theirs.state_dict().items() if 'num_batches' not in name}
  back = rules.write(whole.variables, whole.table)
  assert back.keys() == expected.keys() and all(back[n].tobytes() == x.tobytes() for n, x in expected.items())
  with torch.no_grad():
    logits = whole.theirs.eval()(reference.to_torch(images(1)))['out'].numpy()
  found = reference.compiled(whole.ours.apply, whole.variables, images(1))
  error = reference.relative(np.asarray(found).transpose(0, 3, 1, 2), logits)
  print(f'\n{name}: float32 logits {error:.1e}')
  assert found.dtype == np.float32 and error < SINGLE


def test_every_model_of_torchvision_is_here():
  models = reference.library('torchvision').models
  assert set(models.list_models(module=models.segmentation)) == MODELS.keys()
