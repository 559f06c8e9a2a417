"""One variant of each family, drawn at random, against numbers recorded from timm: parity without torch at hand.

All tensors are random, made from their names in the other library's state dict, on both sides: no weights are stored.
Small recorded numbers: `tests/parity/record.py` writes them, from torchvision for SqueezeNet and from
segmentation_models_pytorch for the Mix Transformer, which timm lacks.

Largest errors of `pytest -n 0 -s -m "" tests/numerics/test_recorded.py` with jax 0.10.2: 1.1e-6 of the
largest logit in evaluation in float32, but 8.2e-6 for ResNetV2, where timm's own float32 is 3.8e-6 away; in training
mode in float64 3.3e-7 of logits, loss, gradients and statistics, which is the rounding of what was recorded.
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from tlx import catalog, pretrained
from tlx.nn.model import TransferModel
from tlx.types import Variables
from tlx.weights import rules

FILE = Path(__file__).with_name('recorded.json')
COMMAND = 'PYTHONPATH=tests/numerics python tests/parity/record.py'
RECORDED = json.loads(FILE.read_text()) if FILE.exists() else {'families': {}}
CLASSES = 16
LABELS = np.array([1, 3])
FIRST = 8  # logits kept of each image
STATISTICS = ('running_mean', 'running_var')
SINGLE = 5e-5  # float32
DOUBLE = 1e-6  # float64 against seven digits, which are at most 5e-7 away


class Ours(NamedTuple):
  """A variant with the drawn tensors in it."""

  module: TransferModel
  variables: Variables
  table: tuple[rules.Rule, ...]
  images: np.ndarray


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32: the tensor of that name, sized so that activations stay near one.

  Only the raw bits of a generator are used, which numpy promises never to change, and exact arithmetic up to the last
  two roundings: the same everywhere.
  """
  count = math.prod(shape)
  bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count // 2 + 1).astype('<u8').view('<u4')[:count]
  unit = ((bits >> 8).astype(np.float32) / np.float32(2**24)).reshape(shape)  # in [0, 1)
  if name.endswith('running_var'):
    return unit + np.float32(0.5)
  normed = (unit - np.float32(0.5)) * np.float32(12**0.5)  # variance one
  if name.endswith('weight') and len(shape) > 1:
    return normed / np.float32(math.prod(shape[1:]) ** 0.5)
  scales = len(shape) == 1 and name.endswith(('weight', 'gamma', 'gamma_1', 'gamma_2'))  # norms, layer scales
  return normed * np.float32(0.2) + np.float32(scales)


def images(size: int, spread: float) -> np.ndarray:
  """float32 [2, size, size, 3] with that standard deviation."""
  return drawn('images', (len(LABELS), size, size, 3)) * np.float32(5 * spread)


def norm(tensors: Mapping[str, Any]) -> float:
  """L2 norm of all tensors together."""
  return math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors.values()))


def recorded(family: str) -> dict[str, Any]:
  if family not in RECORDED['families']:
    pytest.fail(f'{family} has no numbers in {FILE.name}: record them with {COMMAND} {family}')
  return RECORDED['families'][family]


def ours(record: Mapping[str, Any]) -> Ours:
  """The recorded variant; reads the drawn tensors as `tlx.load` reads a file."""
  found = catalog.variant(record['variant'])
  sized = {'size': record['size']} if found.config.size else {}
  second = {'aux_classes': None} if found.config.aux_classes is not None else {}  # timm builds none by default
  found = found._replace(config=dataclasses.replace(found.config, **sized, **second))
  module = pretrained.build(found, CLASSES)
  like, table = pretrained.abstract(module), tuple(next(iter(found.family.LAYOUTS.values()))(found.config))
  empty = rules.write(jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), like), table)
  tensors = {name: drawn(name, tensor.shape) for name, tensor in empty.items()}
  variables, _ = rules.read(tensors, table, like, where=found.name)
  return Ours(module, variables, table, images(record['size'], record['spread']))


def error(found: Any, expected: Any) -> float:
  """Largest difference as a share of the largest expected value."""
  expected = np.asarray(expected)
  return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize('family', catalog.names('models'))
def test_logits(family):
  record = recorded(family)
  model = ours(record)
  logits = np.asarray(jax.jit(model.module.apply)(model.variables, model.images))
  assert logits.shape == (len(LABELS), CLASSES) and logits.dtype == np.float32
  errors = {
    'logits': error(logits[:, :FIRST], record['eval']['logits']),
    'norm': error(norm({'': logits}), record['eval']['norm']),
  }
  print(record['variant'], errors)
  assert max(errors.values()) < SINGLE, errors


@pytest.mark.full
@pytest.mark.timeout(900)  # one long compilation
@pytest.mark.parametrize('family', catalog.names('models'))
def test_training_and_gradients(family):
  record = recorded(family)
  expected = record['train']
  model = ours(record)
  found = in_training(model)
  gradients = found['gradients']
  assert expected['gradients'].keys() <= gradients.keys()
  errors = {
    'logits': error(found['logits'][:, :FIRST], expected['logits']),
    'norm': error(norm({'': found['logits']}), expected['norm']),
    'loss': error(found['loss'], expected['loss']),
    'gradient': error(norm(gradients), expected['gradient']),
    **{name: error(norm({'': gradients[name]}), value) for name, value in expected['gradients'].items()},
  }
  assert bool(found['statistics']) == ('statistics' in expected)
  if found['statistics']:
    errors['statistics'] = error(norm(found['statistics']), expected['statistics'])
  print(record['variant'], errors)
  assert max(errors.values()) < DOUBLE, errors


def in_training(model: Ours) -> dict[str, Any]:
  """Logits, loss, gradients and moved statistics under timm's names, with batch statistics and without dropout.

  In float64: in float32 rounding puts a pre-activation or two on the other side of a kink, which moves gradients by
  percents, in timm as in ours.
  """

  def loss(params, others, pixels):
    logits, moved = model.module.apply({'params': params, **others}, pixels, train=True, mutable=['batch_stats'])
    picked = jax.nn.log_softmax(logits)[np.arange(len(LABELS)), LABELS]
    return -picked.mean(), (logits, moved)

  with jax.enable_x64(True):
    double = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    others = double(dict(model.variables))
    params = others.pop('params')
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (logits, moved)), gradients = jax.device_get(step(params, others, double(model.images)))
  assert {leaf.dtype.name for leaf in jax.tree.leaves((value, logits, moved, gradients))} == {'float64'}
  return {
    'logits': logits,
    'loss': value,
    'gradients': rules.write({'params': gradients}, model.table),
    'statistics': rules.write(dict(moved), model.table),
  }
