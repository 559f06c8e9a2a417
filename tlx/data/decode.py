"""Encoded bytes -> uint8 RGB, and the test whether a file can be decoded at all.

Colour follows timm and torchvision, Pillow's plain `convert('RGB')`: an alpha channel is dropped, not blended, and
Adobe's inverted CMYK is undone. Two things differ on purpose: EXIF orientation is applied, and deep greyscale is scaled
to 8 bit where Pillow would clip it. An animation gives its first frame.
"""

import functools
import io
import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tlx.types import TlxError

ORIENTATION = 0x0112  # EXIF tag
# Either no photographs, or read by running another program (EPS: Ghostscript), which an untrusted file must never do.
REFUSED = frozenset({'BUFR', 'EPS', 'FITS', 'GRIB', 'HDF5', 'MPEG', 'WMF'})
END_MARKERS = {'JPEG': b'\xff\xd9', 'MPO': b'\xff\xd9', 'PNG': b'IEND', 'GIF': b'\x3b'}
TAIL = 4096  # bytes at the end of a file in which its end marker must lie; cameras append a little


class Finding(NamedTuple):
  """What `inspect` learnt of a file."""

  reason: str  # why it cannot be used; '' when it can
  size: tuple[int, int]  # height and width in pixels as stored, (0, 0) when unknown


@functools.cache
def formats() -> tuple[str, ...]:
  """Pillow's names of the formats that are read."""
  Image.init()
  return tuple(sorted(set(Image.OPEN) - REFUSED))


@functools.cache
def extensions() -> frozenset[str]:
  """Lower-case file extensions of those formats, with the dot."""
  return frozenset(e for e, f in Image.registered_extensions().items() if f in formats())


def decode(encoded: bytes, *, min_size: int | None = None) -> np.ndarray:
  """`picture` as uint8 [h, w, 3]."""
  return np.array(picture(encoded, min_size=min_size))


def picture(encoded: bytes, *, min_size: int | None = None) -> Image.Image:
  """Encoded file -> a loaded RGB picture, upright.

  Pillow resizes it without the copies that an array costs: 11 ms of processor time in place of 26 on 2000 x 1500, and
  0.57 in place of 0.73 on 500 x 375, beside other work.
  16-bit grey is divided by 257; float grey is taken to lie in [0, 1], or in [0, 255] when it exceeds 1.

  Args:
    encoded: the whole file, in any of `formats()`.
    min_size: pixels; lets a JPEG be decoded at 1/2, 1/4 or 1/8 scale as long as both sides keep this many. Faster and
      nearly the same picture: right for training, wrong for evaluation, whose pixels must be exact.
  Raises: TlxError with the reason: no image, damaged, truncated, or above Pillow's decompression-bomb limit.
  """
  if not encoded:
    raise TlxError('the file is empty')
  try:
    with _open(io.BytesIO(encoded)) as image:
      if min_size is not None:
        image.draft('RGB', (min_size, min_size))
      return _rgb(image)
  except TlxError:
    raise
  except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
    raise TlxError(_reason(error)) from error


def inspect(path: str | os.PathLike, *, full: bool = True) -> Finding:
  """Whether a file can be decoded, without raising; unless `full`, only its header and end marker are looked at.

  A full look decodes a JPEG at 1/8 scale, which still reads every byte.
  Measured on 500 x 400 JPEGs of 74 kB, one core: 0.55 ms, where decode takes 0.96 ms and the brief look 0.06 ms.
  """
  size = (0, 0)
  try:
    if not (length := os.stat(path).st_size):
      return Finding('the file is empty', size)
    with _open(path) as image:
      size = image.height, image.width
      if full:
        image.draft('RGB', (1, 1))
        image.load()
        return Finding('', size)
      marker = END_MARKERS.get(image.format)
    return Finding('' if marker is None or marker in _tail(path, length) else 'truncated: its end is missing', size)
  except Exception as error:  # as in decode
    return Finding(str(error) if isinstance(error, TlxError) else _reason(error), size)


def _tail(path: str | os.PathLike, length: int) -> bytes:
  with pathlib.Path(path).open('rb') as file:
    file.seek(max(0, length - TAIL))
    return file.read()


def _open(file) -> Image.Image:
  image = Image.open(file, formats=formats())
  limit = Image.MAX_IMAGE_PIXELS
  if limit and image.width * image.height > limit:  # Pillow itself only warns up to twice the limit
    raise TlxError(f'{image.width} x {image.height} pixels are more than the limit of {limit}')
  return image


def _rgb(image: Image.Image) -> Image.Image:
  if _orientation(image) != 1:
    image = ImageOps.exif_transpose(image)
  if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
    image = Image.fromarray(_eight_bit(np.asarray(image)))
  image.load()
  return image if image.mode == 'RGB' else image.convert('RGB')  # which would copy


def _orientation(image: Image.Image) -> int:
  try:
    return image.getexif().get(ORIENTATION, 1)
  except Exception:  # damaged metadata does not spoil the pixels
    return 1


def _eight_bit(grey: np.ndarray) -> np.ndarray:
  if grey.dtype == np.uint16 or (grey.dtype.kind == 'i' and grey.size and grey.max() > 255):
    grey = grey / 257.0
  elif grey.dtype.kind == 'f' and grey.size and grey.max() <= 1:
    grey = grey * 255.0
  return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _reason(error: Exception) -> str:
  if isinstance(error, Image.UnidentifiedImageError):
    return 'not an image in any format that Pillow reads'
  if isinstance(error, Image.DecompressionBombError):
    return f'more pixels than the limit of {Image.MAX_IMAGE_PIXELS}'
  return ' '.join(str(error).split()) or type(error).__name__
