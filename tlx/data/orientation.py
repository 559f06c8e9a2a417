"""The orientation of a picture, from EXIF or XMP, and the transpose that makes it upright.

Pillow copies every EXIF tag before it looks for this one. Tags may overlap, so that a PNG of 1 MB would take 10 GB.
"""

import contextlib
import re
import struct

from PIL import Image

TAG = 0x0112
XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def of(image: Image.Image) -> int:
  """The orientation of an opened image.

  Args:
    image: decoded, if it is a PNG, whose EXIF may lie behind the pixels, or a TIFF, which Pillow turns when it decodes.

  Returns:
    1 to 8, as EXIF numbers them. It is 1, upright, if the metadata are damaged: that does not damage the pixels.
  """
  with contextlib.suppress(Exception):  # of damaged metadata
    if image.format == 'TIFF':
      return _known(image.getexif().get(TAG))
    if found := _in_exif(_exif(image)):
      return _known(found)
    xmp = image.info.get('XML:com.adobe.xmp') or image.info.get('xmp') or b''
    if found := XMP.search(xmp.encode() if isinstance(xmp, str) else xmp):
      return int(found[1])
  return 1


def _known(found: int | None) -> int:
  return found if found in UPRIGHT else 1


def _exif(image: Image.Image) -> bytes:
  """The EXIF of an image, from its TIFF header on; b'' if there is none."""
  found = image.info.get('exif', b'')
  if not found and (text := image.info.get('Raw profile type exif')):  # as ImageMagick writes it into a PNG
    found = bytes.fromhex(''.join(text.split('\n')[3:]))
  return found.removeprefix(b'Exif\0\0')


def _in_exif(exif: bytes) -> int | None:
  """The value of the tag; None if it is missing or damaged."""
  with contextlib.suppress(struct.error):
    order = '<' if exif[:2] == b'II' else '>'
    (start,) = struct.unpack_from(f'{order}I', exif, 4)
    (count,) = struct.unpack_from(f'{order}H', exif, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
      tag, _, _, value = struct.unpack_from(f'{order}HHIH', exif, place)
      if tag == TAG:
        return value
  return None
