"""Augmentation on the device: pure, keyed by each example's position, and free where switched off.

Hue and solarize are dm-pix's; the rest is ours, because the other definitions of dm-pix and augmax are not those of
torchvision and timm, and their resampling has no antialiasing (details in `pixels`).
Example i of a batch draws from fold_in(key, first_index + i), so its pixels depend neither on the number of devices nor
on micro-batches. Every option is a Python-level branch: what is off is not in the compiled program.

Images per second, 64 x 256 x 256 x 3 -> 224, two CPU cores that other jobs used too (so lower bounds), by
`pytest -n 0 -s -m slow tests/numerics/test_augment.py`: none 517, light 341, medium 216, strong 143, glyph 265.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special  # a dependency of jax

from tlx.data import pixels
from tlx.data.geometry import Warp
from tlx.types import UsageError


@dataclasses.dataclass(frozen=True)
class Augment:
  """What is random in a training picture; the defaults leave it as it is. Hashable, so it can be a static argument.

  Order: crop, mirror and shift in one resampling; rotation; RandAugment; brightness, contrast, saturation, hue (always
  in this order); erasing. Colour strengths s draw a factor from [max(0, 1 - s), 1 + s], hue a turn from [-s, s].
  Raises UsageError for values out of range, all of them at once.
  """

  crop_scale: tuple[float, float] = (1.0, 1.0)  # share of the area; (1, 1) = the whole picture
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop, in the picture's true aspect
  shift: float = 0.0  # largest displacement, share of the side
  flip: float = 0.0  # probability of a mirror image, left and right
  vertical_flip: float = 0.0  # probability
  rotation: float = 0.0  # largest angle, degrees
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0  # in turns: at most 0.5
  randaugment_layers: int = 0  # operations, one after the other
  randaugment_magnitude: float = 5.0  # 0 to 10, timm's scale; torchvision's 0 to 30 is three times finer
  mixup: float = 0.0  # alpha of the Beta distribution
  cutmix: float = 0.0  # alpha of the Beta distribution
  erasing: float = 0.0  # probability

  def __post_init__(self):
    for name in ('crop_scale', 'crop_ratio'):  # a list, as JSON gives it, is not hashable
      object.__setattr__(self, name, tuple(getattr(self, name)))
    problems = []
    for name, limit in _LIMITS.items():
      if not 0 <= getattr(self, name) <= limit:
        problems.append(f'augment.{name} is {getattr(self, name)}: give a number from 0 to {limit:g}')
    for name, limit in (('crop_scale', 1), ('crop_ratio', math.inf)):
      low, high = getattr(self, name)
      if not 0 < low <= high <= limit:
        problems.append(f'augment.{name} is ({low}, {high}): give 0 < low <= high{" <= 1" * (limit == 1)}')
    if problems:
      raise UsageError('\n'.join(problems))


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
  'glyph': Augment(crop_scale=(0.8, 1), crop_ratio=(0.9, 1.1), shift=0.05, rotation=10),  # a mirrored 2 is no 2
}

_CROP, _FLIP, _SHIFT, _ROTATION, _COLOUR, _RANDAUGMENT, _ERASING = range(7)  # so that one option never moves another


@partial(jax.jit, static_argnames=('config', 'shape'))
def augment_batch(key, images, aspect, config: Augment, shape: tuple[int, int], first_index=0):
  """Random training pictures: uint8 [b, H, W, 3] -> (float32 [b, h, w, 3] in [0, 1], their Warp).

  images: each a whole picture squashed into a canvas. aspect: float32 [b], its true width / height.
  first_index: position of images[0] in the whole batch, over all devices and micro-batches; may be traced. Or int [b]:
    the number that each image draws by, whatever its position.
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
  return jnp.clip(images, 0, 1), warp  # resampling rounds one ulp beyond 1


def draw_warp(keys, aspect, config: Augment, shape: tuple[int, int]) -> Warp:
  """Crop, mirror and shift as one box, and the rotation, of every picture; keys: [b]."""
  largest = math.radians(config.rotation)
  turn = lambda key: jax.random.uniform(jax.random.fold_in(key, _ROTATION), minval=-largest, maxval=largest)
  boxes = jax.vmap(partial(_box, config=config))(keys, aspect)
  return Warp(boxes, jax.vmap(turn)(keys) if config.rotation else None, largest, shape)


def _keys(key, count, first_index):
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
  """torchvision's RandomResizedCrop: float32 [4] (top, bottom, left, right), shares of the picture.

  aspect: float32 [], the picture's width / height. Area uniform in `scale`, ratio log-uniform in `ratio`, both of the
  picture as it was; ten draws, of which the first that fits counts, else the largest centred crop of a legal ratio.
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
  """One random operation on each picture; Cubuk et al. 2020, Sec. 3."""

  def one(arguments):
    key, image = arguments
    choice, side = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _RANDAUGMENT), layer))
    index = jax.random.randint(choice, (), 0, len(pixels.OPERATIONS))
    return pixels.operate(image, index, strength, jax.random.rademacher(side, (), jnp.float32))

  # A loop computes the one branch that each picture takes, vmap computes all. On a CPU that is far slower, as
  # test_throughput guards; an accelerator would wait for each picture's branch to be chosen on the host.
  return jax.lax.platform_dependent((keys, images), cpu=partial(jax.lax.map, one), default=jax.vmap(one))


def _colour(key, image, config):
  draws = jax.random.uniform(jax.random.fold_in(key, _COLOUR), (4,))
  for draw, name in zip(draws, ('brightness', 'contrast', 'saturation'), strict=False):
    if strength := getattr(config, name):
      low = max(0.0, 1 - strength)
      image = getattr(pixels, name)(image, low + (1 + strength - low) * draw)
  return pixels.hue(image, config.hue * (2 * draws[3] - 1)) if config.hue else image


def _erase(key, image, probability):
  """Noise in one rectangle: area 0.02 to 0.33, ratio 0.3 to 3.3 (Zhong et al. 2020, https://arxiv.org/abs/1708.04896)."""
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
  """Which pixels have their centre in a box given as shares: bool [h, w]."""
  y, x = (jnp.arange(length) + 0.5 for length in shape[:2])
  rows = (y >= start[0] * shape[0]) & (y < stop[0] * shape[0])
  return rows[:, None] & ((x >= start[1] * shape[1]) & (x < stop[1] * shape[1]))


@partial(jax.jit, static_argnames='config')
def mix_batch(key, images, config: Augment, first_index=0):
  """Mixup (https://arxiv.org/abs/1710.09412) and CutMix (https://arxiv.org/abs/1905.04899) within pairs (2i, 2i + 1).

  Batches are shuffled, so a neighbour is a random partner, and no pixel crosses devices. One share and one box a pair,
  keyed by the pair's place in the whole batch; with both on, each pair takes either with probability 1/2.
  images: float [b, h, w, 3]; the last one of an odd batch stays as it is.
  first_index: as in `augment_batch`, and even.
  Returns: (images, share float32 [b] of its own pixels in each).
  """
  keys = _keys(key, len(images) // 2, first_index // 2)
  keep, share = jax.vmap(partial(_mix_pair, shape=images.shape[1:3], config=config))(keys)
  both = lambda x: jnp.repeat(x, 2, axis=0)
  if len(images) % 2:
    both = lambda x: jnp.concatenate([jnp.repeat(x, 2, axis=0), jnp.ones((1, *x.shape[1:]), x.dtype)])
  keep = both(keep)[..., None].astype(images.dtype)
  return keep * images + (1 - keep) * partners(images), both(share)


def partners(x):
  """[b, ...] with the two of each pair (2i, 2i + 1) in each other's place; the last one of an odd batch stays."""
  even = len(x) // 2 * 2
  swapped = x[:even].reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(even, *x.shape[1:])
  return jnp.concatenate([swapped, x[even:]]) if even < len(x) else swapped


def _mix_pair(key, shape, config):
  """(each pixel's own share [h, w], their mean)."""
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
  """One draw from Beta(alpha, alpha) by its quantiles, of which 4097 are exact and those between are interpolated.

  `jax.random.beta` rejects in a loop, whose condition is an all-reduce where the batch is spread over devices.
  """
  grid = np.linspace(0, 1, 4097)
  quantiles = special.betaincinv(alpha, alpha, grid)
  return jnp.interp(jax.random.uniform(key), grid.astype(np.float32), quantiles.astype(np.float32))


def to_float(images):
  """uint8 in [0, 255] -> float32 in [0, 1], without augmentation."""
  return images.astype(jnp.float32) / 255
