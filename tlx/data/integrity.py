"""Finds damage in encoded pictures that Pillow does not report, because it decodes what is left.

A PNG has checksums. A JPEG has none: what can be known is whether scans are missing, or data of the last one. Damage
that leaves a file of another format decodable, such as a changed pixel of a BMP, cannot be known.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tlx.types import TlxError

SCANS = 100  # of a JPEG. Encoders write about 10; libtiff has the same limit; one of 81 megapixels takes 15 ms
SEGMENTS = 20_000  # of a JPEG, and of a PNG besides one per kB
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
FILLER = bytes(i * 37 % 251 for i in range(64))  # data for a JPEG that has too little; it holds no marker
GREY = (128, 128, 128)  # what libjpeg puts where data are missing


def png(encoded: bytes) -> None:
  """Compares the checksums of a PNG, which takes 1.3 ms per MB, a twentieth of the time of decoding.

  zlib has another checksum of the pixels. But Pillow stops at the last pixel, before it, if damage makes data longer.

  Args:
    encoded: the whole file.

  Raises:
    TlxError: if the file is truncated or damaged.
  """
  content, place = memoryview(encoded), 8
  for _ in range(SEGMENTS + len(encoded) // 1024):
    if place + 12 > len(encoded):
      raise TlxError('truncated: its end is missing')
    length, kind = struct.unpack_from('>I4s', encoded, place)
    end = place + 8 + length
    if end + 4 > len(encoded):
      raise TlxError(f'truncated or damaged: the part at byte {place} ends behind the file')
    if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], 'big'):
      raise TlxError(f'damaged: the part at byte {place} has a wrong checksum')
    if kind == b'IEND':
      return
    place = end + 4
  raise TlxError(f'damaged: more than {SEGMENTS} parts')


def scans(encoded: bytes, image: Image.Image) -> None:
  """Checks the scans of a JPEG that has several. For any other JPEG it reads only the segments of the header.

  Args:
    encoded: the whole file.
    image: the same, opened.

  Raises:
    TlxError: if there are more than `SCANS`, or some are missing.
  """
  progressive, start = 'progressive' in image.info, _first_scan(encoded)
  if start is None or (not progressive and encoded[start + 4] >= image.layers):
    return
  missing: dict[int, list[int]] = {}  # component -> bits of each coefficient that no scan has brought
  found = 0
  for place in _markers(encoded, start):
    if encoded[place + 1] != 0xDA:
      continue
    found += 1
    if found > SCANS:
      raise TlxError(f'more than {SCANS} scans, which is the limit; next: save it again with an image editor')
    count = encoded[place + 4]
    first, last, bits = encoded[place + 5 + 2 * count : place + 8 + 2 * count] if progressive else (0, 63, 0)
    for component in encoded[place + 5 : place + 5 + 2 * count : 2]:
      missing.setdefault(component, [15] * 64)[first : last + 1] = [bits & 15] * (last + 1 - first)
  if len(missing) < image.layers or any(any(bits) for bits in missing.values()):
    raise TlxError('truncated or damaged: the last scans are missing')


def pixels(encoded: bytes, image: Image.Image) -> None:
  """Checks whether a decoder had data for all pixels, if the end of the picture looks as if it had not.

  Args:
    encoded: the whole file.
    image: the same, decoded but not converted.

  Raises:
    TlxError: if data are missing.
  """
  last = min(2, image.height) if image.info.get('interlace') else 1  # rows; the last pass has every second one
  if image.format == 'PNG' and not all(_row(image, image.height - 1 - i) for i in range(last)):
    short = _inflated(encoded, wanted := _png_bytes(encoded)) < wanted
  elif image.format in ('JPEG', 'MPO') and image.getpixel((image.width - 1, image.height - 1)) in (GREY, GREY[0]):
    short = _small(encoded) != _small(_filled(encoded))
  else:
    return
  if short:
    raise TlxError('truncated or damaged: it has too little data for its pixels')


def _row(image: Image.Image, row: int) -> bool:
  """Whether a row has a pixel that is not zero."""
  return image.crop((0, row, image.width, row + 1)).getbbox(alpha_only=False) is not None


def _inflated(encoded: bytes, most: int) -> int:
  """Bytes of the first picture of a PNG before its filters are undone; counts to `most`."""
  stream, place, total = zlib.decompressobj(), 8, 0
  while place + 12 <= len(encoded) and total < most and not stream.eof:
    length, kind = struct.unpack_from('>I4s', encoded, place)
    place += 12 + length
    if kind != b'IDAT':
      continue
    for start in range(place - 4 - length, place - 4, 2**16):
      rest = encoded[start : min(start + 2**16, place - 4)]
      while rest and total < most and not stream.eof:
        total += len(stream.decompress(rest, 2**20))
        rest = stream.unconsumed_tail
  while total < most and not stream.eof and (more := stream.decompress(stream.unconsumed_tail, 2**20)):
    total += len(more)
  return total


def _png_bytes(encoded: bytes) -> int:
  """Bytes of all rows of a PNG, each with the byte that names its filter."""
  width, height, depth, colours, _, _, interlaced = struct.unpack_from('>IIBBBBB', encoded, 16)
  bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
  steps = ADAM7 if interlaced else ((0, 0, 1, 1),)
  sizes = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in steps]
  return sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in sizes if rows > 0 and columns > 0)


def _first_scan(encoded: bytes) -> int | None:
  """Position of the first scan of a JPEG; None if there is something else between the segments of its header."""
  place = 2
  for _ in range(SEGMENTS):
    if place + 4 > len(encoded) or encoded[place] != 0xFF:
      return None
    if encoded[place + 1] == 0xDA:
      return place
    filler = encoded[place + 1] == 0xFF
    place += 1 if filler else 2 + int.from_bytes(encoded[place + 2 : place + 4], 'big')
  return None


def _markers(encoded: bytes, start: int) -> Iterator[int]:
  """Positions of the segments of a JPEG from `start` on, as far as the end of its first picture, which is the last."""
  content, after, found = np.frombuffer(encoded, np.uint8), start, 0
  for block in range(start, len(encoded) - 1, 2**24):
    part = content[block : block + 2**24 + 1]
    places = np.flatnonzero(part[:-1] == 0xFF)
    kinds = part[places + 1]
    # Data contain 0xFF only before 0 and before restart markers, D0 to D7.
    for place in (places[(kinds >= 0xC0) & (kinds != 0xFF) & (kinds >> 3 != 0xD0 >> 3)] + block).tolist():
      if place < after:  # in a segment
        continue
      yield place
      found += 1
      if encoded[place + 1] in (0xD8, 0xD9) or found > SEGMENTS:
        return
      after = place + 2 + int.from_bytes(encoded[place + 2 : place + 4], 'big')


def _filled(encoded: bytes) -> bytes:
  """A JPEG with more data at its end, which a decoder ignores unless it has too little."""
  start = _first_scan(encoded)
  end = len(encoded) if start is None else [*_markers(encoded, start)][-1]
  return encoded[:end] + FILLER + encoded[end:]


def _small(encoded: bytes) -> bytes:
  """The pixels of a JPEG at 1/8 scale."""
  with Image.open(io.BytesIO(encoded), formats=('JPEG',)) as image:
    image.draft('RGB', (1, 1))
    return image.tobytes()
