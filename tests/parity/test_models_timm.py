"""Every family against timm, all weights random: logits, statistics, gradients, and files in both directions.

timm must be importable, and torchvision, which it imports. Largest errors of a family's variants that `pytest -m parity
-n 0 -s tests/parity/test_models_timm.py` prints (30 s of CPU time a variant, on two busy cores) with jax 0.10.2, timm
1.0.31 and torch 2.13.0, each as a share of its tensor's largest value, in evaluation / training mode; last, the whole
gradient in float32 against timm's in float64, and in brackets timm's own:

                  float64 logits  float64 gradients  float32 logits  float32 gradient
  beit            1e-15 / 1e-15   1e-14 / 1e-14      4e-7 / 4e-7     7e-7 (8e-7) / 7e-7 (8e-7)
  clip            2e-15 / 2e-15   6e-15 / 6e-15      8e-7 / 8e-7     1e-6 (1e-6) / 1e-6 (1e-6)
  convnext        2e-15 / 2e-15   1e-14 / 1e-14      8e-7 / 8e-7     1e-6 (1e-6) / 1e-6 (1e-6)
  deit            2e-15 / 2e-15   8e-15 / 8e-15      1e-6 / 1e-6     1e-6 (1e-6) / 1e-6 (1e-6)
  densenet        1e-15 / 3e-14   5e-15 / 5e-13      5e-7 / 7e-6     5e-7 (6e-7) / 1e-2 (1e-2)
  dinov2          3e-15 / 3e-15   2e-14 / 2e-14      2e-6 / 2e-6     1e-6 (1e-6) / 1e-6 (1e-6)
  dinov3          2e-8 / 2e-8     1e-7 / 1e-7        5e-7 / 5e-7     1e-6 (9e-7) / 1e-6 (9e-7)
  efficientnet    1e-15 / 1e-13   1e-14 / 6e-10      7e-7 / 2e-5     4e-7 (6e-7) / 2e-4 (6e-5)
  eva             9e-9 / 9e-9     8e-8 / 8e-8        8e-7 / 8e-7     1e-6 (1e-6) / 1e-6 (1e-6)
  inception       1e-15 / 4e-13   1e-14 / 2e-12      4e-7 / 6e-5     4e-7 (4e-7) / 1e-2 (2e-2)
  mobilenetv2     1e-15 / 9e-14   7e-15 / 3e-10      6e-7 / 2e-5     4e-7 (5e-7) / 1e-4 (1e-4)
  mobilenetv3     1e-15 / 2e-14   3e-8 / 3e-8        7e-7 / 4e-6     5e-7 (7e-7) / 1e-5 (1e-5)
  regnet          9e-16 / 4e-14   4e-15 / 1e-12      6e-7 / 1e-5     4e-7 (6e-7) / 3e-2 (3e-2)
  resnet          2e-15 / 1e-13   7e-15 / 2e-12      9e-7 / 5e-5     1e-2 (1e-2) / 3e-2 (3e-2)

The 1e-10s are shifts that batch statistics take away, whose true gradient is zero.
"""

import ctypes
import json
import shutil
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import reference
from conftest import randomised

import tlx
from tlx import catalog
from tlx.weights import rules


class Case(NamedTuple):
  """A variant, the pixels of its images, and what timm and config.json are told beside its name."""

  name: str
  size: int = 64
  arguments: dict[str, Any] = {}
  spread: float = 1.0  # of the images: 8 where a ReLU6 is to reach its upper end


def sized(name: str, size: int = 64) -> Case:
  """A variant whose parameters depend on the size of its images."""
  return Case(name, size, {'img_size': size})


CASES = {  # family: two variants or more
  'beit': (sized('beit_base_patch16_224'), sized('beitv2_base_patch16_224')),
  'clip': (sized('vit_xsmall_patch16_clip_224'), sized('vit_base_patch32_clip_quickgelu_224')),
  'convnext': (
    Case('convnext_atto'), Case('convnext_atto_ols'), Case('convnext_tiny_hnf'), Case('convnextv2_atto'),
    Case('convnextv2_femto'),
  ),
  'deit': (sized('deit_tiny_patch16_224'), sized('deit3_small_patch16_224')),
  'densenet': (Case('densenet121'), Case('densenet169')),
  'dinov2': (sized('vit_small_patch14_dinov2', 56), sized('vit_small_patch14_reg4_dinov2', 56)),
  'dinov3': (sized('vit_tiny_patch16_dinov3_qkvb'), sized('vit_small_plus_patch16_dinov3', 80)),
  'efficientnet': (
    Case('efficientnet_b0'), Case('tf_efficientnet_b0'),
    Case('efficientnet_lite0', spread=8), Case('tf_efficientnet_lite0', 75, spread=8),
  ),
  'efficientnetv2': (Case('efficientnetv2_rw_t'), Case('tf_efficientnetv2_b0', 75)),
  'eva': (sized('eva02_tiny_patch14_224', 56), sized('eva02_base_patch14_224', 56)),
  'inception': (Case('inception_v3', 139),),  # at 96 pixels the last norms would see two values
  'mobilenetv1': (Case('mobilenetv1_100', spread=8), Case('mobilenetv1_100h', 75, spread=8)),
  'mobilenetv2': (Case('mobilenetv2_050', spread=8), Case('mobilenetv2_110d', 75, spread=8)),
  'mobilenetv3': (Case('mobilenetv3_small_050'), Case('tf_mobilenetv3_large_minimal_100', 75)),
  'regnet': (Case('regnetx_002'), Case('regnety_002', 75), Case('regnety_008')),
  'resnet': (
    Case('resnet18', 75), Case('resnet50'), Case('wide_resnet50_2'), Case('resnext50_32x4d'), Case('resnet18d', 75),
    Case('resnet26d'), Case('seresnext26t_32x4d'), Case('ecaresnet26t'),
  ),
  'resnetv2': (Case('resnetv2_50x1_bit'), Case('resnetv2_101x1_bit', 75)),
  'siglip': (sized('vit_base_patch32_siglip_256'), sized('vit_base_patch16_siglip_224')),
  'swin': (Case('swin_tiny_patch4_window7_224', 224), Case('swin_s3_tiny_224', 224)),
  'swinv2': (Case('swinv2_tiny_window8_256', 256), Case('swinv2_tiny_window16_256', 256)),
  'vgg': (Case('vgg11'), Case('vgg13_bn')),
  'vit': (sized('vit_tiny_patch16_224'), sized('vit_small_patch32_224')),
}  # fmt: skip
NOT_IN_TIMM = {'mit', 'squeezenet'}
NAMED = {case.name: case for cases in CASES.values() for case in cases}
OFTEN = ('convnext_atto', 'resnet18', 'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224')  # not only when drawn
EXACT = 1e-8  # float64, of each tensor's largest value
# PyTorch's backward pass of the hard sigmoid holds 1/6 in float32 whatever its input: 3.1e-8 of a gradient. timm makes
# its table of rotary positions in float32, and only then a float64 of it: 8.2e-8 of a gradient of EVA-02, 1.3e-7 of
# DINOv3, which with the same table in float64 is 7.5e-15; its steps between places of Swin V2 likewise:
# 1.8e-7, and 7.7e-14 with timm's own.
ROUNDED = {'mobilenetv3': 1e-7, 'eva02': 1e-6, 'dinov3': 1e-6, 'swinv2': 1e-6}
SINGLE = 1e-4  # float32: logits and statistics
# float32: the whole gradient. One pre-activation that rounding puts on the other side of a kink moves it by as much as
# its unit counts, one in the root of thousands, in timm as in ours; a wrong or missing term moves it by tenths.
DISTANCE = 0.1


class Pair(NamedTuple):
  case: Case
  theirs: Any  # timm's model
  folder: Any  # its weights and config.json
  ours: tlx.Pretrained  # tlx.load(folder)
  images: np.ndarray


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch')


@pytest.fixture(scope='module')
def timm():
  return reference.library('timm')


@pytest.fixture(scope='module', params=reference.grouped('timm', NAMED, OFTEN))
def pair(request, timm, torch, tmp_path_factory):
  case, folder = request.param, tmp_path_factory.mktemp('timm')
  theirs = timm.create_model(case.name, **case.arguments)
  reference.draw(theirs)
  timm.models.save_for_hf(theirs, folder, model_args=case.arguments, safe_serialization=False)
  yield Pair(case, theirs, folder, tlx.load(str(folder)), reference.images(case.size, case.spread))
  shutil.rmtree(folder)
  jax.clear_caches()
  ctypes.CDLL(None).malloc_trim(0)  # or what 50 variants took to compile stays with the process: 10 GB


def test_every_family_is_compared():
  assert set(catalog.names('models')) == CASES.keys() ^ NOT_IN_TIMM
  for family, cases in CASES.items():
    named, variants = {case.name for case in cases}, catalog.find('models', family).VARIANTS
    assert named <= variants.keys(), family
    assert len(named) >= min(2, sum(not name.endswith('_test') for name in variants)), family


@pytest.mark.parity
def test_timm_has_none_of_the_others(timm):
  names = {name for family in NOT_IN_TIMM for name in catalog.find('models', family).VARIANTS}
  assert not names & set(timm.list_models())


@pytest.mark.parity
@pytest.mark.timeout(900)  # two programs to compile, beside other work
@pytest.mark.parametrize('mode', ['eval', 'train'])
def test_logits_statistics_and_gradients(pair, mode):
  train, dropped = mode == 'train', pair.ours.source.dropped
  ours, theirs, errors = {}, {}, {}
  for dtype in ('float64', 'float32'):
    a = ours[dtype] = reference.our_pass(pair.ours, pair.images, train=train, dtype=dtype)
    b = theirs[dtype] = reference.without(
      reference.their_pass(pair.theirs, pair.images, train=train, dtype=dtype), dropped
    )
    errors[f'{dtype} logits'] = reference.compare({'': a.logits}, {'': b.logits})
    errors[f'{dtype} statistics'] = reference.compare(a.statistics, b.statistics)
  exact = theirs['float64']
  # Where batch statistics take a shift away again its true gradient is zero, and rounding is what is computed.
  errors['float64 gradients'] = reference.compare(ours['float64'].gradients, exact.gradients, floor=1e-6)
  distance, timms = (reference.distance(x['float32'].gradients, exact.gradients) for x in (ours, theirs))
  print(f'\n{pair.case.name} {mode}: float32 gradient {distance:.1e}, timm {timms:.1e}')
  print(*(f'  {what} {worst.error:.1e} {worst.name}' for what, worst in errors.items()), sep='\n')
  before = pair.theirs.state_dict()
  for name, after in exact.statistics.items():  # so that equal statistics mean something
    assert np.array_equal(after, before[name].numpy()) != train, name
  bad = {what: worst for what, worst in errors.items() if worst.error >= limit(what, pair.case.name)}
  wrong = [f'{what}: {worst.error:.1e} in {worst.name}' for what, worst in bad.items()]
  assert not wrong, wrong
  assert distance < DISTANCE


def limit(what: str, name: str) -> float:
  family = next((family for family in ROUNDED if family in name), None)
  return SINGLE if not what.startswith('float64') else ROUNDED.get(family, EXACT)


@pytest.mark.full
@pytest.mark.parity
def test_both_heads_of_inception_in_training(timm, torch, tmp_path):
  theirs = timm.create_model('inception_v3', aux_logits=True)
  reference.draw(theirs)
  torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
  (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'inception_v3', 'num_classes': 1000}))
  ours = tlx.load(str(tmp_path))

  def apply(*arguments, mutable, **options):
    logits, moved = ours.module.apply(*arguments, mutable=[*mutable, 'aux'], **options)
    (second,) = jax.tree.leaves(moved.pop('aux'))
    return logits + second, moved

  # One loss of the sum reaches every parameter of both; timm's second head needs the full 299 pixels.
  theirs.register_forward_hook(lambda module, inputs, outputs: sum(outputs))
  both = ours._replace(module=SimpleNamespace(apply=apply, backbone=ours.module.backbone))
  how = {'array': reference.images(299), 'train': True, 'dtype': 'float64'}
  a, b = reference.our_pass(both, **how), reference.their_pass(theirs, **how)
  assert reference.compare({'': a.logits}, {'': b.logits}).error < EXACT
  assert reference.compare(a.statistics, b.statistics).error < EXACT
  assert reference.compare(a.gradients, b.gradients, floor=1e-6).error < EXACT
  assert all(x.any() for name, x in b.gradients.items() if name.startswith('AuxLogits'))


@pytest.mark.parity
def test_our_file_in_timm(pair, timm, torch, tmp_path):
  tuned = tlx.load(str(pair.folder), num_classes=5)
  variables = {
    **tuned.variables,
    'params': {**tuned.variables['params'], 'head': randomised(tuned.variables['params']['head'])},
  }
  folder = tlx.save(tmp_path / 'tuned', tuned.module, variables, source=tuned.source, preprocess=tuned.preprocess)
  by_folder = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
  weights = str(folder / 'model.safetensors')
  by_path = timm.create_model(pair.case.name, num_classes=5, checkpoint_path=weights, **pair.case.arguments).eval()
  with torch.no_grad():
    expected = by_folder(reference.to_torch(pair.images)).numpy()
    np.testing.assert_array_equal(by_path(reference.to_torch(pair.images)).numpy(), expected)
  logits = reference.compiled(tuned.module.apply, variables, pair.images)
  assert logits.shape == (2, 5) and reference.relative(np.asarray(logits), expected) < SINGLE


@pytest.mark.parity
@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_their_file_in_ours(pair, kind, torch, tmp_path):
  expected = pair.theirs.state_dict()
  if kind == 'pth':
    torch.save(expected, tmp_path / 'weights.pth')
  else:
    pytest.importorskip('safetensors.torch').save_file(expected, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text((pair.folder / 'config.json').read_text())
  loaded = tlx.load(str(tmp_path))
  # The logits of these very leaves are compared with timm's above; here the files must give the same bits.
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), loaded.variables, pair.ours.variables))
  back = rules.write(jax.device_get(loaded.variables), reference.table_of(loaded), loaded.source.dropped)
  assert back.keys() == expected.keys() and all(np.array_equal(back[name], x.numpy()) for name, x in expected.items())
