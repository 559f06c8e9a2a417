"""Resampled positions and patch kernels against torch's interpolation and its pseudo-inverse, as timm uses them."""

import numpy as np
import pytest

from tlx.weights import resample

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
BICUBIC = dict(mode='bicubic', antialias=True, align_corners=False)


def resized(images, size):
  return torch.nn.functional.interpolate(images, size=(size, size), **BICUBIC)


def relative(found, expected):
  return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
  ('old', 'new', 'prefix'), [(14, 24, 1), (37, 16, 1), (16, 7, 0), (2, 5, 2), (37, 38, 5), (3, 1, 1), (1, 4, 0)]
)
def test_positions(old, new, prefix):
  table = np.random.default_rng(0).normal(size=(1, prefix + old * old, 8)).astype(np.float32)
  grid = torch.from_numpy(table[:, prefix:].reshape(1, old, old, 8)).permute(0, 3, 1, 2)
  expected = resized(grid, new).permute(0, 2, 3, 1).reshape(1, new * new, 8).numpy()
  found = resample.position_table(table, (1, prefix + new * new, 8), prefix)
  np.testing.assert_array_equal(found[:, :prefix], table[:, :prefix])
  assert found.dtype == np.float32 and relative(found[:, prefix:], expected) < 1e-5


@pytest.mark.parametrize(('old', 'new'), [(16, 8), (16, 14), (14, 16), (16, 32), (8, 30)])
def test_patch_kernels(old, new):
  kernel = np.random.default_rng(0).normal(size=(old, old, 3, 4)).astype(np.float32)
  basis = resized(torch.eye(old * old).reshape(-1, 1, old, old), new).reshape(old * old, new * new)
  inverse = torch.linalg.pinv(basis.T)  # [old * old, new * new]
  expected = (torch.from_numpy(kernel).permute(3, 2, 0, 1).reshape(4, 3, -1) @ inverse).reshape(4, 3, new, new)
  found = resample.patch_kernel(kernel, (new, new))
  assert found.dtype == np.float32 and relative(found, expected.permute(2, 3, 1, 0).numpy()) < 1e-5
