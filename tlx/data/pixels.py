"""Augmentation operations on one image: resampling, colours and RandAugment, without randomness.

Images are float32 [h, w, 3] in [0, 1]. Every function keeps that range, works under jit and vmap, and is pure.
Coordinates are pixel edges, as in Pillow: the first pixel spans 0 to 1, and its centre is 0.5.

`hue` and `solarize` call dm-pix, whose results are exact for these two. This file defines the other functions, because
dm-pix and augmax define them differently from Pillow, timm and torchvision (contrast per channel, saturation in HSV),
or resample all three axes without an antialiasing filter.
"""

import dm_pix
import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in Pillow's grey (ITU-R 601)


def resample(image, box, shape):
  """Crops a box and resizes it with an antialiasing triangle filter, as Pillow's BILINEAR does.

  Outside the image it repeats the edge pixels. It computes two matrix products, which are fast on every device.

  Args:
    image: float32 [h, w, 3].
    box: float [4], (top, bottom, left, right) in pixels. top > bottom or left > right mirrors the image at no cost.
    shape: height and width of the result, pixels.

  Returns:
    float32 [*shape, 3].
  """
  height, width, _ = image.shape
  rows, columns = _weights(height, shape[0], box[0], box[1]), _weights(width, shape[1], box[2], box[3])
  # The default precision would round pixels to bfloat16 on TPUs and to TF32 on GPUs.
  return jnp.einsum('hwc,yh,xw->yxc', image, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _weights(length, size, start, stop):
  """Weight of each of `length` input pixels in each of `size` output pixels: float32 [size, length], rows sum to 1."""
  centres = jnp.clip(start + (stop - start) * (jnp.arange(size) + 0.5) / size, 0, length)
  distance = jnp.abs(centres[:, None] - (jnp.arange(length) + 0.5)) / jnp.maximum(jnp.abs(stop - start) / size, 1)
  weights = jnp.maximum(0, 1 - distance)
  return weights / weights.sum(axis=1, keepdims=True)


def affine(image, matrix, shape=None, fill=None):
  """Applies an affine transform with bilinear interpolation, without antialiasing.

  Args:
    image: float32 [h, w, 3].
    matrix: float [2, 3] in pixel edges: output pixel (x, y) reads the input at matrix @ (x, y, 1), as in Pillow's
      `Image.transform(AFFINE)`.
    shape: height and width of the result, pixels; the input's by default.
    fill: value outside the image; None repeats the edge pixels.

  Returns:
    float32 [*shape, 3].
  """
  height, width, _ = image.shape
  rows, columns = shape or (height, width)
  x, y = jnp.arange(columns) + 0.5, jnp.arange(rows)[:, None] + 0.5
  x, y = (a * x + b * y + c for a, b, c in matrix)
  left, top = jnp.floor(x - 0.5), jnp.floor(y - 0.5)
  dx, dy = (x - 0.5 - left)[..., None], (y - 0.5 - top)[..., None]
  flat = image.reshape(height * width, 3)

  def tap(down, right):
    row = jnp.clip(top + down, 0, height - 1).astype(jnp.int32)
    return flat.at[row * width + jnp.clip(left + right, 0, width - 1).astype(jnp.int32)].get(mode='promise_in_bounds')

  values = (tap(0, 0) * (1 - dx) + tap(0, 1) * dx) * (1 - dy) + (tap(1, 0) * (1 - dx) + tap(1, 1) * dx) * dy
  if fill is None:
    return values
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  return jnp.where(inside[..., None], values, fill)


def rotation_matrix(radians, shape, margins=(0, 0)):
  """Matrix for `affine` that rotates an image counter-clockwise about its centre.

  Args:
    radians: angle, float [].
    shape: height and width of the image, pixels.
    margins: rows above and columns left of the image in the input, pixels.

  Returns:
    float [2, 3].
  """
  c, s, y, x = jnp.cos(radians), jnp.sin(radians), shape[0] / 2, shape[1] / 2
  return jnp.array([[c, -s, x + margins[1] - c * x + s * y], [s, c, y + margins[0] - s * x - c * y]])


def grey(image):
  """Computes the luminance (ITU-R 601).

  Args:
    image: float32 [h, w, 3] in [0, 1].

  Returns:
    float32 [h, w, 1] in [0, 1].
  """
  return sum(share * image[..., c : c + 1] for c, share in enumerate(LUMA))


def _blend(image, degenerate, factor):
  """Interpolates from `degenerate` (factor 0) to `image` (factor 1), or beyond it, as Pillow's ImageEnhance does."""
  return jnp.clip(degenerate + factor * (image - degenerate), 0, 1)


def brightness(image, factor):
  """Changes the brightness: factor 0 gives black, factor 1 the image (Pillow's ImageEnhance.Brightness).

  Args:
    image: float32 [h, w, 3] in [0, 1].
    factor: 0 or more; above 1 it strengthens.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  return jnp.clip(image * factor, 0, 1)


def contrast(image, factor):
  """Changes the contrast: factor 0 gives the mean grey, factor 1 the image (Pillow's ImageEnhance.Contrast).

  Args:
    image: float32 [h, w, 3] in [0, 1].
    factor: 0 or more; above 1 it strengthens.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  return _blend(image, grey(image).mean(), factor)


def saturation(image, factor):
  """Changes the saturation: factor 0 gives a grey image, factor 1 the image (Pillow's ImageEnhance.Color).

  Args:
    image: float32 [h, w, 3] in [0, 1].
    factor: 0 or more; above 1 it strengthens.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  return _blend(image, grey(image), factor)


def sharpness(image, factor):
  """Changes the sharpness: factor 0 gives a smoothed image, factor 1 the image (Pillow's ImageEnhance.Sharpness).

  The 3x3 smoothing kernel is (1 1 1, 1 5 1, 1 1 1) / 13. Pixels on the border do not change.

  Args:
    image: float32 [h, w, 3] in [0, 1].
    factor: 0 or more; above 1 it strengthens.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  rows = image[:-2] + image[1:-1] + image[2:]
  smooth = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]) / 13
  return _blend(image, image.at[1:-1, 1:-1].set(smooth), factor)


def hue(image, turns):
  """Rotates the hue on the colour circle (HSV).

  Args:
    image: float32 [h, w, 3] in [0, 1].
    turns: angle, in full turns; 1 returns to the start.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  return jnp.clip(dm_pix.adjust_hue(image, turns), 0, 1)


def autocontrast(image):
  """Stretches each channel to [0, 1]. A constant channel does not change.

  Args:
    image: float32 [h, w, 3] in [0, 1].

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
  return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def equalize(image):
  """Flattens the 256-bin histogram of each channel, in the integer arithmetic of Pillow's ImageOps.equalize.

  Args:
    image: float32 [h, w, 3] in [0, 1].

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  levels = _levels(image).reshape(-1, 3)
  channels = jnp.arange(3)
  counts = jnp.zeros((3, 256), jnp.int32).at[channels, levels].add(1)
  step = (levels.shape[0] - counts[channels, levels.max(axis=0)]) // 255
  before = jnp.cumsum(counts, axis=1) - counts
  table = jnp.clip((step[:, None] // 2 + before) // jnp.maximum(step[:, None], 1), 0, 255)
  table = jnp.where(step[:, None] > 0, table, jnp.arange(256))
  return (table[channels, levels] / 255).astype(image.dtype).reshape(image.shape)


def posterize(image, bits):
  """Keeps the highest bits of the 8 bits of each value.

  Args:
    image: float32 [h, w, 3] in [0, 1].
    bits: number of bits, 1 to 8.

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  step = 2.0 ** (8 - bits)
  return jnp.floor(_levels(image) / step) * step / 255


def solarize(image, threshold):
  """Inverts the values at or above a threshold.

  Args:
    image: float32 [h, w, 3] in [0, 1].
    threshold: in [0, 1].

  Returns:
    float32 [h, w, 3] in [0, 1].
  """
  return dm_pix.solarize(image, threshold)


def _levels(image):
  return jnp.round(image * 255).astype(jnp.int32)


FILL = 0.5  # mid grey, outside the image in geometric RandAugment operations, as in the paper's code
GEOMETRIC = ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
POINTWISE = ('autocontrast', 'posterize', 'solarize', 'color', 'contrast', 'brightness', 'sharpness')
OPERATIONS = ('identity', 'equalize', *GEOMETRIC, *POINTWISE)


def operate(image, index, strength, sign):
  """Applies the RandAugment operation OPERATIONS[index] (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719).

  The ranges are torchvision's: 30 degrees, shear 0.3, translation by 150/331 of the side, enhancement factors 1 +- 0.9,
  posterize to 8 - 4 * strength bits, solarize above 1 - strength. The switch has four branches, not fourteen, because
  vmap computes every branch of a switch.

  Args:
    image: float32 [h, w, 3].
    index: position in OPERATIONS.
    strength: magnitude / 10, in [0, 1].
    sign: -1 or 1, the direction of operations that have two.

  Returns:
    float32 [h, w, 3].
  """
  first = 2 + len(GEOMETRIC)
  kind = jnp.where(index < 2, index, jnp.where(index < first, 2, 3))
  branches = (
    lambda: image,
    lambda: equalize(image),
    lambda: affine(image, _operation_matrix(image.shape, index - 2, strength * sign), fill=FILL),
    lambda: _pointwise(image, index - first, strength, sign),
  )
  return jax.lax.switch(kind, branches)


def _operation_matrix(shape, index, signed):
  height, width, _ = shape
  shear, shift = 0.3 * signed, 150 / 331 * signed
  one = jnp.ones(())
  c, s = jnp.cos(jnp.deg2rad(30 * signed)), jnp.sin(jnp.deg2rad(30 * signed))
  x, y = width / 2, height / 2
  zero = jnp.zeros(())
  matrices = (
    (c, -s, x - c * x + s * y, s, c, y - s * x - c * y),
    (one, shear, zero, zero, one, zero),
    (one, zero, zero, shear, one, zero),
    (one, zero, jnp.trunc(shift * width), zero, one, zero),
    (one, zero, zero, zero, one, jnp.trunc(shift * height)),
  )
  return jnp.array(matrices)[index].reshape(2, 3)


def _pointwise(image, index, strength, sign):
  factor = 1 + 0.9 * strength * sign
  results = (
    autocontrast(image),
    posterize(image, 8 - jnp.round(4 * strength)),
    solarize(image, 1 - strength),
    saturation(image, factor),
    contrast(image, factor),
    brightness(image, factor),
    sharpness(image, factor),
  )
  return jax.lax.select_n(index, *results)
