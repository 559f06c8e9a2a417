"""Decodes image files to uint8 RGB, and checks whether a file can be decoded.

Colours are those of timm and torchvision, which use Pillow's `convert('RGB')`: it drops an alpha channel without
blending, and undoes Adobe's inverted CMYK. tlx differs in two ways, on purpose: it applies the EXIF orientation, and it
scales grey of more than 8 bits, which Pillow would clip. Of an animation tlx reads the first frame.
"""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from tlx.data import bounds, grey, jpeg_damage, orientation, png_damage
from tlx.types import GreyScale, TlxError

# Formats that are not photographs, that Pillow passes to another program (EPS to Ghostscript), which is unsafe, or that
# wrap a file of another format, which tlx could not check (BLP, ICNS, IPTC).
REFUSED = frozenset({'BLP', 'BUFR', 'EPS', 'FITS', 'GRIB', 'HDF5', 'ICNS', 'IPTC', 'MPEG', 'WMF'})
FIRST = ('JPEG', 'PNG')  # Pillow tries formats in order
END_MARKERS = {'JPEG': b'\xff\xd9', 'MPO': b'\xff\xd9', 'GIF': b'\x3b'}
PNG = b'\x89PNG\r\n\x1a\n'  # how such a file starts
TAIL = 4096  # bytes at the end of a file that usually contain the end marker; cameras append a little after it
BAND = 2**20  # pixels that are copied at once, to save memory
LOOK = 200  # maximum number of files from which `look` chooses a scale


class Finding(NamedTuple):
  """The result of `inspect`."""

  reason: str  # why the file cannot be used; '' if it can
  size: tuple[int, int]  # height and width in pixels as stored; (0, 0) if unknown
  grey: str = ''  # field of a `GreyScale` if the image is grey of more than 8 bits


@functools.cache
def formats() -> tuple[str, ...]:
  """Pillow's names of the formats that tlx reads; HEIF is among them if the package pillow-heif is installed."""
  Image.init()
  with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()
  return FIRST + tuple(sorted(set(Image.OPEN) - REFUSED - {*FIRST}))


@functools.cache
def extensions() -> frozenset[str]:
  """Lower-case file extensions of those formats, with the dot."""
  known = formats()  # it registers formats
  return frozenset(e for e, f in Image.registered_extensions().items() if f in known)


def decode(encoded: bytes, *, min_size: int | None = None, scale: GreyScale | None = None) -> np.ndarray:
  """Decodes an image file to an array.

  Args:
    encoded: as in `picture`.
    min_size: as in `picture`.
    scale: as in `picture`.

  Returns:
    uint8 [h, w, 3], RGB in [0, 255].

  Raises:
    TlxError: as in `picture`.

  Examples:
    >>> import io
    >>> file = io.BytesIO()
    >>> Image.new('RGB', (3, 2), 'red').save(file, 'png')
    >>> decode(file.getvalue()).shape
    (2, 3, 3)
  """
  image = picture(encoded, min_size=min_size, scale=scale)
  rows = max(1, BAND // image.width)
  if rows >= image.height:
    return np.array(image)
  pixels = np.empty((image.height, image.width, 3), np.uint8)  # np.array would copy a large image three times
  for top in range(0, image.height, rows):
    pixels[top : top + rows] = image.crop((0, top, image.width, min(top + rows, image.height)))
  return pixels


def picture(encoded: bytes, *, min_size: int | None = None, scale: GreyScale | None = None) -> Image.Image:
  """Decodes an image file to an upright RGB image of Pillow.

  A caller that resizes should use this function, not `decode`: Pillow resizes its own image without the copies that an
  array needs. On a busy machine it took 11 ms instead of 26 ms of processor time for 2000 x 1500 pixels, and 0.57 ms
  instead of 0.73 ms for 500 x 375 pixels.

  Args:
    encoded: the whole file, in any of `formats()`.
    min_size: pixels. A JPEG may then be decoded at 1/2, 1/4 or 1/8 scale, as long as both sides keep this many pixels.
      This is faster and gives nearly the same pixels. Use it for training, but not for evaluation, which needs exact
      pixels.
    scale: of grey of more than 8 bits; one for a whole data set, see `look`. None is the default of `GreyScale`: 16-bit
      grey is divided by 257, and fractional grey is read as [0, 1]. NaN and infinite values are black.

  Returns:
    The image, in the mode RGB.

  Raises:
    TlxError: with the reason, if the file is not an image, is damaged or truncated, or needs more memory or time than
      `tlx.data.bounds` allows.
  """
  if not encoded:
    raise TlxError('the file is empty')
  try:
    with opened(encoded) as image:
      if min_size is not None:
        image.draft('RGB', (min_size, min_size))
      load(image, encoded)
      return _rgb(image, scale)
  except Exception as error:  # Pillow's plugins raise many kinds of exceptions on damaged input
    raise TlxError(reason(error)) from error


def read(path: str | os.PathLike) -> bytes:
  """Reads an image file. See `tlx.data.bounds.read`, whose errors it raises."""
  return bounds.read(path)


def inspect(path: str | os.PathLike, *, full: bool = True) -> Finding:
  """Checks whether a file can be decoded, and never raises.

  A full check decodes a JPEG at 1/8 scale, which still reads every byte. For a 500 x 400 JPEG of 74 kB it takes 0.55 ms
  on one core, and full decoding takes 0.96 ms. Otherwise tlx checks the header and the end marker, which takes 0.06 ms,
  and the checksums of a PNG, which take a tenth of the time of decoding.

  Args:
    path: path of the file.
    full: whether to decode the file.

  Returns:
    The finding; its reason is '' if the file is in order.
  """
  size, kind = (0, 0), ''
  try:
    source = bounds.read(path) if full or _starts(path) == PNG else path
    if not (source if full else os.path.getsize(path)):
      return Finding('the file is empty', size)
    with opened(source) as image:
      size, kind = (image.height, image.width), grey.kind(image.mode)
      if full:
        image.draft('RGB', (1, 1))
        load(image, source)
        return Finding('', size, kind)
      if image.format == 'PNG':
        png_damage.checksums(source)
      marker = END_MARKERS.get(image.format, b'')
    if marker not in _tail(path):  # phones append films of many MB
      return inspect(path)
    return Finding('', size, kind)
  except Exception as error:  # as in `picture`
    return Finding(reason(error), size, kind)


def look(paths: Sequence[str | os.PathLike], *, seed: int = 0) -> grey.Look:
  """Chooses the scale of a data set's grey of more than 8 bits; see `tlx.data.grey.choose`.

  Args:
    paths: of the images with a `Finding.grey`. Others, and unreadable ones, do not count.
    seed: of the choice of the at most `LOOK` files that are decoded.

  Returns:
    The scale, None if there is no such image, and lines to print.
  """
  chosen = np.random.default_rng(seed).permutation(len(paths))[:LOOK]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:  # a picture may need up to 0.9 GB
    return grey.choose(ends for ends in pool.map(lambda i: _ends(paths[i]), sorted(chosen)) if ends is not None)


def opened(source: bytes | str | os.PathLike) -> Image.Image:
  """Opens an image within the bounds of `tlx.data.bounds`, without decoding it.

  Args:
    source: the whole file, or the path of a regular file.

  Returns:
    Pillow's image, to use in a `with` statement.

  Raises:
    TlxError: if it exceeds a bound.
    Exception: of any kind, if it is not an image; `reason` says in words what is wrong.
  """
  return bounds.opened(source, formats())


def load(image: Image.Image, encoded: bytes) -> None:
  """Decodes an opened image, and refuses damage that Pillow does not report.

  Args:
    image: of `opened`.
    encoded: the whole file.

  Raises:
    TlxError: if it is damaged.
    Exception: as in `opened`.
  """
  png, jpeg = image.format == 'PNG', image.format in ('JPEG', 'MPO')
  if png:
    png_damage.checksums(encoded)
  elif jpeg:
    jpeg_damage.scans(encoded, image)
  image.load()  # before EXIF is read: Pillow may decode a PNG to find its EXIF, and that error would be lost
  if png:
    png_damage.pixels(encoded, image)
  elif jpeg:
    jpeg_damage.pixels(encoded, image)


def reason(error: Exception) -> str:
  """Says in words why an image could not be decoded.

  Args:
    error: any exception of Pillow or of tlx.

  Returns:
    One line.
  """
  if isinstance(error, Image.UnidentifiedImageError):
    return 'not an image in any format that Pillow reads'
  if isinstance(error, Image.DecompressionBombError):
    return f'more pixels than the limit of {Image.MAX_IMAGE_PIXELS}'
  if isinstance(error, MemoryError):
    return 'not enough memory to decode it'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return ' '.join(str(error).split()) or type(error).__name__


def _rgb(image: Image.Image, scale: GreyScale | None) -> Image.Image:
  """Converts a decoded image to upright RGB."""
  turn = orientation.UPRIGHT.get(orientation.of(image))
  if grey.kind(image.mode):
    image = grey.eight_bit(image, scale)
  if turn is not None:
    image = image.transpose(turn)
  return image if image.mode == 'RGB' else image.convert('RGB')  # convert would copy an RGB image


def _ends(path: str | os.PathLike) -> grey.Ends | None:
  try:
    encoded = bounds.read(path)
    with opened(encoded) as image:
      if not grey.kind(image.mode):
        return None
      load(image, encoded)
      return grey.ends(np.asarray(image))
  except Exception:  # `inspect` has reported it
    return None


def _starts(path: str | os.PathLike) -> bytes:
  """The first bytes of a regular file, as many as `PNG` has."""
  bounds.regular(path)
  with open(path, 'rb', buffering=0) as file:
    return file.read(len(PNG))


def _tail(path: str | os.PathLike) -> bytes:
  """The last `TAIL` bytes of a file."""
  with open(path, 'rb', buffering=0) as file:
    file.seek(max(0, os.path.getsize(path) - TAIL))
    return file.read(TAIL)
