"""Models that timm's own writer saves after a change: without a head, with other classes, channels or sizes.

Also the other way: what tlx changes and saves, timm builds and reads. Both compare what the models give, in evaluation.
"""

import ctypes

import jax
import numpy as np
import pytest
import reference
from conftest import randomised
from test_models_timm import CASES, SINGLE
from tiny import matrix

import tlx

CHANGES = {'no head': {'num_classes': 0}, 'grey': {'in_chans': 1}, 'five bands': {'in_chans': 5, 'num_classes': 7}}
OURS = {'in_chans': 'in_channels'}  # names of the arguments that differ
FIRST = {family: cases[0] for family, cases in CASES.items()}
PAIRS = [(family, change) for family in FIRST for change in CHANGES]
OFTEN = [('resnet', 'five bands'), ('vit', 'no head')]  # not only when drawn

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]


@pytest.fixture(scope='module')
def timm():
  pytest.importorskip('torch')
  yield reference.library('timm')
  jax.clear_caches()
  ctypes.CDLL(None).malloc_trim(0)


def same(ours: tlx.Pretrained, theirs, case, channels: int) -> None:
  import torch

  images = np.resize(reference.images(case.size, case.spread), (2, case.size, case.size, channels))
  with torch.no_grad():
    expected = theirs.eval()(reference.to_torch(images)).numpy()
  found = np.asarray(reference.compiled(ours.module.apply, ours.variables, images))
  assert found.shape == expected.shape and reference.relative(found, expected) < SINGLE


@pytest.mark.parametrize(('family', 'change'), matrix(PAIRS, OFTEN))
def test_timm_writes_and_tlx_reads(family, change, timm, tmp_path):
  case, arguments = FIRST[family], CHANGES[change]
  theirs = timm.create_model(case.name, **case.arguments, **arguments)
  reference.draw(theirs)
  timm.models.save_for_hf(theirs, tmp_path, model_args={**case.arguments, **arguments})
  ours = tlx.load(str(tmp_path))
  assert len(ours.preprocess.mean) == arguments.get('in_chans', 3)
  same(ours, theirs, case, arguments.get('in_chans', 3))


@pytest.mark.parametrize(('family', 'change'), matrix(PAIRS, OFTEN))
def test_tlx_writes_and_timm_reads(family, change, timm, tmp_path):
  case, arguments = FIRST[family], CHANGES[change]
  base = timm.create_model(case.name, **case.arguments)
  reference.draw(base)
  timm.models.save_for_hf(base, tmp_path / 'base', model_args=case.arguments)
  changed = {OURS.get(name, name): value for name, value in arguments.items()}
  ours = tlx.load(str(tmp_path / 'base'), **changed)
  if 'head' in ours.variables['params']:
    params = {**ours.variables['params'], 'head': randomised(ours.variables['params']['head'])}
    ours = ours._replace(variables={**ours.variables, 'params': params})
  folder = tlx.save(tmp_path / 'ours', ours)
  same(ours, timm.create_model(f'local-dir:{folder}', pretrained=True), case, arguments.get('in_chans', 3))
