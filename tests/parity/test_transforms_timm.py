"""The evaluation transform equals timm's, to 1/255, for every interpolation and many shapes and crops."""

import numpy as np
import pytest
from PIL import Image

from tlx.data import transforms
from tlx.types import Preprocess

pytestmark = pytest.mark.parity


@pytest.fixture(scope='module')
def create_transform():
  torch = pytest.importorskip('torch')
  try:  # beside a CPU-only torch, torchvision needs an operator declared that no CPU build carries
    library = torch.library.Library('torchvision', 'DEF')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  except RuntimeError:
    pass
  try:
    from timm.data import create_transform
  except (ImportError, RuntimeError) as error:
    pytest.skip(f'timm cannot be imported: {error}')
  return create_transform


@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic', 'lanczos'])
@pytest.mark.parametrize('size, crop', [(224, 0.875), (224, 1.0), (288, 0.95), (96, 0.9), (65, 0.7)])
def test_equal_to_timm(create_transform, interpolation, size, crop):
  reference = create_transform(
    size, is_training=False, interpolation=interpolation, crop_pct=crop, mean=(0.0,) * 3, std=(1.0,) * 3
  )
  ours = transforms.evaluation(Preprocess(size=size, crop=crop, interpolation=interpolation))
  rng = np.random.default_rng(0)
  for height, width in [(300, 400), (401, 299), (224, 224), (50, 71), (257, 255), (33, 500)]:
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = reference(Image.fromarray(pixels)).numpy().transpose(1, 2, 0) * 255
    np.testing.assert_allclose(ours(pixels), expected, atol=1.0 / 255 * 255 * 0.01)
