"""Makes small JPEGs of photographs for the report."""

import io

import numpy as np
from PIL import Image

from tlx.data import decode

SIDE = 192  # pixels of the longer side


def of(image: np.ndarray | bytes, side: int = SIDE) -> bytes:
  """Makes a small JPEG with the same aspect ratio.

  Args:
    image: pixels uint8 [h, w, 3], or the bytes of an image file.
    side: maximum height and width, pixels.

  Returns:
    The bytes of the JPEG.
  """
  picture = Image.fromarray(decode.decode(image) if isinstance(image, bytes) else image)
  picture.thumbnail((side, side))
  encoded = io.BytesIO()
  picture.save(encoded, 'JPEG', quality=85)
  return encoded.getvalue()
