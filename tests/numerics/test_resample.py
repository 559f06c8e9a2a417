"""Resampled positions and patch kernels: recorded numbers, and what must hold of any."""

import ml_dtypes
import numpy as np
import pytest

from tlx.weights import resample

# torch.nn.functional.interpolate(torch.arange(4.)[:, None].expand(1, 1, 4, 4) ** 2, (n, 4), mode='bicubic',
# antialias=True)[0, 0, :, 0]
SQUARES = {
  2: (0.603306, 6.082644),
  3: (0.075515, 2.359195, 7.935927),
  6: (-0.065789, 0.294118, 1.361111, 3.361111, 6.823530, 9.328948),
}


@pytest.mark.parametrize('new', SQUARES)
def test_bicubic_weights(new):
  np.testing.assert_allclose(resample.bicubic(4, new) @ np.arange(4.0) ** 2, SQUARES[new], atol=2e-6)


@pytest.mark.parametrize(('old', 'new'), [(5, 5), (7, 3), (3, 7), (37, 16)])
def test_weights_are_shares_and_look_the_same_from_both_ends(old, new):
  weights = resample.bicubic(old, new)
  assert weights.shape == (new, old)
  np.testing.assert_allclose(weights.sum(1), 1)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
  if old == new:
    np.testing.assert_allclose(weights, np.eye(old), atol=1e-12)


def test_positions_keep_their_prefix_their_dtype_and_rows_before_columns():
  grid = np.zeros((4, 4, 1), np.float32)
  grid[0] = 1  # the upper edge
  table = np.concatenate([[[5.0], [7.0]], grid.reshape(-1, 1)])[None].astype(ml_dtypes.bfloat16)
  found = resample.position_table(table, (1, 6, 1), prefix=2)
  assert found.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(found[0, :2, 0].astype(float), [5, 7])
  assert found[0, 2, 0] == found[0, 3, 0] > 0.4 and abs(found[0, 4, 0].astype(float)) < 0.1
  assert resample.position_table(table, table.shape, prefix=2) is table


@pytest.mark.parametrize('shape', [(1, 11, 3), (1, 10, 4), (1, 1, 3), (3, 1, 4), (1, 0, 3)])
def test_tables_of_no_square_grid_are_refused(shape):
  with pytest.raises(ValueError, match='not of square grids'):
    resample.position_table(np.zeros((1, 5, 3), np.float32), shape, prefix=1)


@pytest.mark.parametrize(('old', 'new'), [(4, 8), (3, 7)])
def test_a_larger_patch_sees_in_the_resized_image_what_the_first_saw(old, new):
  rng = np.random.default_rng(0)
  kernel, patch = rng.normal(size=(old, old, 2, 3)), rng.normal(size=(old, old, 2))
  weights = resample.bicubic(old, new)
  resized = np.einsum('ia,jb,abc->ijc', weights, weights, patch)
  adapted = resample.patch_kernel(kernel, (new, new))
  np.testing.assert_allclose(
    np.tensordot(resized, adapted, axes=3), np.tensordot(patch, kernel, axes=3), rtol=1e-9, atol=1e-9
  )
  assert resample.patch_kernel(kernel, (old, old)) is kernel
