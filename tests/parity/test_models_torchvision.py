"""Every family that torchvision has against it, every tensor random: outputs, gradients, and files in both directions.

Largest errors of `pytest -m parity -n 0 -s tests/parity/test_models_torchvision.py` with jax 0.10.2, torch 2.13.0 and
torchvision 0.28.0, each as a share of its tensor's largest value: float64 logits 5e-11 (Swin V2 2e-9), statistics
4e-12, gradients 7e-10 (MobileNetV3 3e-8, Swin V2 2e-7), float32 logits 2e-6. The largest are Inception's, in training
mode, whose last maps of these small images hold a place or two.
"""

import re
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import reference

import tlx
from tlx import catalog
from tlx.weights import read_tensors, rules


class Case(NamedTuple):
  """A variant, what torchvision calls it and is told to build it, and the pixels of its images."""

  name: str
  theirs: str
  size: int = 64
  arguments: dict[str, Any] = {}
  modes: tuple[str, ...] = ('eval', 'train')


# Without batch statistics both modes are one program; of large second variants the other mode has its logits compared.
ONE = ('train',)
CASES = {  # family: two variants, where torchvision has two
  'convnext': (Case('convnext_tiny', 'convnext_tiny', modes=ONE), Case('convnext_small', 'convnext_small', modes=ONE)),
  'densenet': (Case('densenet121', 'densenet121'), Case('densenet169', 'densenet169', 75, modes=ONE)),
  'efficientnet': (
    Case('efficientnet_b0', 'efficientnet_b0'), Case('tv_efficientnet_b5', 'efficientnet_b5', 75, modes=ONE),
  ),
  'efficientnetv2': (
    Case('tv_efficientnetv2_s', 'efficientnet_v2_s'), Case('tv_efficientnetv2_m', 'efficientnet_v2_m', 75, modes=ONE),
  ),
  'inception': (
    # The second head, which trains on maps of 299 pixels alone, and the network without it.
    Case('inception_v3', 'inception_v3', 96, {'init_weights': False}, ('eval',)),
    Case('inception_v3', 'inception_v3', 96, {'init_weights': False, 'aux_logits': False}),
  ),
  'mobilenetv2': (
    Case('mobilenetv2_100', 'mobilenet_v2'), Case('mobilenetv2_050', 'mobilenet_v2', 75, {'width_mult': 0.5}),
  ),
  'mobilenetv3': (
    Case('tv_mobilenetv3_small_100', 'mobilenet_v3_small'),
    Case('tv_mobilenetv3_large_100', 'mobilenet_v3_large', 75, modes=ONE),
  ),
  'regnet': (Case('regnetx_004_tv', 'regnet_x_400mf'), Case('regnety_004', 'regnet_y_400mf', 75)),
  'resnet': (Case('resnet18', 'resnet18', 75), Case('resnext50_32x4d', 'resnext50_32x4d', modes=ONE)),
  'squeezenet': (
    Case('squeezenet1_0', 'squeezenet1_0', modes=ONE), Case('squeezenet1_1', 'squeezenet1_1', 75, modes=ONE),
  ),
  'swin': (
    Case('swin_tiny_patch4_window7_224', 'swin_t', 224, modes=ONE),
    Case('swin_small_patch4_window7_224', 'swin_s', 224, modes=ONE),
  ),
  'swinv2': (
    Case('swinv2_tiny_window8_256', 'swin_v2_t', 256, modes=ONE),
    Case('swinv2_small_window8_256', 'swin_v2_s', 256, modes=ONE),
  ),
  'vgg': (Case('vgg11', 'vgg11', modes=ONE), Case('vgg13_bn', 'vgg13_bn')),
  'vit': (
    Case('vit_tiny_patch16_224', 'VisionTransformer', 64, dict(
      image_size=64, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768), ONE),
    Case('vit_small_patch32_224', 'VisionTransformer', 64, dict(
      image_size=64, patch_size=32, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536), ONE),
  ),
}  # fmt: skip
NAMED = {  # with a line after it where it lacks the second head
  f'{case.name}{"_" * (not case.arguments.get("aux_logits", True))}': case for cases in CASES.values() for case in cases
}
OFTEN = ('mobilenetv2_100', 'vgg11')  # not only when drawn
OTHERS = {  # shapes that the cases lack, whose tensors alone are compared
  'wide_resnet50_2': 'wide_resnet50_2', 'resnext101_64x4d': 'resnext101_64x4d', 'resnet152': 'resnet152',
  'vit_base_patch16_224': 'vit_b_16', 'regnety_080_tv': 'regnet_y_8gf', 'swin_base_patch4_window7_224': 'swin_b',
  'densenet161': 'densenet161', 'tv_efficientnet_b7': 'efficientnet_b7',
}  # fmt: skip
OLDER = (  # names in torchvision's published files that its code no longer has
  ('densenet', r'(denselayer\d+\.(?:norm|conv))([12])', r'\1.\2'),
  ('vit', r'mlp\.([03])\.', lambda found: f'mlp.linear_{1 + int(found[1]) // 3}.'),
)
EXACT = 1e-8  # float64, of each tensor's largest value
# PyTorch's backward pass of the hard sigmoid holds 1/6 in float32 whatever its input: 3.1e-8 of a gradient. torchvision
# computes Swin V2's steps between places in float32.
ROUNDED = {'mobilenetv3': 1e-7, 'swinv2': 1e-6}
SINGLE = 1e-4  # float32


class Pair(NamedTuple):
  case: Case
  theirs: Any  # torchvision's model
  path: str  # of its .pth
  ours: tlx.Pretrained
  images: np.ndarray


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def torchvision():
  return reference.library('torchvision')


def made(torchvision, case, **arguments):
  return getattr(torchvision.models, case.theirs)(**case.arguments, **arguments)


def load(case, path, **arguments):
  """With the images' size where the parameters depend on it."""
  size = {'image_size': case.size} if catalog.variant(case.name).config.size else {}
  return tlx.load(case.name, weights=path, **size, **arguments)


@pytest.fixture(scope='module', params=reference.grouped('torchvision', NAMED, OFTEN))
def pair(request, torchvision, torch, tmp_path_factory):
  case, path = request.param, str(tmp_path_factory.mktemp('torchvision') / 'weights.pth')
  theirs = made(torchvision, case)
  reference.draw(theirs)
  torch.save(theirs.state_dict(), path)
  return Pair(case, theirs, path, load(case, path), reference.images(case.size))


def test_every_family_with_such_a_layout_is_compared():
  families = {name: catalog.find('models', name) for name in catalog.names('models')}
  assert {name for name, family in families.items() if 'torchvision' in family.LAYOUTS} == CASES.keys()
  for name, cases in CASES.items():
    layouts, variants = families[name].LAYOUTS, families[name].VARIANTS.items()
    has = {v for v, config in variants if '_test' not in v and 'torchvision' in rules.tables(layouts, config)[0]}
    named = {case.name for case in cases}
    assert named <= has and len(named) >= min(2, len(has)), name


@pytest.mark.parity
@pytest.mark.timeout(900)
@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_logits_statistics_and_gradients(pair, mode):
  if mode not in pair.case.modes:
    pytest.skip('the same program, one of the second variants, or images too small to train on')
  errors = reference.float64_errors(pair.ours, pair.theirs, pair.images, train=mode == 'train')
  print(f'\n{pair.case.name} {mode}:', *(f'{what} {e.error:.1e} {e.name};' for what, e in errors.items()))
  family = next((family for family in ROUNDED if family in pair.case.name), None)
  bad = {what: worst for what, worst in errors.items() if worst.error >= ROUNDED.get(family, EXACT)}
  assert not bad


@pytest.mark.parity
def test_the_same_tensors_come_back(pair, tmp_path):
  expected = {name: x.numpy() for name, x in pair.theirs.state_dict().items()}
  back = rules.write(jax.device_get(pair.ours.variables), reference.table_of(pair.ours), pair.ours.source.dropped)
  assert back.keys() == expected.keys() and all(back[name].tobytes() == x.tobytes() for name, x in expected.items())


@pytest.mark.full
@pytest.mark.parity
@pytest.mark.parametrize(('name', 'theirs'), OTHERS.items())
def test_other_sizes_come_back_too(name, theirs, torchvision, torch, tmp_path):
  expected = getattr(torchvision.models, theirs)().state_dict()
  torch.save(expected, tmp_path / 'weights.pth')
  loaded = tlx.load(name, weights=str(tmp_path / 'weights.pth'))
  back = rules.write(jax.device_get(loaded.variables), reference.table_of(loaded), loaded.source.dropped)
  assert back.keys() == expected.keys() and all(back[n].tobytes() == x.numpy().tobytes() for n, x in expected.items())


@pytest.mark.full
@pytest.mark.parity
@pytest.mark.parametrize(('family', 'pattern', 'older'), OLDER, ids=lambda x: x if x in CASES else '')
def test_the_older_names_of_its_files(family, pattern, older, torchvision, torch, tmp_path):
  case = CASES[family][0]
  module = made(torchvision, case)
  reference.draw(module)
  files = {re.sub(pattern, older, name): x for name, x in module.state_dict().items()}
  assert files.keys() != module.state_dict().keys()
  torch.save(module.state_dict(), tmp_path / 'new.pth')
  torch.save(files, tmp_path / 'old.pth')
  new, old = (load(case, str(tmp_path / f'{name}.pth')) for name in ('new', 'old'))
  assert old.source.layout == 'torchvision_files'
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), new.variables, old.variables))


@pytest.mark.parity
def test_a_fine_tuned_one_in_torchvision(pair, torchvision, torch, tmp_path):
  tuned = load(pair.case, pair.path, num_classes=5)
  variables = reference.random_head(tuned)
  # Without its source: nothing that the file had besides is kept, as where the weights came from another library.
  folder = tlx.save(tmp_path / 'tuned', tuned.module, variables, layout='torchvision')
  tensors = {name: torch.from_numpy(x) for name, x in read_tensors(folder).items()}
  theirs = made(torchvision, pair.case, num_classes=5)
  theirs.load_state_dict(tensors, strict=True)
  with torch.no_grad():
    expected = theirs.eval()(reference.to_torch(pair.images)).numpy()
  logits = np.asarray(jax.jit(tuned.module.apply)(variables, pair.images))
  assert logits.shape == (2, 5)
  error = reference.relative(logits, expected)
  print(f'\n{pair.case.name}: float32 logits {error:.1e}')
  assert error < SINGLE
