"""Both families against timm, every tensor random: logits, statistics, gradients, and files in both directions.

torchvision, which timm imports, must be importable. Gradients are measured against timm's in float64.
"""

import copy
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomised

import tlx
from tlx import catalog, trees
from tlx.weights import rules

torch = pytest.importorskip('torch')
try:
  import timm
except Exception as error:  # a CPU-only torch beside torchvision's wheel raises RuntimeError, not ImportError
  pytest.skip(f'timm cannot be imported: {type(error).__name__}: {error}', allow_module_level=True)
pytestmark = pytest.mark.parity

NAMES = ('resnet18', 'resnet50', 'efficientnet_b0', 'tf_efficientnet_b0', 'efficientnet_lite0', 'tf_efficientnet_lite0')
IMAGES = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
LABELS = np.array([3, 998])
# Of a tensor's gradient, relative to its largest value. A pre-activation next to a kink falls on either side of it in
# float32, which moves whole entries; timm's own float32 error against float64 is printed beside ours.
GRADIENT = 1e-3


class Pair(NamedTuple):
  name: str
  reference: Any  # timm's model
  folder: Any  # its weights and config.json
  model: tlx.Pretrained  # tlx.load(folder)


@pytest.fixture(scope='module', params=NAMES)
def pair(request, tmp_path_factory):
  name, folder = request.param, tmp_path_factory.mktemp('timm')
  torch.manual_seed(0)
  reference = timm.create_model(name)
  weights = {key: drawn(key, tensor) for key, tensor in reference.state_dict().items()}
  reference.load_state_dict(weights)
  torch.save(weights, folder / 'pytorch_model.bin')
  (folder / 'config.json').write_text(json.dumps({'architecture': name, 'num_classes': 1000}))
  return Pair(name, reference, folder, tlx.load(str(folder)))


def drawn(name, tensor):
  """Random values of a size that keeps activations near one; variances positive; counters as they are."""
  if not tensor.dtype.is_floating_point:
    return tensor
  if name.endswith('running_var'):
    return torch.rand_like(tensor) + 0.5
  if tensor.ndim > 1:
    return torch.randn_like(tensor) / tensor[0].numel() ** 0.5
  return 0.2 * torch.randn_like(tensor) + (1.0 if name.endswith('weight') else 0.0)


def nchw(images, dtype=torch.float32):
  return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)


def relative(found, expected):
  return float(np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max())


def table_of(model):
  """The rules of timm's layout."""
  return tuple(catalog.variant(model.source.variant).family.LAYOUTS['timm'](model.module.backbone.config))


def timm_pass(reference, train, dtype):
  """(logits, {name: gradient of the mean cross-entropy}, {name: tensor} afterwards) of a copy."""
  copied = copy.deepcopy(reference).to(dtype).train(train)
  logits = copied(nchw(IMAGES, dtype))
  torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
  gradients = {name: parameter.grad.numpy() for name, parameter in copied.named_parameters()}
  return logits.detach().numpy(), gradients, {name: x.numpy() for name, x in copied.state_dict().items()}


def our_pass(model, train):
  """The same in timm's names."""

  def loss(params):
    variables = {**model.variables, 'params': params}
    logits, changed = model.module.apply(variables, IMAGES, train=train, mutable=['batch_stats'])
    return -jax.nn.log_softmax(logits)[jnp.arange(len(LABELS)), LABELS].mean(), (logits, changed.get('batch_stats', {}))

  gradients, (logits, stats) = jax.jit(jax.grad(loss, has_aux=True))(model.variables['params'])
  named = {rule.target: rule for rule in table_of(model) if rule.target}
  leaves = trees.flatten({'params': gradients, 'batch_stats': stats})
  assert leaves.keys() == named.keys()
  return np.asarray(logits), {
    named[path].source: named[path].transform.write(np.asarray(x)) for path, x in leaves.items()
  }


@pytest.mark.parametrize('train', [False, True], ids=['eval', 'train'])
def test_logits_statistics_and_gradients(pair, train):
  logits, ours = our_pass(pair.model, train)
  single_logits, single, after = timm_pass(pair.reference, train, torch.float32)
  exact_logits, exact, _ = timm_pass(pair.reference, train, torch.float64)
  assert relative(logits, single_logits) < 1e-4
  for name, value in after.items():
    if 'running' in name:
      assert relative(ours[name], value) < 1e-4, name
      moved = not np.array_equal(value, pair.reference.state_dict()[name].numpy())
      assert moved == train  # so that equal statistics mean something
  # Where a shift is normalised away by the batch (a linear block's last bias) the true gradient is zero and what is
  # computed is rounding: those are measured by the largest gradient of the model.
  floor = 1e-6 * max(np.abs(x).max() for x in exact.values())
  scale = {name: max(np.abs(x).max(), floor) for name, x in exact.items()}
  zero = [name for name, x in exact.items() if np.abs(x).max() < floor]
  errors = {name: float(np.abs(ours[name] - exact[name]).max() / scale[name]) for name in exact if name not in zero}
  theirs = {name: float(np.abs(single[name] - exact[name]).max() / scale[name]) for name in errors}
  worst = max(errors, key=errors.get)
  print(f'{pair.name} {"train" if train else "eval"}: {len(zero)} of {len(exact)} gradients are zero')
  print(f'  logits {relative(logits, single_logits):.1e}, of float64 {relative(logits, exact_logits):.1e}')
  print(f'  gradients {errors[worst]:.1e} ({worst}), timm {max(theirs.values()):.1e}')
  assert errors.keys() | set(zero) == {name for name, _ in pair.reference.named_parameters()}
  assert errors[worst] < GRADIENT, worst
  assert all(np.abs(ours[name]).max() < 1e4 * floor for name in zero)


def test_our_file_in_timm(pair, tmp_path):
  tuned = tlx.load(str(pair.folder), num_classes=5)
  variables = {
    **tuned.variables,
    'params': {**tuned.variables['params'], 'head': randomised(tuned.variables['params']['head'])},
  }
  folder = tlx.save(tmp_path / 'tuned', tuned.module, variables, source=tuned.source, preprocess=tuned.preprocess)
  reference = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
  by_path = timm.create_model(pair.name, num_classes=5, checkpoint_path=str(folder / 'model.safetensors')).eval()
  with torch.no_grad():
    expected = reference(nchw(IMAGES)).numpy()
    np.testing.assert_array_equal(by_path(nchw(IMAGES)).numpy(), expected)
  logits = jax.jit(tuned.module.apply)(variables, IMAGES)
  assert logits.shape == (2, 5) and relative(logits, expected) < 1e-4


@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_their_file_in_ours(pair, kind, tmp_path):
  if kind == 'pth':
    torch.save(pair.reference.state_dict(), tmp_path / 'weights.pth')
  else:
    pytest.importorskip('safetensors.torch').save_file(pair.reference.state_dict(), tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text((pair.folder / 'config.json').read_text())
  loaded = tlx.load(str(tmp_path))
  # The logits of these very leaves are compared with timm's above; here the files must give the same bits.
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), loaded.variables, pair.model.variables))
  back = rules.write(jax.device_get(loaded.variables), table_of(loaded), loaded.source.dropped)
  expected = pair.reference.state_dict()
  assert back.keys() == expected.keys() and all(np.array_equal(back[name], x.numpy()) for name, x in expected.items())
