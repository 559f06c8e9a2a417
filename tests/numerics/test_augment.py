"""Augmentation: keyed by position, in range, exact where Pillow defines the answer."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tlx.data import augment, pixels
from tlx.data.augment import PRESETS, Augment, augment_batch, mix_batch, partners
from tlx.types import Preprocess, UsageError

KEY = jax.random.key(7)
OPERATE = jax.jit(lambda image, index, *rest: pixels.operate(image, index.astype(int), *rest))
ALL = Augment(
  crop_scale=(0.2, 1),
  shift=0.1,
  flip=0.5,
  vertical_flip=0.5,
  rotation=30,
  brightness=0.4,
  contrast=0.4,
  saturation=0.4,
  hue=0.1,
  randaugment_layers=2,
  mixup=0.4,
  cutmix=1,
  erasing=0.5,
)



def cut(key, images, aspect, config, size, first_index=0):
  """The pictures of `augment_batch`, squares."""
  return augment_batch(key, images, aspect, config, (size, size), first_index)[0]


def mixed_batch(key, images, targets, config, first_index=0):
  """(pictures, targets [b, k]), both mixed."""
  mixed, share = mix_batch(key, images, config, first_index)
  return mixed, share[:, None] * targets + (1 - share[:, None]) * partners(targets)


def pictures(count=8, side=48):
  """Smooth colours with some noise and saturated corners: uint8 [count, side, side, 3]."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
  smooth = np.stack([np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC)) for x in coarse])
  noisy = np.clip(smooth.astype(int) + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
  noisy[:, :4, :4], noisy[:, -4:, -4:] = 0, 255
  return noisy


def aspects(count=8):
  return jnp.linspace(0.4, 2.5, count)


def test_pixels_depend_on_the_position_alone():
  images = pictures()
  whole = np.asarray(cut(KEY, images, aspects(), ALL, 32))
  again = np.asarray(cut(KEY, images, aspects(), ALL, 32))
  np.testing.assert_array_equal(whole, again)
  halves = [cut(KEY, images[i : i + 4], aspects()[i : i + 4], ALL, 32, jnp.int32(i)) for i in (0, 4)]
  np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)  # other shapes may sum in another order
  other = np.asarray(cut(jax.random.key(8), images, aspects(), ALL, 32))
  assert (np.abs(whole - other).max(axis=(1, 2, 3)) > 0.05).all()
  same = cut(KEY, np.repeat(images[:1], 8, axis=0), jnp.ones(8), ALL, 32)
  assert len(np.unique(np.asarray(same).reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize('name', [*PRESETS, 'all'])
def test_every_preset_stays_in_range(name):
  result = cut(KEY, pictures(), aspects(), PRESETS.get(name, ALL), 40)
  assert result.shape == (8, 40, 40, 3)
  assert result.dtype == jnp.float32
  assert 0 <= result.min() < result.max() <= 1


@pytest.mark.parametrize('size', [20, 32, 48, 64, 100])
def test_without_augmentation_it_is_pillows_bilinear_resize(size):
  images = pictures()
  result = np.asarray(cut(KEY, images, aspects(), PRESETS['none'], size)) * 255
  expected = np.stack([Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR) for x in images])
  # Pillow rounds after each of its two passes and holds weights in fixed point.
  assert np.abs(result - expected).max() < 1.1
  assert np.abs(result - expected).mean() < 0.4


@pytest.mark.parametrize('option', ['flip', 'vertical_flip'])
def test_mirrors(option):
  images = pictures()
  mirrored = images[:, :, ::-1] if option == 'flip' else images[:, ::-1]
  result = cut(KEY, images, aspects(), Augment(**{option: 1.0}), 32)
  expected = cut(KEY, mirrored, aspects(), PRESETS['none'], 32)
  np.testing.assert_allclose(result, expected, atol=1e-6)
  many = cut(KEY, np.repeat(images[:1], 400, axis=0), jnp.ones(400), Augment(**{option: 0.3}), 8)
  plain = cut(KEY, images[:1], jnp.ones(1), PRESETS['none'], 8)
  share = (np.abs(np.asarray(many) - plain).max(axis=(1, 2, 3)) > 1e-3).mean()
  assert abs(share - 0.3) < 0.1  # over four standard deviations


def test_a_crop_is_what_pillow_cuts():
  image = pictures()[0]
  result = pixels.resample(jnp.asarray(image, jnp.float32), jnp.array([5.5, 40.0, 3.0, 45.25]), (30, 30))
  expected = Image.fromarray(image).resize((30, 30), Image.Resampling.BILINEAR, box=(3.0, 5.5, 45.25, 40.0))
  assert np.abs(result - np.asarray(expected, np.float32)).max() < 1.1


def test_rotation_turns_the_picture_and_keeps_it_at_zero():
  image = jnp.asarray(pictures()[0], jnp.float32)
  for degrees in (0, 90, -30, 17):
    result = pixels.affine(image, pixels.rotation_matrix(np.deg2rad(degrees), (48, 48)))
    expected = np.asarray(Image.fromarray(pictures()[0]).rotate(degrees, Image.Resampling.BILINEAR), np.float32)
    inside = np.hypot(*(np.mgrid[:48, :48] - 23.5)) < 23
    assert np.abs(result - expected)[inside].max() < 1.1, degrees
  # The corners that turn in show the picture around the crop, not a border.
  ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 4, (16, 64, 64))[..., None].repeat(3, -1)
  config = Augment(crop_scale=(0.15, 0.15), crop_ratio=(1, 1), rotation=25)
  result = np.asarray(cut(KEY, ramp, jnp.ones(16), config, 32))[..., 0]
  bends = np.maximum(np.abs(np.diff(result, 2, axis=1)).max((1, 2)), np.abs(np.diff(result, 2, axis=2)).max((1, 2)))
  turned = np.abs(np.diff(result, axis=2)).max((1, 2)) > 1e-4
  # A turned plane is a plane, except where a crop at the picture's border has nothing around it.
  assert (turned & (bends < 1e-5)).sum() > 10


def from_pillow(image, name, signed):
  """What timm and torchvision do with a uint8 picture; `signed` in [-1, 1]."""
  side, factor, strength = image.size[0], 1 + 0.9 * signed, abs(signed)
  move = int(150 / 331 * signed * side)
  affine = lambda *matrix: image.transform(
    image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
  )
  return {
    'identity': lambda: image,
    'equalize': lambda: ImageOps.equalize(image),
    'autocontrast': lambda: ImageOps.autocontrast(image),
    'posterize': lambda: ImageOps.posterize(image, 8 - round(4 * strength)),
    'solarize': lambda: ImageOps.solarize(image, 255 * (1 - strength)),
    'color': lambda: ImageEnhance.Color(image).enhance(factor),
    'contrast': lambda: ImageEnhance.Contrast(image).enhance(factor),
    'brightness': lambda: ImageEnhance.Brightness(image).enhance(factor),
    'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(factor),
    'rotate': lambda: image.rotate(30 * signed, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)),
    'shear_x': lambda: affine(1, 0.3 * signed, 0, 0, 1, 0),
    'shear_y': lambda: affine(1, 0, 0, 0.3 * signed, 1, 0),
    'translate_x': lambda: affine(1, 0, move, 0, 1, 0),
    'translate_y': lambda: affine(1, 0, 0, 0, 1, move),
  }[name]()


@pytest.mark.parametrize('name', pixels.OPERATIONS)
def test_randaugment_operations_equal_pillow(name):
  for picture in pictures(3):
    for strength, sign in ((0.3, 1), (0.9, -1), (1.0, 1)):
      image = jnp.asarray(picture, jnp.float32) / 255
      result = np.asarray(OPERATE(image, *map(jnp.float32, (pixels.OPERATIONS.index(name), strength, sign)))) * 255
      expected = np.asarray(from_pillow(Image.fromarray(picture), name, strength * sign), np.float32)
      wrong = np.abs(result - expected).max(axis=-1) > 2
      # Where a border runs along pixel centres, float32 and Pillow's float64 may differ on which side one lies.
      assert wrong.mean() <= (0.005 if name in pixels.GEOMETRIC else 0), (
        name,
        strength,
        np.abs(result - expected).max(),
      )


def test_equalize_and_autocontrast_leave_flat_channels():
  flat = jnp.full((8, 8, 3), 0.4)
  np.testing.assert_allclose(pixels.autocontrast(flat), flat)
  np.testing.assert_allclose(pixels.equalize(flat), flat, atol=1e-6)


def test_all_branches_at_once_and_one_by_one_agree():
  images = jnp.asarray(pictures(14), jnp.float32) / 255
  arguments = images, jnp.arange(14), jnp.full(14, 0.7), jnp.where(jnp.arange(14) % 2, 1.0, -1.0)
  single = [OPERATE(*(jnp.asarray(x, jnp.float32) for x in row)) for row in zip(*arguments, strict=True)]
  np.testing.assert_allclose(jax.vmap(OPERATE)(*arguments), single, atol=1e-5)


def test_erasing_covers_the_area_it_should():
  grey = np.full((300, 16, 16, 3), 128, np.uint8)
  result = cut(KEY, grey, jnp.ones(300), Augment(erasing=0.5), 64)
  areas = (np.abs(np.asarray(result) - 128 / 255) > 1e-6).any(-1).mean((1, 2))
  hit = areas[areas > 0]
  assert abs(len(hit) / 300 - 0.5) < 0.12
  assert hit.min() > 0.01
  assert hit.max() < 0.35
  assert abs(hit.mean() - 0.175) < 0.03


@pytest.mark.parametrize('config', [Augment(mixup=0.4), Augment(cutmix=1), Augment(mixup=0.4, cutmix=1)])
def test_mixing_stays_within_pairs_and_keeps_the_labels_true(config):
  # Picture i is i everywhere, so a mean over pixels is the share of each label.
  images = jnp.broadcast_to(jnp.arange(9.0)[:, None, None, None], (9, 16, 16, 3))
  targets = jnp.eye(9)
  mixed, labels = mixed_batch(KEY, images, targets, config)
  np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(mixed.mean((1, 2, 3)), labels @ jnp.arange(9.0), rtol=1e-5)
  np.testing.assert_array_equal(mixed[8], images[8])
  np.testing.assert_array_equal(labels[8], targets[8])
  own = np.asarray(labels)[np.arange(8), np.arange(8)].reshape(4, 2)
  np.testing.assert_allclose(own[:, 0], own[:, 1], rtol=1e-6)
  assert len(np.unique(own)) > 2
  late, _ = mixed_batch(KEY, images[4:], targets[4:], config, jnp.int32(4))
  np.testing.assert_allclose(late, mixed[4:], atol=1e-6)
  if not config.mixup:
    np.testing.assert_array_equal(mixed, jnp.round(mixed))


def test_mixing_alone_takes_either_kind_half_of_the_time():
  images = jnp.broadcast_to((jnp.arange(400.0) % 2)[:, None, None, None], (400, 12, 12, 3))
  mixed, _ = mixed_batch(KEY, images, jnp.ones((400, 1)), Augment(mixup=5, cutmix=1))
  blended = ((mixed > 0.01) & (mixed < 0.99)).any((1, 2, 3))[::2].mean()
  assert abs(blended - 0.5) < 0.15


@pytest.mark.parametrize('alpha', [0.1, 1.0, 8.0])
def test_shares_follow_the_beta_distribution(alpha):
  draws = jax.vmap(lambda key: augment._symmetric_beta(key, alpha))(jax.random.split(KEY, 4000))
  assert 0 <= draws.min() < draws.max() <= 1
  at = np.linspace(0.001, 0.999, 99)  # beyond, float32 rounds shares to one
  below = (np.asarray(draws)[:, None] <= at).mean(axis=0)
  assert np.abs(below - stats.beta(alpha, alpha).cdf(at)).max() < 0.03


def test_mixing_leaves_a_single_example_alone():
  images, targets = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 2))
  np.testing.assert_array_equal(mixed_batch(KEY, images, targets, Augment(mixup=1))[0], images)


def test_what_is_off_costs_nothing():
  def program(config):
    images = jnp.zeros((2, 64, 64, 3), jnp.uint8)
    return augment_batch.lower(KEY, images, jnp.ones(2), config, (32, 32)).as_text()  # before XLA's own names

  # A gather of pixels takes three values at a time.
  marks = {'gather': r'stablehlo.gather.*slice_sizes = array<i64: [1, ]*3>', 'random': 'threefry', 'branch': '.case'}
  found = lambda config: {name for name, mark in marks.items() if re.search(mark, program(config))}
  assert found(PRESETS['none']) == set()
  assert found(PRESETS['medium']) == {'random'}
  assert found(PRESETS['glyph']) == {'random', 'gather'}
  assert found(Augment(randaugment_layers=1)) == set(marks)


def test_normalise_and_to_float():
  images = pictures(2)
  normalise = Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).normalise
  expected = (images / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
  for given in (images, jnp.asarray(images), augment.to_float(images)):
    assert normalise(given).dtype == np.float32
    np.testing.assert_allclose(normalise(given), expected, atol=1e-5)


def test_wrong_options_are_all_named():
  with pytest.raises(UsageError) as caught:
    Augment(flip=2, hue=0.7, crop_scale=(0.9, 0.5), rotation=float('nan'))
  assert len(str(caught.value).splitlines()) == 4
  again = Augment(**{name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(ALL).items()})
  assert again == ALL
  assert hash(again) == hash(ALL)


@pytest.mark.full
def test_throughput():
  """`pytest -n 0 -s -m full tests/numerics/test_augment.py` prints images/s of every preset."""
  images, rates = np.random.default_rng(0).integers(0, 256, (64, 256, 256, 3), dtype=np.uint8), {}
  images = jnp.asarray(images)
  for name, config in PRESETS.items():
    run = lambda config=config: jax.block_until_ready(cut(KEY, images, jnp.ones(64), config, 224))
    run()
    start = time.perf_counter()
    for _ in range(5):
      run()
    rates[name] = 5 * 64 / (time.perf_counter() - start)
    print(f'{name}: {rates[name]:.0f} images/s')
  assert rates['strong'] > rates['none'] / 8  # not so if every operation were computed for every picture
