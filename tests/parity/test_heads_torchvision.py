"""torchvision's whole segmentation models against ours, every tensor random: outputs, gradients, statistics and names.

The images are small, not square and not divisible by the strides. Dropout is silenced. Gradients are compared on
smaller backbones, which torchvision's code puts the same heads on.

Largest errors with jax 0.10.2, torch 2.13.0 and torchvision 0.28.0, each as a share of its tensor's largest value:
float64 logits 5e-14, statistics 2e-15, gradients 4e-13 (MobileNetV3 3e-8), float32 logits 5e-6.
"""

import copy
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import reference

import tlx
from tlx import catalog
from tlx.nn import resize
from tlx.pretrained import modules
from tlx.types import Source
from tlx.weights import read_tensors, rules

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
MODELS = {name for name, (_, row) in catalog.wholes().items() if 'pytorch/vision' in row.checkpoint.source}
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


class Pair(NamedTuple):
  theirs: Any  # torchvision's model
  ours: tlx.Pretrained
  table: tuple[rules.Rule, ...]


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


def small_pair(name: str) -> Pair:
  """On a smaller backbone, which no published file has."""
  theirs = made(name, smaller=True)
  reference.draw(theirs)
  head, row = catalog.wholes()[name]
  variant, options, changed = catalog.variant(row.backbone), dict(row.options), dict(row.backbone_options)
  if 'resnet' in name:
    changed['depths'] = DEPTHS
  else:
    variant = catalog.variant(row.backbone.replace('large', 'small'))
    options |= {option: FINE for option in ('fine', 'aux_layer') if option in options}
  variant = variant._replace(config=dataclasses.replace(variant.config, **changed))
  spec = f'{head}({", ".join(f"{field}={value!r}" for field, value in options.items())})'
  module = modules.build(variant, row.num_classes, head=spec)
  table = modules.tables(variant, module)['torchvision']
  tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
  variables, _ = rules.read(tensors, table, modules.abstract(module))
  return Pair(theirs, tlx.Pretrained(module, variables, tlx.Preprocess(), (), Source(variant.name)), table)


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
    variables = {'params': params, **others}
    logits, moved = whole.ours.module.apply(variables, x, train=train, mutable=['batch_stats', 'aux'])
    chosen = [resize.bilinear(y, SIZE) for y in (logits, *jax.tree.leaves(moved.pop('aux', {})))]
    return sum((y * w).sum() for y, w in zip(chosen, weights)), (chosen, moved)

  variables = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(whole.ours.variables))
  with jax.enable_x64(True):
    arguments = (variables.pop('params'), variables, images(3).astype(np.float64), weights())
    gradients, (chosen, moved) = reference.compiled(jax.grad(loss, has_aux=True), *arguments)
  assert {y.dtype.name for y in chosen} == {'float64'}
  named = (rules.write(jax.device_get(tree), whole.table) for tree in ({'params': gradients}, dict(moved)))
  return reference.Pass(np.stack([np.asarray(y).transpose(0, 3, 1, 2) for y in chosen]), *named)


@pytest.mark.parametrize(('name', 'mode'), CASES)
def test_logits_gradients_and_statistics(name, mode, monkeypatch):
  monkeypatch.setattr('tlx.nn.stochastic.Dropout.__call__', lambda self, x, train: x)
  whole, train = small_pair(name), mode == 'train'
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


@pytest.mark.parametrize('name', sorted(MODELS))
def test_its_files_in_both_directions_and_float32_logits(name, tmp_path):
  theirs = made(name, smaller=False)
  reference.draw(theirs)
  torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
  ours = tlx.load(name, weights=str(tmp_path / 'weights.pth'))
  assert ours.source.layout == 'torchvision' and len(ours.class_names) == 21
  folder = tlx.save(tmp_path / 'saved', ours)
  expected, back = theirs.state_dict(), read_tensors(folder)
  assert back.keys() == expected.keys() and all(back[n].tobytes() == x.numpy().tobytes() for n, x in expected.items())
  with torch.no_grad():
    logits = theirs.eval()(reference.to_torch(images(1)))['out'].numpy()
  run = lambda variables, x: resize.bilinear(ours.module.apply(variables, x), SIZE)
  found = reference.compiled(run, dict(ours.variables), images(1))
  error = reference.relative(np.asarray(found).transpose(0, 3, 1, 2), logits)
  print(f'\n{name}: float32 logits {error:.1e}')
  assert found.dtype == np.float32 and error < SINGLE


def test_every_model_of_torchvision_is_here():
  models = reference.library('torchvision').models
  assert set(models.list_models(module=models.segmentation)) == MODELS
