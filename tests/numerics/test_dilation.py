"""Output stride by dilation: the arithmetic of strides, and the maps that networks then return."""

import dataclasses

import jax
import numpy as np
import pytest

from tlx import catalog
from tlx.nn.dilation import spread
from tlx.nn.levels import levels
from tlx.nn.model import Backbone
from tlx.types import UsageError

RESNET = {'strides': (1, 2, 2, 2), 'stem': 4}


@pytest.mark.parametrize(
  ('output_stride', 'early', 'expected'),
  [
    (32, False, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
    (16, False, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
    (8, False, [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
    (8, True, [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 4)]),
  ],
)
def test_strides_become_dilations(output_stride, early, expected):
  assert spread(**RESNET, output_stride=output_stride, early=early) == expected


@pytest.mark.parametrize('name', ['resnet18', 'tf_efficientnet_lite0', 'mobilenetv2_035', 'tv_mobilenetv3_small_100'])
def test_the_last_map_has_the_output_stride_and_nothing_else_changes(name):
  config = catalog.variant(name).config
  plain = levels(Backbone(config))
  for output_stride in (8, 16, 32):
    dilated = dataclasses.replace(config, output_stride=output_stride)
    found = levels(Backbone(dilated))
    assert [level._replace(stride=min(level.stride, output_stride)) for level in plain] == list(found)
    assert catalog.of_config(dilated, name).name == name
  with pytest.raises(UsageError, match='output_stride 4: choose 8, 16 or 32'):
    dataclasses.replace(config, output_stride=4)


def test_a_dilated_block_sees_what_the_strided_one_saw():
  """Every second place of the finer map is the coarse map: the same weights, the same places."""
  config = dataclasses.replace(catalog.variant('resnet_test').config, depths=(1, 1, 1, 2))
  strided, dilated = (Backbone(dataclasses.replace(config, output_stride=stride)) for stride in (32, 16))
  images = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
  variables = jax.jit(strided.init)(jax.random.key(0), images)
  coarse, fine = (jax.jit(backbone.apply)(variables, images)['stage3_block1'] for backbone in (strided, dilated))
  assert fine.shape == (1, 4, 6, 128) and coarse.shape == (1, 2, 3, 128)
  np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-5)
