"""Sliding windows: they cover the photograph, and a model that judges pixels alone gives the same as on the whole."""

import numpy as np
import pytest

from tlx.tasks import segmentation
from tlx.tasks.segmentation import windows

SHAPE, CLASSES = (16, 24), 3


def by_colour(pixels):
  """A model whose logits are the pixel's own channels."""
  assert pixels.shape == (windows.BATCH, *SHAPE, 3) and pixels.dtype == np.uint8
  return pixels.astype(np.float32) / 50


@pytest.mark.parametrize(('length', 'window'), [(16, 16), (17, 16), (40, 16), (41, 16), (10, 16), (100, 7)])
def test_windows_cover_every_pixel_and_overlap_by_a_half(length, window):
  found = windows.starts(length, window)
  assert found[0] == 0 and found[-1] == max(0, length - window)
  assert all(0 < b - a <= -(-window // 2) for a, b in zip(found, found[1:]))


@pytest.mark.parametrize('size', [(16, 24), (33, 50), (70, 24), (9, 60)])
def test_a_model_of_pixels_gives_the_same_at_any_size(size):
  photograph = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
  found = windows.probabilities(by_colour, photograph, SHAPE, (1.0,))
  assert found.shape == (*size, CLASSES) and found.dtype == np.float32
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  if size[0] >= SHAPE[0] and size[1] >= SHAPE[1]:  # a smaller one is enlarged first
    expected = np.exp(photograph / np.float32(50))
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_scales_are_averaged_and_smooth_pictures_keep_their_classes():
  photograph = np.zeros((48, 60, 3), np.uint8)
  photograph[:24, :, 0], photograph[24:, :30, 1], photograph[24:, 30:, 2] = 200, 200, 200
  task = segmentation.Task(tuple('rgb'))
  found = task.whole(by_colour, photograph, SHAPE, (0.75, 1.0, 1.5)).argmax(-1)
  assert (found == photograph.argmax(-1)).mean() > 0.97
