"""Random augmentation of training images, on the device.

Hue and solarize come from dm-pix. tlx defines the other operations itself, because those of dm-pix and augmax differ
from torchvision's and timm's, and resample without antialiasing (see `pixels`).

Example i of a batch uses the random key fold_in(key, first_index + i). So its pixels depend neither on the number of
devices nor on the micro-batches. An option that is off is not part of the compiled program, because every option is a
branch in Python.

Images per second, from 256 x 256 to 224 x 224 in batches of 64, on two CPU cores that other jobs used too (so these are
lower bounds): none 517, light 341, medium 216, strong 143, glyph 265. `pytest -n 0 -s -m slow
tests/numerics/test_augment.py` measures them.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special  # a dependency of jax

from tlx import words
from tlx.data import pixels
from tlx.data.geometry import Warp


@dataclasses.dataclass(frozen=True)
class Augment:
  """The options of augmentation; with the defaults, nothing changes. It is hashable, so it can be a static argument.

  The operations run in this order: crop, mirror and shift in one resampling; rotation; RandAugment; brightness,
  contrast, saturation and hue; erasing. Mixup and CutMix follow in `mix_batch`. A colour strength s draws a factor from
  [max(0, 1 - s), 1 + s]; `hue` s draws a turn from [-s, s].

  Raises:
    UsageError: it lists all values that are out of range, one per line.

  Examples:
    >>> Augment(flip=2)
    Traceback (most recent call last):
    tlx.types.UsageError: augment.flip is 2: give a number from 0 to 1
  """

  crop_scale: tuple[float, float] = (1.0, 1.0)  # share of the area, lowest and highest; (1, 1) = the whole image
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # true width / height of the crop, lowest and highest
  shift: float = 0.0  # maximum displacement, as a share of the side
  flip: float = 0.0  # probability of a left-right mirror image
  vertical_flip: float = 0.0  # probability of an upside-down mirror image
  rotation: float = 0.0  # maximum angle, degrees
  brightness: float = 0.0  # strength
  contrast: float = 0.0  # strength
  saturation: float = 0.0  # strength
  hue: float = 0.0  # strength in turns of the colour circle, 0 to 0.5
  randaugment_layers: int = 0  # number of operations, one after the other
  randaugment_magnitude: float = 5.0  # 0 to 10, as in timm; 10 here is 30 in torchvision
  mixup: float = 0.0  # alpha of the Beta distribution; 0 = off
  cutmix: float = 0.0  # alpha of the Beta distribution; 0 = off
  erasing: float = 0.0  # probability of a rectangle of noise

  def __post_init__(self):
    for name in ('crop_scale', 'crop_ratio'):  # JSON gives lists, which are not hashable
      object.__setattr__(self, name, tuple(getattr(self, name)))
    problems = []
    for name, limit in _LIMITS.items():
      if not 0 <= getattr(self, name) <= limit:
        problems.append(f'augment.{name} is {getattr(self, name)}: give a number from 0 to {limit:g}')
    for name, limit in (('crop_scale', 1), ('crop_ratio', math.inf)):
      low, high = getattr(self, name)
      if not 0 < low <= high <= limit:
        problems.append(f'augment.{name} is ({low}, {high}): give 0 < low <= high{" <= 1" * (limit == 1)}')
    words.refuse(problems)


_PROBABILITIES = dict.fromkeys(('flip', 'vertical_flip', 'erasing'), 1)
_STRENGTHS = dict.fromkeys(('brightness', 'contrast', 'saturation', 'mixup', 'cutmix', 'randaugment_layers'), math.inf)
_LIMITS = _PROBABILITIES | _STRENGTHS | {'hue': 0.5, 'shift': 1, 'rotation': 180, 'randaugment_magnitude': 10}

PRESETS = {
  'none': Augment(),
  'light': Augment(crop_scale=(0.5, 1), flip=0.5),
  'medium': Augment(crop_scale=(0.25, 1), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.02, mixup=0.2),
  'strong': Augment(
    crop_scale=(0.08, 1),
    flip=0.5,
    randaugment_layers=2,
    randaugment_magnitude=9,
    mixup=0.2,
    cutmix=1,
    erasing=0.25,
  ),
  'glyph': Augment(crop_scale=(0.8, 1), crop_ratio=(0.9, 1.1), shift=0.05, rotation=10),  # a mirrored 2 is not a 2
}

_CROP, _FLIP, _SHIFT, _ROTATION, _COLOUR, _RANDAUGMENT, _ERASING = range(7)  # so no option changes the draws of another


@partial(jax.jit, static_argnames=('config', 'shape'))
def augment_batch(key, images, aspect, config: Augment, shape: tuple[int, int], first_index=0):
  """Augments a batch of images, except for mixup and CutMix.

  Args:
    key: random key.
    images: uint8 [b, H, W, 3]. Each is a whole image, squashed into a canvas of H x W pixels.
    aspect: float32 [b], the true width / height of each image.
    config: the options; static under jit.
    shape: height and width of the result, pixels; static under jit.
    first_index: position of images[0] in the batch over all devices and micro-batches; may be traced. Or int [b], a
      number for each image that replaces its position in the random key.

  Returns:
    (float32 [b, h, w, 3] in [0, 1], the `Warp` that moves masks in the same way).
  """
  keys = _keys(key, len(images), first_index)
  warp = draw_warp(keys, aspect, config, shape)
  images = warp.images(images)
  for layer in range(config.randaugment_layers):
    images = _randaugment(keys, images, layer, config.randaugment_magnitude / 10)
  if config.brightness or config.contrast or config.saturation or config.hue:
    images = jax.vmap(partial(_colour, config=config))(keys, images)
  if config.erasing:
    images = jax.vmap(partial(_erase, probability=config.erasing))(keys, images)
  return jnp.clip(images, 0, 1), warp  # rounding in the resampling can exceed 1 by one ulp


def draw_warp(keys, aspect, config: Augment, shape: tuple[int, int]) -> Warp:
  """Draws the geometric part of the augmentation: crop, mirror and shift as one box, and the rotation.

  Args:
    keys: random keys [b], one per image.
    aspect: float32 [b], the true width / height of each image.
    config: the options.
    shape: height and width of the result, pixels.

  Returns:
    The warp of the batch.
  """
  largest = math.radians(config.rotation)
  turn = lambda key: jax.random.uniform(jax.random.fold_in(key, _ROTATION), minval=-largest, maxval=largest)
  boxes = jax.vmap(partial(_box, config=config))(keys, aspect)
  return Warp(boxes, jax.vmap(turn)(keys) if config.rotation else None, largest, shape)


def _keys(key, count, first_index):
  """Random keys [count], one per example."""
  numbers = first_index if jnp.ndim(first_index) else first_index + jnp.arange(count)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _box(key, aspect, config):
  """float32 [4]: top, bottom, left, right, as shares of the canvas."""
  box = jnp.array([0.0, 1.0, 0.0, 1.0])
  if config.crop_scale != (1, 1):
    box = crop_box(jax.random.fold_in(key, _CROP), aspect, config.crop_scale, config.crop_ratio)
  if config.shift:
    down, right = jax.random.uniform(jax.random.fold_in(key, _SHIFT), (2,), minval=-config.shift, maxval=config.shift)
    box = box + jnp.stack([down, down, right, right])
  vertical, horizontal = jax.random.uniform(jax.random.fold_in(key, _FLIP), (2,))
  if config.flip:
    box = jnp.where(horizontal < config.flip, box[jnp.array([0, 1, 3, 2])], box)
  if config.vertical_flip:
    box = jnp.where(vertical < config.vertical_flip, box[jnp.array([1, 0, 2, 3])], box)
  return box


def crop_box(key, aspect, scale, ratio):
  """Draws a crop as torchvision's RandomResizedCrop does (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842).

  It draws ten crops and takes the first that fits into the image. If none fits, it takes the largest centred crop whose
  ratio is allowed.

  Args:
    key: random key.
    aspect: float32 [], the true width / height of the image.
    scale: lowest and highest share of the image's area; uniform.
    ratio: lowest and highest width / height of the crop; log-uniform.

  Returns:
    float32 [4], (top, bottom, left, right), shares of the image.
  """
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  area = jax.random.uniform(area_key, (10,), minval=scale[0], maxval=scale[1])
  shape = jnp.exp(jax.random.uniform(ratio_key, (10,), minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
  heights, widths = jnp.sqrt(area * aspect / shape), jnp.sqrt(area * shape / aspect)
  fits = (heights <= 1) & (widths <= 1)
  legal = jnp.clip(aspect, *ratio)
  height = jnp.where(fits.any(), heights[fits.argmax()], jnp.minimum(1, aspect / legal))
  width = jnp.where(fits.any(), widths[fits.argmax()], jnp.minimum(1, legal / aspect))
  place = jnp.where(fits.any(), jax.random.uniform(place_key, (2,)), 0.5)
  top, left = place[0] * (1 - height), place[1] * (1 - width)
  return jnp.stack([top, top + height, left, left + width])


def _randaugment(keys, images, layer, strength):
  """Applies one random operation to each image (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719, Sec. 3)."""

  def one(arguments):
    key, image = arguments
    choice, side = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _RANDAUGMENT), layer))
    index = jax.random.randint(choice, (), 0, len(pixels.OPERATIONS))
    return pixels.operate(image, index, strength, jax.random.rademacher(side, (), jnp.float32))

  # A loop computes only the branch that each image takes; vmap computes all branches, which is far slower on a CPU
  # (test_throughput guards this). On an accelerator the loop would wait for the host to choose each image's branch.
  return jax.lax.platform_dependent((keys, images), cpu=partial(jax.lax.map, one), default=jax.vmap(one))


def _colour(key, image, config):
  """Changes brightness, contrast, saturation and hue by random amounts, always in this order."""
  draws = jax.random.uniform(jax.random.fold_in(key, _COLOUR), (4,))
  for draw, name in zip(draws, ('brightness', 'contrast', 'saturation'), strict=False):
    if strength := getattr(config, name):
      low = max(0.0, 1 - strength)
      image = getattr(pixels, name)(image, low + (1 + strength - low) * draw)
  return pixels.hue(image, config.hue * (2 * draws[3] - 1)) if config.hue else image


def _erase(key, image, probability):
  """Fills one rectangle with noise (Zhong et al. 2020, https://arxiv.org/abs/1708.04896).

  Its area is 0.02 to 0.33 of the image, its ratio of sides 0.3 to 3.3.
  """
  keys = jax.random.split(jax.random.fold_in(key, _ERASING), 3)
  draws = jax.random.uniform(keys[0], (3,))
  area = jax.random.uniform(keys[1], minval=0.02, maxval=0.33)
  ratio = jnp.exp((2 * draws[0] - 1) * math.log(3.3))
  sides = jnp.minimum(1, jnp.sqrt(jnp.stack([area * ratio, area / ratio])))
  start = jax.random.uniform(keys[2], (2,)) * (1 - sides)
  inside = _box_mask(image.shape, start, start + sides) & (draws[1] < probability)
  noise = jax.random.uniform(jax.random.fold_in(keys[2], 1), image.shape)
  return jnp.where(inside[..., None], noise, image)


def _box_mask(shape, start, stop):
  """Whether the centre of each pixel lies in a box, whose corners are shares of the image: bool [h, w]."""
  y, x = (jnp.arange(length) + 0.5 for length in shape[:2])
  rows = (y >= start[0] * shape[0]) & (y < stop[0] * shape[0])
  return rows[:, None] & ((x >= start[1] * shape[1]) & (x < stop[1] * shape[1]))


@partial(jax.jit, static_argnames='config')
def mix_batch(key, images, config: Augment, first_index=0):
  """Applies mixup (https://arxiv.org/abs/1710.09412) and CutMix (https://arxiv.org/abs/1905.04899).

  It mixes the images 2i and 2i + 1. Batches are shuffled, so this partner is random, and no pixel moves between
  devices. Both images of a pair use the same share and the same box, which depend on the key and on the pair's position
  in the batch over all devices. If both methods are on, each pair uses one of them, with probability 1/2.

  Args:
    key: random key.
    images: float [b, h, w, 3]. The last image of an odd batch is not mixed.
    config: the options; static under jit.
    first_index: as in `augment_batch`, one even number.

  Returns:
    (mixed images [b, h, w, 3] in the dtype of `images`, float32 [b]: the share of its own pixels in each image).
  """
  keys = _keys(key, len(images) // 2, first_index // 2)
  keep, share = jax.vmap(partial(_mix_pair, shape=images.shape[1:3], config=config))(keys)
  both = lambda x: jnp.repeat(x, 2, axis=0)
  if len(images) % 2:
    both = lambda x: jnp.concatenate([jnp.repeat(x, 2, axis=0), jnp.ones((1, *x.shape[1:]), x.dtype)])
  keep = both(keep)[..., None].astype(images.dtype)
  return keep * images + (1 - keep) * partners(images), both(share)


def partners(x):
  """Swaps the two examples of each pair (2i, 2i + 1); the last example of an odd batch stays.

  Args:
    x: array [b, ...].

  Returns:
    [b, ...], in the dtype of x.

  Examples:
    >>> partners(jnp.arange(5)).tolist()
    [1, 0, 3, 2, 4]
  """
  even = len(x) // 2 * 2
  swapped = x[:even].reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
  return jnp.concatenate([swapped, x[even:]]) if even < len(x) else swapped


def _mix_pair(key, shape, config):
  """Draws how a pair is mixed: (float32 [h, w] share of an image's own pixel, float32 [] share over the image)."""
  choose, *keys = jax.random.split(key, 4)
  use_cutmix = jax.random.bernoulli(choose) if config.mixup and config.cutmix else bool(config.cutmix)
  keep = jnp.ones(shape)
  share = jnp.ones(())
  if config.mixup:
    share = _symmetric_beta(keys[0], config.mixup)
    keep = keep * share
  if config.cutmix:
    half = jnp.sqrt(1 - _symmetric_beta(keys[1], config.cutmix)) / 2
    centre = jax.random.uniform(keys[2], (2,))
    outside = 1.0 - _box_mask(shape, centre - half, centre + half)
    keep, share = jnp.where(use_cutmix, outside, keep), jnp.where(use_cutmix, outside.mean(), share)
  return keep, share


def _symmetric_beta(key, alpha):
  """Draws from Beta(alpha, alpha) by interpolating between 4097 exact quantiles.

  `jax.random.beta` draws and rejects in a loop. On several devices, the condition of that loop is an all-reduce.
  """
  grid = np.linspace(0, 1, 4097)
  quantiles = special.betaincinv(alpha, alpha, grid)
  return jnp.interp(jax.random.uniform(key), grid.astype(np.float32), quantiles.astype(np.float32))


def to_float(images):
  """Converts images to float without augmentation.

  Args:
    images: uint8 in [0, 255], of any shape.

  Returns:
    float32 in [0, 1], of the same shape.
  """
  return images.astype(jnp.float32) / 255
