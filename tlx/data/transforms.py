"""Host transforms: uint8 RGB [h, w, 3] or an RGB picture of Pillow, of any size -> a picture that a batch can hold.

Each is called with a picture, and tells by `geometry(height, width)` which part of a photograph its result shows.

`evaluation` is what the checkpoint's record says, equal to timm's evaluation transform before normalisation. `canvas`
keeps the whole image for random crops on the device.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from tlx.types import Geometry, Preprocess, Size, UsageError, shape_of

INTERPOLATIONS = {
  'nearest': Image.Resampling.NEAREST,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}
MODES = ('center', 'squash')
# A canvas is made from a JPEG of at least so many times its side. Against the whole decode, on photographs of 0.2 to 12
# megapixels and canvases of 110 and 256: 2 differs by 0.3 levels of 255 on average and by 7 at most, 1 by 2.5 and 70.
DRAFT = 2
LONGEST = 16  # a strip more than this many times longer than wide is cut around its centre before it is resized


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Resize the shorter side (mode 'squash': both) to floor(size / crop), then crop the centre; see `evaluation`."""

  shape: tuple[int, int]  # height and width of the result, pixels
  crop: float
  interpolation: str
  mode: str = 'center'
  min_size: None = None  # decode every pixel

  def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
    image = _picture(image) if self.mode == 'squash' else _centre_of_strip(_picture(image))
    (height, width), (top, left) = self._resized(image.height, image.width)
    rows, columns = self.shape
    # Pillow resizes across, then down: the same pixels in two calls, which spares the second what the crop drops.
    image = image.resize((width, image.height), INTERPOLATIONS[self.interpolation])
    image = image.crop((left, 0, left + columns, image.height))
    image = image.resize((columns, height), INTERPOLATIONS[self.interpolation])
    return np.array(image.crop((0, top, columns, top + rows)))

  def geometry(self, height: int, width: int) -> Geometry:
    skip = (0, 0) if self.mode == 'squash' else _strip(height, width)
    seen = height - 2 * skip[0], width - 2 * skip[1]
    resized, (top, left) = self._resized(*seen)
    down, across = seen[0] / resized[0], seen[1] / resized[1]
    top, left = skip[0] + top * down, skip[1] + left * across
    return Geometry(height, width, top, left, top + self.shape[0] * down, left + self.shape[1] * across)

  def _resized(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) after the resize, and (top, left) of the crop in it."""
    rows, columns = (math.floor(side / self.crop) for side in self.shape)
    if self.mode != 'squash':  # so that the crop fits in along both axes
      if width * rows <= height * columns:
        rows = int(columns * height / width)
      else:
        columns = int(rows * width / height)
    return (rows, columns), (round((rows - self.shape[0]) / 2), round((columns - self.shape[1]) / 2))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """The whole image squashed to one shape; see `canvas`."""

  shape: tuple[int, int]  # height and width of the result, pixels

  @property
  def min_size(self) -> int:
    """Pixels that a draft decode must keep on both sides."""
    return DRAFT * max(self.shape)

  def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
    return np.array(_picture(image).resize(self.shape[::-1], Image.Resampling.BICUBIC))

  def geometry(self, height: int, width: int) -> Geometry:
    return Geometry(height, width, 0, 0, height, width)


def evaluation(preprocess: Preprocess) -> Evaluation:
  """uint8 [h, w, 3] -> uint8 of the shape that `preprocess` says; mean and std are applied on the device.

  Raises: UsageError for an interpolation that is not one of INTERPOLATIONS, a mode that is not one of MODES, or a crop
    outside (0, 1].
  """
  if preprocess.interpolation not in INTERPOLATIONS:
    raise UsageError(f'unknown interpolation {preprocess.interpolation!r}; available: {", ".join(INTERPOLATIONS)}')
  if preprocess.mode not in MODES:
    raise UsageError(f'unknown crop mode {preprocess.mode!r}; available: {", ".join(MODES)}')
  if not 0 < preprocess.crop <= 1:
    raise UsageError(
      f'crop {preprocess.crop} is outside (0, 1]: the share of the resized image that the centre crop keeps'
    )
  return Evaluation(preprocess.shape, preprocess.crop, preprocess.interpolation, preprocess.mode)


def canvas(size: Size) -> Canvas:
  """uint8 [h, w, 3] -> uint8 of that side, or height and width, for augmentation on the device."""
  return Canvas(shape_of(size))


def _picture(image: np.ndarray | Image.Image) -> Image.Image:
  return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _centre_of_strip(image: Image.Image) -> Image.Image:
  # Resizing all of a 20,000 x 1 strip so that its shorter side is 256 would take 4 GB, nearly all cropped away again.
  top, left = _strip(image.height, image.width)
  return image.crop((left, top, image.width - left, image.height - top)) if top or left else image


def _strip(height: int, width: int) -> tuple[int, int]:
  """How much of a strip is left out at its top (and bottom) and at its left (and right)."""
  keep = LONGEST * min(height, width)
  return max(0, height - keep) // 2, max(0, width - keep) // 2
