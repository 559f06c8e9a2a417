"""Bounds on the memory and the time that one picture may take, checked before its pixels are decoded.

Pillow bounds only the number of pixels. But a row of pixels costs Pillow 8 bytes more, some formats need several times
the bytes of their pixels, and a small file can repeat a header's parts, or a JPEG's scans, without end.
"""

import io
import os
import stat
import struct
from typing import BinaryIO

from PIL import Image, ImageFile

from tlx.data import grey
from tlx.types import TlxError

FILE = 2**29  # bytes of a file
MEMORY = 960_000_000  # bytes to hold the file and to decode it to an array, so that this stays below 1 GB
SIDE = 1_000_000  # pixels of a side; Pillow takes 0.2 s for 1 x 1,000,000 pixels
PARTS = 20_000  # reads of a header; each costs some microseconds, and GIF comments grow with the square of their number
# Bytes of a file in the two formats of which a megabyte takes 0.6 s and 0.35 s. Others take less than 0.05 s.
SLOW = {'JPEG2000': 2**24, 'AVIF': 2**24}
# Pillow has decoders in Python: QOI, DDS of 24 bits, PPM of 16 bits, ... They take up to 2.6 s per megapixel.
PYTHON = 2**22  # pixels, and a quarter of the bytes
FAST = frozenset({'MSP', 'SGI16'})  # those that work on whole rows
ICON = 2**21  # pixels of an icon; editors write at most 1024 x 1024, and their masks
COMMENTS = 1000  # of a PPM in plain text; the time grows with the square of their number
# Bytes per pixel that a decoder needs besides the picture itself, measured with pictures of 25 megapixels.
EXTRA = {'JPEG2000': 16, 'WEBP': 13, 'AVIF': 10}
PIXEL = {'1': 1, 'L': 1, 'P': 1, 'I;16': 2, 'I;16B': 2, 'I;16L': 2, 'I;16N': 2}  # bytes in Pillow; 4 in other modes


class _Counted:
  """Bounds the calls and the bytes of `read`: Pillow parses headers with a call for each part."""

  parts, amount = PARTS, FILE

  def read(self, size: int | None = -1, /) -> bytes:
    return self._count(super().read(size))

  def readline(self, size: int | None = -1, /) -> bytes:
    return self._count(super().readline(size))

  def _count(self, found: bytes) -> bytes:
    self.parts -= 1
    self.amount -= len(found)
    if self.parts < 0 or self.amount < 0:
      raise TlxError('its header has more parts than a picture needs; next: save it again with an image editor')
    return found


class _Bytes(_Counted, io.BytesIO):
  pass


class _File(_Counted, io.BufferedReader):
  pass


def read(path: str | os.PathLike) -> bytes:
  """Reads a picture's file.

  Args:
    path: path of the file.

  Returns:
    Its bytes.

  Raises:
    TlxError: if it is not a regular file, which tlx does not open, or is longer than `FILE`.
    OSError: if the system cannot read it.
  """
  length = regular(path)
  with open(path, 'rb', buffering=0) as file:
    encoded = file.read(length + 1)
  if len(encoded) != length:
    raise TlxError('the file changes while it is read')
  return encoded


def regular(path: str | os.PathLike) -> int:
  """The length of a regular file, in bytes. It does not open the file: opening a pipe waits for its writer.

  Args:
    path: path of the file.

  Raises:
    TlxError: for a folder, pipe, socket or device, and a file longer than `FILE`.
    OSError: if there is no such file.
  """
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):
    kinds = {stat.S_IFDIR: 'folder', stat.S_IFIFO: 'pipe', stat.S_IFSOCK: 'socket'}
    raise TlxError(f'a {kinds.get(stat.S_IFMT(found.st_mode), "device")}, not a file')
  _check_length(found.st_size)
  return found.st_size


def opened(source: bytes | str | os.PathLike, formats: tuple[str, ...]) -> Image.Image:
  """Opens a picture without decoding it.

  Args:
    source: the whole file, or the path of a regular file.
    formats: Pillow's names of the formats to try.

  Returns:
    Pillow's image. The caller closes it.

  Raises:
    TlxError: if it exceeds a bound.
    Exception: of Pillow, of any kind, if the file is not a picture.
  """
  ImageFile.LOAD_TRUNCATED_IMAGES = False  # other packages set it, and Pillow then fills what is missing with black
  if isinstance(source, bytes):
    length, file = len(source), _Bytes(source)
  else:
    length, file = regular(source), _File(io.FileIO(source))
  file.amount = 2 * length + 2**20  # tags of a TIFF may overlap, so that a small file has large tags
  try:
    _icons(file)
    image = Image.open(file, formats=formats)
    check(image, length)
    if _decoder(image) == 'ppm_plain' and isinstance(source, bytes) and source.count(b'#') > COMMENTS:
      raise TlxError(f'more than {COMMENTS} comments; next: save it as PNG')
  except BaseException:
    file.close()
    raise
  image._exclusive_fp = True  # closing the image closes the file
  # Decoders in Python read each pixel, and have bounds of their own. Writers of PNG make parts of 8 kB.
  file.parts = FILE if _decoder(image) in Image.DECODERS else PARTS + length // 256
  return image


def check(image: Image.Image, length: int) -> None:
  """Refuses an opened picture that needs too much memory or time.

  Args:
    image: of which the header was read.
    length: bytes of the file.

  Raises:
    TlxError: if it exceeds a bound.
  """
  (width, height), limit = image.size, Image.MAX_IMAGE_PIXELS
  size = f'{width} x {height} pixels'
  if limit and width * height > limit:  # Pillow only warns, up to twice the limit
    raise TlxError(f'{size} are more than the limit of {limit}')
  if max(width, height) > SIDE:
    raise TlxError(f'{size}: a side is longer than the limit of {SIDE}')
  if length > SLOW.get(image.format, FILE):
    raise TlxError(f'{length} bytes of {image.format}, which decodes slowly, are more than {SLOW[image.format]}')
  decoder = _decoder(image)
  if decoder in Image.DECODERS and decoder not in FAST and (width * height > PYTHON or length > 4 * PYTHON):
    raise TlxError(f'{size} of {image.format} ({decoder}) decode slowly; the limit is {PYTHON}; next: save it as PNG')
  if (need := length + needs(image)) > MEMORY:
    raise TlxError(f'{size} of {image.format} need {need / 1e9:.1f} GB of memory; the limit is {MEMORY / 1e9:.1f} GB')


def needs(image: Image.Image) -> int:
  """Bytes of memory to decode an opened picture to an array of RGB, in the step that needs most.

  Args:
    image: of which the header was read.

  Returns:
    An estimate.
  """
  width, height = image.size
  rows = lambda bytes: height * (8 + bytes * width)
  stored, converted = rows(PIXEL.get(image.mode, 4)), rows(1 if grey.kind(image.mode) else 4)
  decoder = EXTRA.get(image.format, 0) * width * height
  if image.format in ('JPEG', 'MPO') and 'progressive' in image.info:
    decoder = 2 * image.layers * width * height  # libjpeg holds 16 bits per coefficient
  if _decoder(image) == 'libtiff':
    decoder = _strip(image)
  array = rows(4) + 3 * width * height
  return max(stored + decoder, stored + (0 if image.mode == 'RGB' else converted), array)


def _decoder(image: Image.Image) -> str:
  return image.tile[0][0] if image.tile else ''


def _icons(file: BinaryIO) -> None:
  """Refuses a file of icons with a large picture in it. Pillow decodes it when it opens the file."""
  if (head := file.read(6))[:4] == b'\0\0\1\0':
    for i in range(int.from_bytes(head[4:], 'little')):
      file.seek(6 + 16 * i + 12)
      file.seek(int.from_bytes(file.read(4), 'little'))
      start = file.read(24).ljust(24, b'\0')
      width, height = struct.unpack('>II', start[16:]) if start[:4] == b'\x89PNG' else struct.unpack('<ii', start[4:12])
      if abs(width * height) > ICON:
        raise TlxError(f'an icon of {width} x {height} pixels is larger than the limit; next: save it as PNG')
  file.seek(0)


def _strip(image: Image.Image) -> int:
  """Bytes of a strip of a TIFF, which libtiff decodes as a whole."""
  bits, samples = max(image.tag_v2.get(258, (1,))), image.tag_v2.get(277, 1)
  return min(image.tag_v2.get(278, image.height), image.height) * image.width * bits * samples // 8


def _check_length(length: int) -> None:
  if length > FILE:
    raise TlxError(f'the file has more than {FILE} bytes, which is the limit')
