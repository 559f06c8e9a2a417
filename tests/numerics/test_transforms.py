"""Host transforms: shapes, aspect, refused options; parity with timm is in tests/parity."""

import io

import numpy as np
import pytest
from PIL import Image

from tlx.data import decode, transforms
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


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
@pytest.mark.parametrize('shape', [(375, 500), (301, 200), (224, 224), (50, 71), (33, 500)])
def test_evaluation_is_one_resize_and_a_crop(shape, interpolation):
  image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
  short = 64  # floor(56 / 0.875)
  width, height = (int(short * max(1, side / min(shape))) for side in shape[::-1])
  whole = Image.fromarray(image).resize((width, height), transforms.INTERPOLATIONS[interpolation])
  left, top = round((width - 56) / 2), round((height - 56) / 2)
  expected = np.asarray(whole)[top : top + 56, left : left + 56]
  run = transforms.evaluation(Preprocess(size=56, crop=0.875, interpolation=interpolation))
  np.testing.assert_array_equal(run(image), expected)
  np.testing.assert_array_equal(run(Image.fromarray(image)), expected)


def test_canvas_keeps_the_whole_image_and_its_aspect():
  canvas = transforms.canvas(30)
  square, seen = canvas(IMAGE), canvas.geometry(*IMAGE.shape[:2])
  assert square.shape == (30, 30, 3) and square.dtype == np.uint8 and seen.width / seen.height == 1.5
  assert (seen.top, seen.left, seen.bottom, seen.right) == (0, 0, *IMAGE.shape[:2])
  np.testing.assert_array_equal(square, np.asarray(Image.fromarray(IMAGE).resize((30, 30), Image.BICUBIC)))


def test_reduced_decoding_changes_a_canvas_by_little():
  pixels = np.asarray(Image.effect_noise((1000, 700), 60).resize((800, 560), Image.BICUBIC))
  file = io.BytesIO()
  Image.fromarray(np.stack([pixels, pixels[::-1], pixels[:, ::-1]], -1)).save(file, 'JPEG', quality=95)
  run = transforms.canvas(128)
  picture = decode.picture(file.getvalue(), min_size=run.min_size)
  assert picture.size == (400, 280)  # never below the canvas, where the crop would be enlarged
  small, whole = run(picture), run(decode.decode(file.getvalue()))
  assert np.abs(small.astype(int) - whole).mean() < 1


@pytest.mark.parametrize('change', [{'interpolation': 'cubic'}, {'crop': 0.0}, {'crop': 1.5}])
def test_options_that_make_no_sense(change):
  with pytest.raises(UsageError):
    transforms.evaluation(Preprocess(**change))
