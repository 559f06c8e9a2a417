"""Host transforms: shapes, aspect, refused options; parity with timm is in tests/parity."""

import numpy as np
import pytest
from PIL import Image

from tlx.data import transforms
from tlx.types import Preprocess, UsageError

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize('shape', [(40, 60), (60, 40), (7, 7), (1, 1), (1, 500), (500, 1), (300, 200)])
def test_evaluation_gives_a_square(shape):
  image = np.full((*shape, 3), 77, np.uint8)
  out = transforms.evaluation(Preprocess(size=24))(image)
  assert out.shape == (24, 24, 3) and out.dtype == np.uint8 and (out == 77).all()


def test_evaluation_at_its_own_size_is_the_image():
  out = transforms.evaluation(Preprocess(size=40, crop=1.0))(IMAGE)
  np.testing.assert_array_equal(out, IMAGE[:, 10:50])


def test_a_strip_is_cut_before_it_is_resized_with_the_same_result(monkeypatch):
  strip = np.asarray(Image.fromarray(IMAGE).resize((1000, 20), Image.BICUBIC))
  run = transforms.evaluation(Preprocess(size=24))
  cut = run(strip)
  monkeypatch.setattr(transforms, 'LONGEST', 10_000)
  assert np.abs(cut.astype(int) - run(strip)).max() <= 1


def test_canvas_keeps_the_whole_image_and_its_aspect():
  square, aspect = transforms.canvas(30)(IMAGE)
  assert square.shape == (30, 30, 3) and square.dtype == np.uint8 and aspect == 1.5
  np.testing.assert_array_equal(square, np.asarray(Image.fromarray(IMAGE).resize((30, 30), Image.BICUBIC)))


@pytest.mark.parametrize('change', [{'interpolation': 'cubic'}, {'crop': 0.0}, {'crop': 1.5}])
def test_options_that_make_no_sense(change):
  with pytest.raises(UsageError):
    transforms.evaluation(Preprocess(**change))
