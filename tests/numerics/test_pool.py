"""Pooling against the definition written out with loops, at every small size."""

import jax.numpy as jnp
import numpy as np
import pytest

from tlx.nn.pool import adaptive_avg_pool, avg_pool, max_pool

SIZES = range(3, 12)


def image(height, width):
  return np.random.default_rng(height * 100 + width).normal(size=(2, height, width, 3)).astype(np.float32)


def starts(size, window, stride, padding, ceil):
  """Where PyTorch's windows begin, in places of the image: the padding lies before 0."""
  if not ceil:
    return range(-padding, size + padding - window + 1, stride)
  reached = lambda start: start + window >= size + padding
  return [s for s in range(-padding, size, stride) if s == -padding or not reached(s - stride)]


def pooled(x, window, stride, padding, ceil, reduce):
  rows, columns = (starts(size, window, stride, padding, ceil) for size in x.shape[1:3])
  cell = lambda r, c: reduce(x[:, max(r, 0) : max(r + window, 0), max(c, 0) : max(c + window, 0)])
  return np.stack([np.stack([cell(r, c) for c in columns], 1) for r in rows], 1)


@pytest.mark.parametrize(
  ('window', 'stride', 'padding', 'ceil'),
  [(2, 2, 0, False), (3, 2, 0, False), (3, 2, 1, False), (3, 2, 0, True), (2, 2, 0, True), (3, 2, 1, True)],
)
@pytest.mark.parametrize('height', SIZES)
def test_max_pool(height, window, stride, padding, ceil):
  x = image(height, 9) - 5  # all negative: a zero of the padding would win
  expected = pooled(x, window, stride, padding, ceil, lambda part: part.max((1, 2)))
  np.testing.assert_array_equal(max_pool(jnp.asarray(x), window, stride, padding=padding, ceil=ceil), expected)


@pytest.mark.parametrize(('window', 'stride', 'padding'), [(3, 1, 1), (5, 3, 0), (2, 2, 0)])
@pytest.mark.parametrize('height', range(5, 12))
def test_avg_pool_counts_the_padding(height, window, stride, padding):
  x = image(height, 9)
  expected = pooled(x, window, stride, padding, False, lambda part: part.sum((1, 2)) / window**2)
  found = avg_pool(jnp.asarray(x), window, stride, padding=padding)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('cells', [(1, 1), (5, 7), (7, 7), (11, 4)])
@pytest.mark.parametrize('height', [1, *SIZES])
def test_adaptive_avg_pool(height, cells):
  x = image(height, 9)
  expected = np.zeros((2, *cells, 3))
  for i in range(cells[0]):
    for j in range(cells[1]):
      rows = slice(int(np.floor(i * height / cells[0])), int(np.ceil((i + 1) * height / cells[0])))
      columns = slice(int(np.floor(j * 9 / cells[1])), int(np.ceil((j + 1) * 9 / cells[1])))
      expected[:, i, j] = x[:, rows, columns].mean((1, 2))
  np.testing.assert_allclose(adaptive_avg_pool(jnp.asarray(x), *cells), expected, rtol=1e-5, atol=1e-6)
