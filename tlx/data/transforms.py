"""Transforms on the host: a picture of any size (uint8 RGB [h, w, 3], or Pillow's RGB) to uint8 of a fixed shape.

A transform is called with a picture. Its `geometry(height, width)` is the part of a photograph that the result shows.

`evaluation` does what the checkpoint's record says; it equals timm's evaluation transform before normalisation.
`canvas` keeps the whole image for random crops on the device.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from tlx.types import Geometry, GreyScale, Preprocess, Size, UsageError, shape_of

INTERPOLATIONS = {
  'nearest': Image.Resampling.NEAREST,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}
MODES = ('center', 'squash')
# A JPEG is decoded at a reduced size of at least DRAFT times the canvas. Compared with full decoding, on photographs of
# 0.2 to 12 megapixels and canvases of 110 and 256: 2 differs by 0.3 of 255 levels on average, 7 at most; 1 by 2.5, 70.
DRAFT = 2
LONGEST = 16  # maximum aspect ratio; longer strips are cropped around their centre before the resize


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Resizes the shorter side (mode 'squash': both) to floor(size / crop), then crops the centre. See `evaluation`."""

  shape: tuple[int, int]  # height and width of the result, pixels
  crop: float  # share of the resized image that the crop keeps, in (0, 1]
  interpolation: str  # a key of INTERPOLATIONS
  mode: str = 'center'  # one of MODES
  min_size: None = None  # JPEGs are decoded at full size
  grey: GreyScale | None = None  # for grey of more than 8 bits; decoding applies it

  def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
    image = _picture(image) if self.mode == 'squash' else _centre_of_strip(_picture(image))
    (height, width), (top, left) = self._resized(image.height, image.width)
    rows, columns = self.shape
    image = _flattened(image, height, INTERPOLATIONS[self.interpolation])
    # Pillow resizes rows, then columns. Two calls give the same pixels and skip columns that the crop removes.
    image = image.resize((width, image.height), INTERPOLATIONS[self.interpolation])
    image = image.crop((left, 0, left + columns, image.height))
    image = image.resize((columns, height), INTERPOLATIONS[self.interpolation])
    return np.array(image.crop((0, top, columns, top + rows)))

  def geometry(self, height: int, width: int) -> Geometry:
    """The part of a photograph of this height and width, in pixels, that the result shows."""
    skip = (0, 0) if self.mode == 'squash' else _strip(height, width)
    seen = height - 2 * skip[0], width - 2 * skip[1]
    resized, (top, left) = self._resized(*seen)
    down, across = seen[0] / resized[0], seen[1] / resized[1]
    top, left = skip[0] + top * down, skip[1] + left * across
    return Geometry(height, width, top, left, top + self.shape[0] * down, left + self.shape[1] * across)

  def _resized(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width) after the resize, (top, left) of the crop)."""
    rows, columns = (math.floor(side / self.crop) for side in self.shape)
    if self.mode != 'squash':  # the crop must fit along both axes
      if width * rows <= height * columns:
        rows = int(columns * height / width)
      else:
        columns = int(rows * width / height)
    return (rows, columns), (round((rows - self.shape[0]) / 2), round((columns - self.shape[1]) / 2))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Resizes the whole image to one shape, without keeping the aspect ratio. See `canvas`."""

  shape: tuple[int, int]  # height and width of the result, pixels
  grey: GreyScale | None = None  # as in `Evaluation`

  @property
  def min_size(self) -> int:
    """Minimum height and width, pixels, at which a JPEG may be decoded."""
    return DRAFT * max(self.shape)

  def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
    image = _flattened(_picture(image), self.shape[0], Image.Resampling.BICUBIC)
    return np.array(image.resize(self.shape[::-1], Image.Resampling.BICUBIC))

  def geometry(self, height: int, width: int) -> Geometry:
    """The whole photograph of this height and width, in pixels."""
    return Geometry(height, width, 0, 0, height, width)


def evaluation(preprocess: Preprocess) -> Evaluation:
  """Makes the transform of a checkpoint's record. It does not apply mean and std; the device does.

  Args:
    preprocess: the record.

  Returns:
    A transform to uint8 [h, w, 3] of the record's shape.

  Raises:
    UsageError: for an unknown interpolation or mode, and a crop outside (0, 1].

  Examples:
    >>> evaluation(Preprocess(size=224, crop=0.875))(np.zeros((300, 400, 3), np.uint8)).shape
    (224, 224, 3)
  """
  if preprocess.interpolation not in INTERPOLATIONS:
    raise UsageError(f'unknown interpolation {preprocess.interpolation!r}; available: {", ".join(INTERPOLATIONS)}')
  if preprocess.mode not in MODES:
    raise UsageError(f'unknown crop mode {preprocess.mode!r}; available: {", ".join(MODES)}')
  if not 0 < preprocess.crop <= 1:
    raise UsageError(
      f'crop {preprocess.crop} is outside (0, 1]: the share of the resized image that the centre crop keeps'
    )
  return Evaluation(preprocess.shape, preprocess.crop, preprocess.interpolation, preprocess.mode, grey=preprocess.grey)


def canvas(size: Size, grey: GreyScale | None = None) -> Canvas:
  """Makes the transform to a canvas of this size, from which the device takes random crops."""
  return Canvas(shape_of(size), grey)


def _picture(image: np.ndarray | Image.Image) -> Image.Image:
  return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _flattened(image: Image.Image, height: int, how: Image.Resampling) -> Image.Image:
  """Reduces the height of a tall strip. Pillow would widen all its rows first: 0.9 GB for 1 x 1,000,000 pixels."""
  tall = image.height > max(height, LONGEST * image.width)
  return image.resize((image.width, height), how) if tall else image


def _centre_of_strip(image: Image.Image) -> Image.Image:
  # Resizing a whole strip of 20,000 x 1 to a shorter side of 256 would take 4 GB, and the crop would remove most of it.
  top, left = _strip(image.height, image.width)
  return image.crop((left, top, image.width - left, image.height - top)) if top or left else image


def _strip(height: int, width: int) -> tuple[int, int]:
  """Pixels to crop from a strip at its top (and bottom) and at its left (and right)."""
  keep = LONGEST * min(height, width)
  return max(0, height - keep) // 2, max(0, width - keep) // 2
