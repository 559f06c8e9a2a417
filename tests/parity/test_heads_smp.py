"""Our heads against segmentation-models-pytorch's decoders on the same maps, and whole models from smp's own folders.

Every tensor is random. Largest errors that `pytest -m parity -n 0 -s tests/parity/test_heads_smp.py` prints with jax
0.10.2, torch 2.13.0 and segmentation-models-pytorch 0.6.0, each as a share of its tensor's largest value, in evaluation
/ training mode; of the whole models (15 kinds of encoders) the float32 logits differ by at most 2.3e-6.

                        float64 logits   statistics  gradients
  unet                  1e-15 / 5e-15    3e-15       1e-14 / 1e-14
  fpn                   2e-15 / 2e-15    none        2e-15 / 2e-15
  deeplabv3plus         4e-16 / 9e-16    5e-16       2e-15 / 6e-14
  upernet               1e-15 / 2e-15    2e-15       2e-15 / 1e-10
  resnet18 with a unet  3e-15 / 3e-14    2e-15       6e-15 / 4e-14

The 1e-10 is a shift that batch statistics take away, whose true gradient is zero.
"""

import copy
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest
import reference
from tiny import matrix

import tlx
from tlx import catalog, weights
from tlx.nn.levels import Level
from tlx.pretrained import modules
from tlx.weights import rules

CLASSES = 5
MODES = ('eval', 'train')
CHANNELS = (6, 8, 12, 16, 20)  # of the maps of stride 2, 4, 8, 16 and 32
IMAGE = (64, 96)
EXACT = 1e-9  # float64, of each tensor's largest value
SINGLE = 1e-4  # float32
HEADS = {'Unet': 'unet', 'DeepLabV3Plus': 'deeplabv3plus', 'FPN': 'fpn', 'UPerNet': 'upernet', 'Segformer': 'segformer',
         'PSPNet': 'pspnet'}  # fmt: skip
ROOMS = {'DeepLabV3Plus': 'deeplabv3'}  # of smp's, where it is not our head's name
WIDTHS = {'decoder_channels': (24, 16, 12, 10, 8)}
PYRAMID = {'decoder_pyramid_channels': 16, 'decoder_segmentation_channels': 64}
BILINEAR = {'decoder_interpolation': 'bilinear'}
NO_NORM = {'decoder_use_norm': 'identity'}
SMALL = {'decoder_channels': 16}


class Case(NamedTuple):
  theirs: str  # smp's class
  arguments: dict[str, Any]  # its own
  strides: tuple[int, ...] = (2, 4, 8, 16, 32)  # of the maps, which are the encoder's
  encoder: str = 'resnet18'  # whose rules of smp's hold; the maps do not come from it


CASES = {
  'unet': Case('Unet', WIDTHS),
  'unet of a VGG, bilinear, without norms': Case('Unet', {**WIDTHS, **BILINEAR, **NO_NORM}, encoder='vgg11'),
  'unet from stride 4': Case('Unet', WIDTHS, (4, 8, 16, 32), 'tu-convnext_tiny'),
  'fpn': Case('FPN', PYRAMID),
  'fpn joined, bilinear': Case('FPN', {**PYRAMID, **BILINEAR, 'decoder_merge_policy': 'cat', 'upsampling': 2}),
  'deeplabv3plus': Case('DeepLabV3Plus', {'decoder_channels': 16}, (2, 4, 8, 16, 16)),
  'deeplabv3plus of stride 8, not separable': Case(
    'DeepLabV3Plus',
    {'decoder_channels': 16, 'decoder_atrous_rates': (2, 4, 6), 'decoder_aspp_separable': False, 'upsampling': 1,
     'encoder_output_stride': 8}, (2, 4, 8, 8, 8),
  ),
  'upernet': Case('UPerNet', SMALL),
  'segformer': Case('Segformer', {'decoder_segmentation_channels': 16}),
  'segformer from stride 4': Case(
    'Segformer', {'decoder_segmentation_channels': 24, 'upsampling': 1}, (4, 8, 16, 32), 'mit_b0'
  ),
  'pspnet': Case('PSPNet', {'psp_out_channels': 16}, (2, 4, 8)),
  'pspnet without norms': Case('PSPNet', {'psp_out_channels': 16, 'upsampling': 2, **NO_NORM}),
  'upernet without norms': Case('UPerNet', {'decoder_channels': 16, **NO_NORM}),
}  # fmt: skip


class Pass(NamedTuple):
  """What one forward and backward pass leaves, under smp's names."""

  logits: np.ndarray  # [b, h, w, k]
  gradients: reference.Tensors  # of a weighted mean of the logits; of the maps too
  statistics: reference.Tensors


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def smp(torch):
  return reference.library('segmentation_models_pytorch')


def our_head(name: str) -> Any:
  return importlib.import_module(f'tlx.heads.{HEADS[name]}')


def without_encoder(torch, case: Case) -> Any:
  """smp's model for maps of `CHANNELS` that come from no encoder."""

  class Encoder(torch.nn.Module):
    out_channels = [3, *(CHANNELS[-len(case.strides) :])]
    output_stride = 32

  if case.strides[0] == 4:
    Encoder.out_channels.insert(1, 0)
  room = ROOMS.get(case.theirs, case.theirs.lower())
  file = importlib.import_module(f'segmentation_models_pytorch.decoders.{room}.model')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(file, 'get_encoder', lambda *args, **options: Encoder())
    return getattr(file, case.theirs)(case.encoder, encoder_weights=None, classes=CLASSES, **case.arguments)


def maps(strides: tuple[int, ...]) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  sides = [tuple(side // stride for side in IMAGE) for stride in strides]
  return {
    f'stage{i}': rng.normal(size=(2, *side, c)) for i, (side, c) in enumerate(zip(sides, CHANNELS[-len(strides) :]))
  }


def cotangent(logits: Any) -> np.ndarray:
  """The derivative of the loss with respect to the logits [b, h, w, k]."""
  return np.random.default_rng(1).normal(size=logits.shape) / logits.size


def their_pass(torch, module: Any, forward: Any, inputs: Mapping[str, np.ndarray], train: bool) -> Pass:
  module = copy.deepcopy(module).double().train(train)
  reference.silence(module)
  tensors = {name: reference.to_torch(x, torch.float64).requires_grad_() for name, x in inputs.items()}
  logits = forward(module, tensors).permute(0, 2, 3, 1)
  logits.backward(torch.from_numpy(cotangent(logits.detach().numpy())))
  gradients = {name: x.grad.numpy() for name, x in module.named_parameters() if x.grad is not None}
  gradients |= {name: x.grad.permute(0, 2, 3, 1).numpy() for name, x in tensors.items() if x.grad is not None}
  statistics = {name: x.numpy() for name, x in module.named_buffers() if name.endswith(reference.STATISTICS)}
  return Pass(logits.detach().numpy(), gradients, statistics)


def our_pass(module: nn.Module, variables: Any, inputs: Any, table: tuple[rules.Rule, ...], train: bool) -> Pass:
  """float64; the variables are those below 'head/' where the module is a head."""
  variables = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(variables))

  def loss(params, inputs, others):
    logits, moved = module.apply({'params': params, **others}, inputs, train=train, mutable=['batch_stats'])
    return (logits * cotangent(logits)).sum(), (logits, moved)

  with jax.enable_x64(True):
    params = variables.pop('params')
    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (of_params, of_inputs), (logits, moved) = reference.compiled(gradient, params, inputs, variables)
  table = tuple(rule for rule in table if rule.target)
  named = lambda tree: rules.write(jax.device_get(tree), table)
  of_inputs = of_inputs if isinstance(of_inputs, dict) else {'image': of_inputs}
  return Pass(np.asarray(logits), {**named({'params': of_params}), **of_inputs}, named(dict(moved)))


def wrong(what: str, ours: Pass, theirs: Pass) -> dict[str, reference.Worst]:
  """Prints the largest errors, and returns those that are too large."""
  found = {
    'logits': reference.compare({'': ours.logits}, {'': theirs.logits}),
    'statistics': reference.compare(ours.statistics, theirs.statistics),
    # Where batch statistics take a shift away again its true gradient is zero, and rounding is what is computed.
    'gradients': reference.compare(ours.gradients, theirs.gradients, floor=1e-6),
  }
  print(f'\n{what}:', *(f'{part} {e.error:.1e} {e.name};' for part, e in found.items()))
  return {part: worst for part, worst in found.items() if worst.error >= EXACT}


@pytest.mark.parity
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('train', [False, True], ids=MODES)
def test_head(name, train, torch, smp):
  case = CASES[name]
  theirs = without_encoder(torch, case)
  reference.draw(theirs)
  file, inputs = our_head(case.theirs), maps(case.strides)
  options = file.of_smp({**theirs.config, '_model_class': case.theirs}).options
  found = tuple(Level(f'stage{i}', s, x.shape[-1]) for i, (s, x) in enumerate(zip(case.strides, inputs.values())))
  layers = tuple(level.layer for level in found) if case.theirs == 'Segformer' else ()  # smp's reads stride 2 too
  head = silent(file.Head(CLASSES, found, **{**options, 'layers': layers}))
  table = tuple(file.rules_of_smp(head))
  tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
  like = jax.eval_shape(lambda x: Under(head).init(jax.random.key(0), x), inputs)
  variables, _ = rules.read(tensors, table, like)

  def forward(module, x):
    features = [torch.zeros(2, 3, *IMAGE), *x.values()]
    if case.strides[0] == 4:
      features.insert(1, torch.zeros(2, 0, IMAGE[0] // 2, IMAGE[1] // 2))
    return module.segmentation_head(module.decoder([x.double() for x in features]))

  expected = their_pass(torch, theirs, forward, inputs, train)
  ours = our_pass(Under(head), variables, inputs, table, train)
  read = {name: x for name, x in ours.gradients.items() if name in expected.gradients}
  assert not [n for n, x in ours.gradients.items() if n not in read and x.any()]  # maps that the head does not read
  assert not wrong(f'{name} {MODES[train]}', ours._replace(gradients=read), expected)
  moved = [n for n, x in ours.statistics.items() if not np.array_equal(x, tensors[n])]
  assert moved == (list(ours.statistics) if train else [])


def silent(head: nn.Module) -> nn.Module:
  """Without dropout, whose masks no two libraries draw alike."""
  return head.clone(dropout=0.0) if hasattr(head, 'dropout') else head


class Under(nn.Module):
  """A head at its place in a model."""

  head: nn.Module

  def __call__(self, features, train=False):
    return self.head(features, train)


def saved(smp, folder: Any, theirs: str, encoder: str, **arguments: Any) -> Any:
  module = getattr(smp, theirs)(encoder, encoder_weights=None, classes=CLASSES, **arguments)
  reference.draw(module)
  module.save_pretrained(folder)
  return module


@pytest.mark.parity
@pytest.mark.timeout(900)
@pytest.mark.parametrize('train', [False, True], ids=MODES)
def test_unet_resnet18(train, torch, smp, tmp_path):
  theirs = saved(smp, tmp_path, 'Unet', 'resnet18')
  ours = tlx.load(str(tmp_path))
  image = np.random.default_rng(2).normal(size=(2, *IMAGE, 3))
  expected = their_pass(torch, theirs, lambda module, x: module(x['image']), {'image': image}, train)
  table = modules.tables(catalog.variant('resnet18'), ours.module)[ours.source.layout]
  found = our_pass(ours.module, ours.variables, image, table, train)
  assert not wrong(f'Unet resnet18 {MODES[train]}', found, expected)


WHOLE = {  # encoder: smp's class and arguments
  'resnet18': ('FPN', {'encoder_depth': 4, 'upsampling': 2, **PYRAMID}),
  'resnet34': ('DeepLabV3Plus', SMALL),
  'resnet50': ('DeepLabV3Plus', {**SMALL, 'encoder_output_stride': 8}),
  'mobilenet_v2': ('Unet', WIDTHS),
  'vgg11_bn': ('Unet', WIDTHS),
  'mit_b0': ('Segformer', {'decoder_segmentation_channels': 16}),
  'efficientnet-b0': ('UPerNet', SMALL),
  'timm-efficientnet-b0': ('DeepLabV3Plus', SMALL),
  'timm-tf_efficientnet_lite0': ('Unet', {**WIDTHS, 'in_channels': 1}),
  'tu-efficientnet_lite0': ('FPN', PYRAMID),
  'tu-tf_efficientnet_b0': ('UPerNet', SMALL),
  'tu-mobilenetv2_050': ('DeepLabV3Plus', SMALL),
  'tu-resnet26d': ('DeepLabV3Plus', {**SMALL, 'encoder_output_stride': 8}),
  'tu-convnext_atto': ('UPerNet', SMALL),
  'tu-swin_tiny_patch4_window7_224': ('UPerNet', {**SMALL, 'img_size': 224}),
}


@pytest.mark.parity
@pytest.mark.parametrize('encoder', matrix(WHOLE, ('resnet18', 'mit_b0')))
def test_folders_of_smp_are_read_and_written(encoder, torch, smp, tmp_path):
  name, arguments = WHOLE[encoder]
  theirs = saved(smp, tmp_path / 'theirs', name, encoder, **arguments).eval()
  ours = tlx.load(str(tmp_path / 'theirs'))
  tlx.save(tmp_path / 'ours', ours)
  back, tensors = (weights.read_tensors(tmp_path / folder) for folder in ('ours', 'theirs'))
  assert back.keys() == tensors.keys() and all(back[n].tobytes() == x.tobytes() for n, x in tensors.items())
  size = (224, 224) if 'swin' in encoder else IMAGE
  image = np.random.default_rng(2).normal(size=(2, *size, arguments.get('in_channels', 3))).astype(np.float32)
  with torch.no_grad():
    expected, again = (
      module.eval()(reference.to_torch(image)).permute(0, 2, 3, 1).numpy()
      for module in (theirs, smp.from_pretrained(tmp_path / 'ours'))
    )
  np.testing.assert_array_equal(expected, again)
  logits = np.asarray(reference.compiled(ours.module.apply, ours.variables, image))
  error = reference.relative(logits, expected)
  print(f'\n{name} {encoder}: float32 logits {error:.1e}')
  assert logits.shape == (2, *size, CLASSES) and error < SINGLE


@pytest.mark.parity
@pytest.mark.full
@pytest.mark.parametrize(('name', 'encoder'), [('Unet', 'tu-mobilenetv2_050'), ('FPN', 'resnet18')])
def test_other_classes_and_channels_go_back_to_smp(name, encoder, torch, smp, tmp_path):
  saved(smp, tmp_path / 'theirs', name, encoder, **(WIDTHS if name == 'Unet' else PYRAMID))
  changed = tlx.load(str(tmp_path / 'theirs'), num_classes=3, in_channels=4)
  tlx.save(tmp_path / 'ours', changed, class_names=('a', 'b', 'c'))
  again = tlx.load(str(tmp_path / 'ours'))
  assert again.class_names == ('a', 'b', 'c') and again.module == changed.module
  jax.tree.map(np.testing.assert_array_equal, again.variables, changed.variables)
  image = np.random.default_rng(2).normal(size=(2, *IMAGE, 4)).astype(np.float32)
  with torch.no_grad():
    expected = smp.from_pretrained(tmp_path / 'ours').eval()(reference.to_torch(image)).permute(0, 2, 3, 1).numpy()
  assert reference.relative(np.asarray(jax.jit(changed.module.apply)(changed.variables, image)), expected) < SINGLE
