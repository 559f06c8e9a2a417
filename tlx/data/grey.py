"""Grey of more than 8 bits: which values are black and white in a whole data set, and the conversion to 8 bits.

A scale per image would depend on its brightest pixel, and the same object would look different in two images. So there
is one scale per data set, from a look at some of its files. A run keeps it, and predicts with it.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from tlx.types import GreyScale

DEPTHS = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))  # largest values of cameras and scanners
RANGES = ((0, 1), (-1, 1), *((0, white) for white in DEPTHS))  # in which software writes fractional numbers
SLACK = 0.05  # share of the range by which fractional numbers may exceed it, such as 1.02 after a resize
RARE = 0.001  # share of the fractional numbers of an image that may lie anywhere, such as those of broken sensor cells
FEW = 16  # levels; with fewer, the user is told
BAND = 2**20  # pixels that are converted at once, to save memory
NAMES = {'uint16': '16-bit grey', 'int32': '32-bit grey', 'float32': 'fractional grey'}


class Ends(NamedTuple):
  """The values of one image."""

  kind: str  # field of a `GreyScale`
  low: float
  high: float


class Look(NamedTuple):
  """What `choose` found."""

  scale: GreyScale | None  # None if no image is deep grey
  notes: tuple[str, ...] = ()  # lines to print


def kind(mode: str) -> str:
  """The field of a `GreyScale` for a mode of Pillow; '' if the mode is not deep grey.

  >>> kind('I;16'), kind('RGB')
  ('uint16', '')
  """
  return 'uint16' if mode.startswith('I;16') else {'I': 'int32', 'F': 'float32'}.get(mode, '')


def ends(image: np.ndarray) -> Ends | None:
  """The lowest and the highest value of an image. Of fractional numbers, NaN, infinite and rare ones do not count.

  Args:
    image: [h, w], uint16, int32 or float32.

  Returns:
    The two values; None if no value counts.
  """
  name = {'u': 'uint16', 'i': 'int32', 'f': 'float32'}[image.dtype.kind]
  finite = image[np.isfinite(image)] if name == 'float32' else image
  if not finite.size:
    return None
  if name != 'float32':
    return Ends(name, int(finite.min()), int(finite.max()))
  return Ends(name, *np.quantile(finite, (RARE, 1 - RARE), method='nearest').tolist())


def choose(images: Iterable[Ends]) -> Look:
  """Chooses one scale for a data set.

  Whole numbers are black at 0, or at the lowest value if that is negative. They are white at the smallest of 255, 1023,
  4095, 16383 and 65535 that no value exceeds, or at the highest value. Fractional numbers have one of the usual ranges
  [0, 1], [-1, 1], [0, 255], ... that they keep to and fill to a quarter, or else the range that they fill.

  Args:
    images: the values of some images.

  Returns:
    The scale, with a note for each kind of image.

  Examples:
    >>> choose([Ends('uint16', 0, 3900)]).scale.uint16
    (0.0, 4095.0)
  """
  seen: dict[str, list[Ends]] = {}
  for image in images:
    seen.setdefault(image.kind, []).append(image)
  scale, notes = GreyScale(), []
  for name, found in seen.items():
    low, high = min(image.low for image in found), max(image.high for image in found)
    black, white = (_fractional if name == 'float32' else _whole)(low, high)
    scale = scale._replace(**{name: (float(black), float(white))})
    notes.append(f'{NAMES[name]}: {black:g} is black and {white:g} is white, after a look at {len(found)} images')
    levels = 1 + int(255 * (min(high, white) - max(low, black)) / (white - black))
    if levels < FEW:
      notes[-1] += f'; they use only {levels} of 256 levels (values {low:g} to {high:g})'
  return Look(scale if seen else None, tuple(notes))


def eight_bit(image: Image.Image, scale: GreyScale | None = None) -> Image.Image:
  """Converts deep grey to 8 bits.

  Args:
    image: in the mode I, F or I;16, decoded.
    scale: of the data set; None is the default `GreyScale`, whatever the image holds.

  Returns:
    The image, in the mode L. NaN and infinite values are black.
  """
  black, white = getattr(scale or GreyScale(), kind(image.mode))
  step = (white - black) / 255
  table = _table(black, step) if kind(image.mode) == 'uint16' else None
  result = np.empty((image.height, image.width), np.uint8)
  rows = max(1, BAND // image.width)
  for top in range(0, image.height, rows):
    whole = rows >= image.height
    part = np.asarray(image if whole else image.crop((0, top, image.width, min(top + rows, image.height))))
    result[top : top + rows] = _levels(part, black, step) if table is None else table[part]
  return Image.fromarray(result)


@functools.lru_cache(4)
def _table(black: float, step: float) -> np.ndarray:
  """The level of each 16-bit value."""
  return _levels(np.arange(2**16), black, step)


def _levels(values: np.ndarray, black: float, step: float) -> np.ndarray:
  if values.dtype.kind == 'f':
    values = np.where(np.isfinite(values), values, black)
  return np.clip(np.rint((values - np.float64(black)) / step), 0, 255).astype(np.uint8)


def _whole(low: float, high: float) -> tuple[float, float]:
  if low < 0:
    return low, max(high, low + 1)
  return 0, next((white for white in DEPTHS if high <= white), high)


def _fractional(low: float, high: float) -> tuple[float, float]:
  for black, white in RANGES:
    slack = SLACK * (white - black)
    if black - slack <= low and high <= white + slack and (white == 1 or high >= white / 4):
      return black, white
  return min(low, 0), high if high > min(low, 0) else min(low, 0) + 1
