"""Host transforms: uint8 RGB [h, w, 3] or an RGB picture of Pillow, of any size -> a square that a batch can hold.

`evaluation` is what the checkpoint's record says, equal to timm's evaluation transform before normalisation. `canvas`
keeps the whole image for random crops on the device.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from tlx.types import Preprocess, UsageError

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

  size: int  # pixels, height = width of the result
  crop: float
  interpolation: str
  mode: str = 'center'
  min_size: None = None  # decode every pixel

  def __call__(self, image: np.ndarray | Image.Image) -> np.ndarray:
    short = math.floor(self.size / self.crop)
    image = _picture(image) if self.mode == 'squash' else _centre_of_strip(_picture(image))
    width, height = image.size
    if self.mode == 'squash':
      width = height = short
    elif width <= height:
      width, height = short, int(short * height / width)
    else:
      width, height = int(short * width / height), short
    left, top = round((width - self.size) / 2), round((height - self.size) / 2)
    # Pillow resizes across, then down: the same pixels in two calls, which spares the second what the crop drops.
    image = image.resize((width, image.height), INTERPOLATIONS[self.interpolation])
    image = image.crop((left, 0, left + self.size, image.height))
    image = image.resize((self.size, height), INTERPOLATIONS[self.interpolation])
    return np.array(image.crop((0, top, self.size, top + self.size)))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """The whole image squashed to a square; see `canvas`."""

  size: int  # pixels, height = width of the result

  @property
  def min_size(self) -> int:
    """Pixels that a draft decode must keep on both sides."""
    return DRAFT * self.size

  def __call__(self, image: np.ndarray | Image.Image) -> tuple[np.ndarray, float]:
    image = _picture(image)
    square = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
    return np.array(square), image.width / image.height


def evaluation(preprocess: Preprocess) -> Evaluation:
  """uint8 [h, w, 3] -> uint8 [size, size, 3], as `preprocess` says; mean and std are applied on the device.

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
  return Evaluation(preprocess.size, preprocess.crop, preprocess.interpolation, preprocess.mode)


def canvas(size: int) -> Canvas:
  """uint8 [h, w, 3] -> (uint8 [size, size, 3], width / height of the original), for augmentation on the device."""
  return Canvas(size)


def _picture(image: np.ndarray | Image.Image) -> Image.Image:
  return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _centre_of_strip(image: Image.Image) -> Image.Image:
  # Resizing all of a 20,000 x 1 strip so that its shorter side is 256 would take 4 GB, nearly all cropped away again.
  width, height = image.size
  keep = LONGEST * min(height, width)
  top, left = max(0, height - keep) // 2, max(0, width - keep) // 2
  return image.crop((left, top, width - left, height - top)) if top or left else image
