"""Hundreds of damaged pictures of many formats and modes: each decodes to an array, or is refused with a reason."""

import io
import resource
import struct
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tlx.data import decode
from tlx.types import TlxError

SECONDS, BYTES = 10, 1e9
ROUNDS = 40  # of each kind of file
NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE).resize((80, 60), Image.Resampling.BICUBIC)
DEEP = np.linspace(0, 4095, 4800).reshape(60, 80)


def encode(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


FILES = {
  'jpeg': encode(PHOTO, 'JPEG'),
  'progressive': encode(PHOTO, 'JPEG', progressive=True),
  'cmyk': encode(PHOTO.convert('CMYK'), 'JPEG'),
  'png': encode(PHOTO, 'PNG'),
  'palette': encode(PHOTO.convert('P'), 'PNG', transparency=3),
  'one bit': encode(PHOTO.convert('1'), 'PNG'),
  'deep': encode(Image.fromarray(DEEP.astype(np.uint16)), 'PNG'),
  'gif': encode(PHOTO, 'GIF', save_all=True, append_images=[PHOTO.rotate(90)]),
  'webp': encode(PHOTO, 'WEBP'),
  'lossless': encode(PHOTO.convert('RGBA'), 'WEBP', lossless=True),
  'tiff': encode(PHOTO, 'TIFF'),
  'lzw': encode(PHOTO, 'TIFF', compression='tiff_lzw'),
  'float': encode(Image.fromarray(DEEP.astype(np.float32)), 'TIFF', compression='tiff_adobe_deflate'),
  'int': encode(Image.fromarray(DEEP.astype(np.int32)), 'TIFF'),
  'bmp': encode(PHOTO, 'BMP'),
}


def flipped(encoded, rng):
  content = bytearray(encoded)
  for place in rng.integers(len(content), size=rng.integers(1, 6)):
    content[place] ^= 1 << rng.integers(8)
  return bytes(content)


def cut(encoded, rng):
  return encoded[: rng.integers(len(encoded))] + rng.choice([b'', b'\xff\xd9', b'\0;', bytes(300)])


def swapped(encoded, rng):
  a, b = sorted(rng.integers(len(encoded), size=2))
  size = rng.integers(1, 65)
  return encoded[:a] + encoded[b : b + size] + encoded[a + size : b] + encoded[a : a + size] + encoded[b + size :]


def resized(encoded, rng):
  """Writes a large number somewhere into the header, where sizes, counts and offsets are."""
  content, place = bytearray(encoded), rng.integers(min(len(encoded) - 4, 200))
  number = int(rng.choice([0, 1, 255, 9000, 65535, 2**20, 2**31 - 1, 2**32 - 1]))
  form = rng.choice(['<I', '>I']) if rng.random() < 0.5 else rng.choice(['<H', '>H'])
  struct.pack_into(form, content, place, number % 65536 if form[1] == 'H' else number)
  return bytes(content)


def repeated(encoded, rng):
  a, b = sorted(rng.integers(len(encoded), size=2))
  return encoded[:b] + encoded[a:b] * int(rng.integers(1, 200)) + encoded[b:]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # of Pillow, about metadata
@pytest.mark.parametrize('name', FILES)
def test_damage_ends_in_pixels_or_in_a_reason(name, tmp_path):
  rng, path, refused = np.random.default_rng([*name.encode()]), tmp_path / 'x', 0
  unit = 1 if sys.platform == 'darwin' else 1024
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  for turn in range(ROUNDS):
    encoded = (flipped, cut, swapped, resized, repeated)[turn % 5](FILES[name], rng)
    path.write_bytes(encoded)
    start = time.process_time()
    try:
      pixels = decode.decode(encoded)
    except TlxError as error:
      refused += 1
      assert str(error).strip() and '\n' not in str(error)
    else:
      assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    found, _ = decode.inspect(path), decode.inspect(path, full=False)
    assert found.reason or found.size > (0, 0)
    assert time.process_time() - start < SECONDS
  assert refused > 3
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before < BYTES
