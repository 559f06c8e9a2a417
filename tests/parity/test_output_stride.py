"""Networks that dilate beyond an output stride, against timm's and torchvision's: the last map; errors below 2e-6."""

import dataclasses

import numpy as np
import pytest
import reference

from tlx import catalog, pretrained
from tlx.weights import rules

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
TIMM = [  # with a stage that is dilated twice, averaging shortcuts, TensorFlow's padding, kernels of 5
  ('resnet18', 8), ('resnet26d', 8), ('mobilenetv2_050', 8), ('tf_efficientnet_lite0', 16),
  ('mobilenetv3_small_050', 8), ('tf_mobilenetv3_small_100', 16),
]  # fmt: skip
SIZE = (65, 97)


def last_map(name, output_stride, tensors, layout, images):
  """Of our variant, and the layout's rules read every tensor."""
  variant = catalog.variant(name)
  config = dataclasses.replace(variant.config, output_stride=output_stride)
  module = pretrained.build(variant._replace(config=config), 3)
  table = tuple(variant.family.LAYOUTS[layout](config))
  variables, _ = rules.read(tensors, table, pretrained.abstract(module))
  features = reference.compiled(lambda v, x: module.apply(v, x, method='features'), variables, images)
  return np.asarray([features[name] for name in module.backbone.names if features[name].ndim == 4][-1])


def their_map(network, features, images):
  """The last map of their network, as ours lies."""
  with torch.no_grad():
    return features(network.eval(), reference.to_torch(images)).numpy().transpose(0, 2, 3, 1)


def check(name, output_stride, layout, network, features):
  images = np.random.default_rng(0).normal(size=(1, *SIZE, 3)).astype(np.float32)
  reference.draw(network)
  tensors = {key: x.numpy() for key, x in network.state_dict().items()}
  found = last_map(name, output_stride, tensors, layout, images)
  expected = their_map(network, features, images)
  assert found.shape == expected.shape
  error = reference.relative(found, expected)
  print(f'\n{name} {output_stride}: {error:.1e}')
  assert error < 1e-5


@pytest.mark.parametrize(('name', 'output_stride'), TIMM)
def test_as_timm_does(name, output_stride):
  timm = reference.library('timm')

  def features(network, x):
    dilated = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    assert not dilated.load_state_dict(network.state_dict(), strict=False).missing_keys
    return network.bn2(network.conv_head(dilated(x)[-1])) if hasattr(network, 'bn2') else dilated(x)[-1]

  check(name, output_stride, 'timm', timm.create_model(name, num_classes=3), features)


def test_as_torchvision_does_where_a_stage_dilates_from_its_first_block_on():
  models = reference.library('torchvision').models
  network = models.mobilenet_v3_small(dilated=True, num_classes=3)
  check('tv_mobilenetv3_small_100', 16, 'torchvision', network, lambda network, x: network.features(x))
