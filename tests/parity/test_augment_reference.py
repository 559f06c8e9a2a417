"""Random crops against the distribution of torchvision's RandomResizedCrop, colours against its functional ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.data import augment, pixels

pytestmark = pytest.mark.parity


@pytest.fixture(scope='module')
def transforms():
  pytest.importorskip('torch')
  try:
    from torchvision.transforms import functional, transforms
  except (ImportError, RuntimeError) as error:  # its compiled operators do not fit every build of torch
    pytest.skip(f'torchvision: {error}')
  return transforms, functional


@pytest.mark.parametrize(('width', 'height'), [(400, 400), (640, 300), (200, 500), (900, 200)])
@pytest.mark.parametrize('scale', [(0.08, 1.0), (0.5, 1.0)])
def test_crops_are_distributed_like_torchvisions(transforms, width, height, scale):
  import torch

  count, ratio = 3000, (3 / 4, 4 / 3)
  torch.manual_seed(0)
  blank = torch.zeros(3, height, width)
  params = np.array(
    [transforms[0].RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(count)], np.float64
  )
  expected = params / [height, width, height, width]  # top, left, height, width
  keys = jax.random.split(jax.random.key(0), count)
  boxes = jax.vmap(lambda key: augment.crop_box(key, jnp.float32(width / height), scale, ratio))(keys)
  top, bottom, left, right = np.asarray(boxes, np.float64).T
  actual = np.stack([top, left, bottom - top, right - left], 1)
  assert actual.min() >= -1e-6
  assert (actual[:, :2] + actual[:, 2:]).max() <= 1 + 1e-6
  derive = lambda p: {
    'top': p[:, 0],
    'left': p[:, 1],
    'area': p[:, 2] * p[:, 3],
    'log ratio': np.log(p[:, 3] * width / (p[:, 2] * height)),
  }
  ours, theirs = derive(actual), derive(expected)
  for name, a in ours.items():
    b = theirs[name]
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
      # Distance of the two distribution functions; torchvision rounds to whole pixels, hence the slack.
      at, slack = np.quantile(b, share), 1.5 / min(width, height)
      low, high = (a <= at - slack).mean(), (a <= at + slack).mean()
      assert low - 0.045 < (b <= at).mean() < high + 0.045, (name, share)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.7])
def test_colours_equal_torchvisions(transforms, factor):
  import torch

  _, functional = transforms
  image = np.random.default_rng(0).random((24, 24, 3), dtype=np.float32)
  tensor = torch.tensor(image).permute(2, 0, 1)
  for name in ('brightness', 'contrast', 'saturation', 'sharpness'):
    expected = getattr(functional, f'adjust_{name}')(tensor, factor).permute(1, 2, 0).numpy()
    # Its float grey weights are 0.2989 for red, Pillow's and ours 0.299.
    np.testing.assert_allclose(getattr(pixels, name)(jnp.asarray(image), factor), expected, atol=1e-3, err_msg=name)
  turns = factor / 2 - 0.4
  expected = functional.adjust_hue(tensor, turns).permute(1, 2, 0).numpy()
  np.testing.assert_allclose(pixels.hue(jnp.asarray(image), turns), expected, atol=1e-4)
