"""Resized maps against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.nn import resize

ROW = jnp.array([0.0, 4.0, 8.0])[None, None, :, None]  # [1, 1, 3, 1]


@pytest.mark.parametrize(
  ('function', 'width', 'expected'),
  [
    (resize.bilinear, 6, [0, 1, 3, 5, 7, 8]),  # centres at -0.25, 0.25, ...: the ends are held
    (resize.bilinear, 2, [1, 7]),  # 0.25 and 1.75: two neighbours each, nothing averages the whole
    (resize.bilinear_corners, 5, [0, 2, 4, 6, 8]),
    (resize.bilinear_corners, 2, [0, 8]),
    (resize.bilinear_corners, 1, [0]),
    (resize.nearest, 6, [0, 0, 4, 4, 8, 8]),
    (resize.nearest, 4, [0, 0, 4, 8]),
    (resize.nearest, 2, [0, 4]),
  ],
)
def test_a_row_of_three(function, width, expected):
  np.testing.assert_allclose(function(ROW, (1, width)).ravel(), expected, atol=1e-6)
  columns = function(ROW.transpose(0, 2, 1, 3), (width, 1))
  np.testing.assert_allclose(columns.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize('function', [resize.bilinear, resize.bilinear_corners, resize.nearest])
def test_the_dtype_stays_and_bfloat16_is_rounded_once(function):
  x = jax.random.normal(jax.random.key(0), (1, 5, 7, 2)).astype(jnp.bfloat16)
  found = function(x, (9, 8))
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, function(x.astype(jnp.float32), (9, 8)).astype(jnp.bfloat16))
