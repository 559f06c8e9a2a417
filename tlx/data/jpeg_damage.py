"""Finds damage in a JPEG that Pillow does not report, because it decodes what is left.

A JPEG has no checksums: what can be known is whether scans are missing, or data of the last one.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tlx.types import TlxError

SCANS = 100  # encoders write about 10; a picture of 81 megapixels with 100 takes 15 ms to count
SEGMENTS = 20_000
FILLER = bytes(i * 37 % 251 for i in range(64))  # data for a JPEG that has too little; it holds no marker
GREY = (128, 128, 128)  # what libjpeg puts where data are missing


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
  if image.getpixel((image.width - 1, image.height - 1)) not in (GREY, GREY[0]):
    return
  if _small(encoded) != _small(_filled(encoded)):
    raise TlxError('truncated or damaged: it has too little data for its pixels')


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
