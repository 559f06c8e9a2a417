"""Weights under TensorFlow Lite's names, batch norms folded: the names, and norms that are trained after."""

import jax
import numpy as np
import pytest

from tlx import catalog, pretrained, trees
from tlx.weights import rules

# As files of MobileNetV2 and DeepLab from github.com/google-coral/test_data hold them: (name, shape).
PUBLISHED = [
  ('MobilenetV2/Conv/Conv2D_Fold;MobilenetV2/Conv/weights_quant/FakeQuantWithMinMaxVars', (32, 3, 3, 3)),
  ('MobilenetV2/Conv/BatchNorm_Fold/bias', (32,)),
  (
    'MobilenetV2/expanded_conv/depthwise/depthwise_Fold;'
    'MobilenetV2/expanded_conv/depthwise/weights_quant/FakeQuantWithMinMaxVars',
    (1, 3, 3, 32),
  ),
  (
    'MobilenetV2/expanded_conv_14/project/add_fold;MobilenetV2/expanded_conv_15/project/Conv2D_Fold;'
    'MobilenetV2/expanded_conv_14/project/Conv2D_Fold;MobilenetV2/expanded_conv_14/project/BatchNorm_Fold/bias',
    (160,),
  ),
  (
    'MobilenetV2/expanded_conv_15/project/add_fold;MobilenetV2/expanded_conv_15/project/Conv2D_Fold;'
    'MobilenetV2/expanded_conv_15/project/BatchNorm_Fold/bias',
    (160,),
  ),
  ('MobilenetV2/Conv_1/BatchNorm_Fold/bias', (1280,)),
  (
    'MobilenetV2/Logits/Conv2d_1c_1x1/Conv2D;MobilenetV2/Logits/Conv2d_1c_1x1/weights_quant/FakeQuantWithMinMaxVars',
    (1001, 1, 1, 1280),
  ),
]


@pytest.fixture(scope='module')
def folded():
  """(table, variables whose norms change nothing but by their bias)."""
  variant = catalog.variant('tf_mobilenetv2_100')
  like = trees.flatten(pretrained.abstract(pretrained.build(variant, 1001)))
  plain = {'scale': 1.0, 'mean': 0.0, 'var': 1 - 1e-3}
  fill = lambda path, x: np.full(x.shape, plain.get(path.rpartition('/')[2], 0.5), np.float32)
  return tuple(variant.family.LAYOUTS['tflite'](variant.config)), trees.unflatten(
    {path: fill(path, x) for path, x in like.items()}
  )


def test_a_folded_file_has_the_published_names_and_no_others(folded):
  table, variables = folded
  tensors = rules.write(variables, table)
  assert {name: tensors[name].shape for name, _ in PUBLISHED} == dict(PUBLISHED)
  assert len(tensors) == 2 * 53  # 52 convolutions with a folded norm, and the logits
  back, _ = rules.read(tensors, table, variables)
  jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_norm_trained_since_is_written_and_read(folded):
  table, variables = folded
  path = 'params/backbone/stem/norm/scale'
  trained = trees.merge(variables, trees.unflatten({path: np.full(32, 2.0, np.float32)}))
  tensors = rules.write(trained, table)
  np.testing.assert_array_equal(tensors['MobilenetV2/Conv/BatchNorm/gamma'], np.full(32, 2.0))
  jax.tree.map(np.testing.assert_array_equal, rules.read(tensors, table, variables)[0], trained)


def test_a_missing_bias_is_missed(folded):
  table, variables = folded
  tensors = rules.write(variables, table)
  del tensors['MobilenetV2/Conv/BatchNorm_Fold/bias']
  with pytest.raises(rules.WeightMismatchError, match='Conv/BatchNorm_Fold/bias .* not in the checkpoint'):
    rules.read(tensors, table, variables)
