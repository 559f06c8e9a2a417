"""No picture, path or device takes more memory or time than its bound; it is refused in one line."""

import io
import os
import re
import socket
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from tlx.actions import explain
from tlx.data import bounds, masks, orientation, transforms
from tlx.data.decode import decode, inspect, read
from tlx.types import Preprocess, TlxError

SMALL = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def encode(kind, image=SMALL, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, depth=8, colours=0):
  """A PNG with a header of this size and no more than a few pixels."""
  head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colours, 0, 0, 0))
  return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')


def scans(count):
  """A progressive JPEG with `count` more copies of its last scan."""
  whole = encode('JPEG', progressive=True)
  last = whole.rindex(b'\xff\xda')
  return whole[:-2] + whole[last:-2] * count + whole[-2:]


def tags(count, length):
  """A TIFF header and tags that all hold the same bytes."""
  held = b'II*\0' + struct.pack('<I', 8 + length) + bytes(length)
  each = b''.join(struct.pack('<HHII', 0x9000 + i, 7, length, 8) for i in range(count))
  return held + struct.pack('<H', count) + each + bytes(4)


JPEG, PNG, GIF = encode('JPEG'), encode('PNG'), encode('GIF')
BLOCKS = b'\x21\xfe' + (b'\x01a') * 60_000 + b'\0'  # a comment of a GIF
ICON = struct.pack('<HHHBBBBHHII', 0, 1, 1, 0, 0, 0, 0, 1, 32, 999, 22) + png(12_000, 12_000)
EXCESSIVE = {
  'a strip': (png(1, 89_000_000), '1 x 89000000 pixels: a side is longer'),
  'a flat strip': (png(89_000_000, 1), 'a side is longer'),
  'more pixels than Pillow allows': (png(12_000, 12_000), 'more than the limit of 89478485'),
  'many scans': (scans(200), 'more than 100 scans'),
  'segments': (JPEG[:2] + b'\xff\xfe\x00\x02' * 100_000 + JPEG[2:], 'more parts'),
  'fill bytes': (JPEG[:2] + b'\xff' * 1_000_000 + JPEG[2:], 'more parts'),
  'chunks': (PNG[:33] + chunk(b'tESt', b'') * 100_000 + PNG[33:], 'more parts'),
  'empty chunks of pixels': (PNG[:33] + chunk(b'IDAT', b'') * 100_000 + PNG[33:], 'parts'),
  'a compressed text': (PNG[:33] + chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**7))) + PNG[33:], 'too large'),
  'a comment': (GIF[: GIF.index(b'\x2c')] + BLOCKS + GIF[GIF.index(b'\x2c') :], 'more parts'),
  'overlapping tags': (tags(5000, 1_000_000), 'more parts|not an image'),  # newer versions of Pillow skip such tags
  'an icon': (ICON, 'an icon of 12000 x 12000'),
  'pixels read in Python': (b'P6 5000 5000 65535\n', 'decode slowly'),
  'comments in a plain text': (b'P3 9 9 255\n' + b'1 ' * 10 + b'#\n' * 2000, 'comments'),
  'lines': (b'/* XPM */\n' + b'\n' * 100_000, 'more parts'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', EXCESSIVE)
def test_excessive_pictures_are_refused(name, tmp_path):
  encoded, reason = EXCESSIVE[name]
  (tmp_path / 'x').write_bytes(encoded)
  start = time.process_time()
  with pytest.raises(TlxError, match=reason):
    decode(encoded)
  with pytest.raises(TlxError):
    decode(encoded, min_size=32)
  assert re.search(reason, inspect(tmp_path / 'x').reason)
  inspect(tmp_path / 'x', full=False)
  assert time.process_time() - start < 3


@pytest.mark.parametrize(('kind', 'mode', 'size', 'fits'), [
  ('PNG', 'RGBA', (9400, 9400), True), ('PNG', 'I;16', (9400, 9400), True), ('JPEG', 'CMYK', (9400, 9400), True),
  ('PNG', 'RGB', (1_000_000, 80), True), ('PNG', 'L', (80, 1_000_000), True), ('BMP', 'RGB', (9400, 9400), True),
  ('WEBP', 'RGB', (7000, 7000), True), ('WEBP', 'RGB', (9400, 9400), False), ('AVIF', 'RGB', (9400, 9400), False),
  ('JPEG2000', 'RGB', (6000, 6000), True), ('JPEG2000', 'RGB', (9400, 9400), False),
])  # fmt: skip
def test_the_bound_of_memory(kind, mode, size, fits):
  image = Image.new(mode, (1, 1))
  image._size, image.format, image.tile = size, kind, []
  try:
    bounds.check(image, 10**6)
  except TlxError as error:
    assert not fits and 'GB of memory' in str(error)
  else:
    assert fits


def test_long_files_of_slow_formats_are_refused():
  image = Image.new('RGB', (100, 100))
  image.format, image.tile = 'AVIF', []
  bounds.check(image, 2**24)
  with pytest.raises(TlxError, match='decodes slowly'):
    bounds.check(image, 2**24 + 1)


def test_usual_numbers_of_parts_are_read():
  assert decode(scans(40)).shape == (4, 4, 3)
  noise = np.random.default_rng(0).integers(0, 65536, (300, 400), dtype=np.uint16)
  pixels = zlib.compress(b''.join(b'\0' + row.astype('>u2').tobytes() for row in noise))
  parts = b''.join(chunk(b'IDAT', pixels[i : i + 256]) for i in range(0, len(pixels), 256))
  head = chunk(b'IHDR', struct.pack('>IIBBBBB', 400, 300, 16, 0, 0, 0, 0))
  encoded = b'\x89PNG\r\n\x1a\n' + head + parts + chunk(b'IEND', b'')
  np.testing.assert_array_equal(decode(encoded)[..., 0], np.rint(noise / 257))
  assert decode(b'P5 200 150 4095\n' + bytes(60_000)).shape == (150, 200, 3)  # Pillow reads each pixel in Python


def test_overlapping_exif_is_read_without_copies():
  exif = bytearray(tags(20_000, 1_000_000))
  struct.pack_into('<HHII', exif, 8 + 1_000_000 + 2, orientation.TAG, 3, 1, 6)
  encoded = PNG[:33] + chunk(b'eXIf', bytes(exif)) + PNG[33:]
  np.testing.assert_array_equal(decode(encoded), np.rot90(np.asarray(SMALL), -1))


@pytest.mark.parametrize('make', [
  lambda path: os.mkfifo(path), lambda path: path.mkdir(), lambda path: path.symlink_to('/dev/zero'),
  lambda path: socket.socket(socket.AF_UNIX).bind(path.name),
], ids=['pipe', 'folder', 'device', 'socket'])  # fmt: skip
def test_what_is_no_file_is_not_opened(make, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # the path of a socket is short
  path = tmp_path / 'x.png'
  make(path)
  for full in (True, False):
    assert 'not a file' in inspect(path, full=full).reason
    assert 'not a file' in masks.look(path, count=full).reason
  for reader in (read, masks.upright_size, explain.picture):
    with pytest.raises(TlxError, match='not a file|is a folder'):
      reader(path)


def test_a_sparse_file_is_not_read(tmp_path):
  with (tmp_path / 'x.png').open('wb') as file:
    file.truncate(10**12)
  for full in (True, False):
    assert 'more than 536870912 bytes' in inspect(tmp_path / 'x.png', full=full).reason


@pytest.mark.parametrize('size', [(1, 1_000_000), (1_000_000, 1)])
@pytest.mark.parametrize('transform', [
  transforms.canvas(64), transforms.evaluation(Preprocess(size=64)),
  transforms.evaluation(Preprocess(size=64, mode='squash')),
])  # fmt: skip
def test_strips_are_resized_without_their_product(size, transform, monkeypatch):
  widest, resize = [], Image.Image.resize

  def watched(image, target, *options):
    widest.append(max(image.height * target[0], target[0] * target[1]))
    return resize(image, target, *options)

  monkeypatch.setattr(Image.Image, 'resize', watched)
  assert transform(Image.new('RGB', size, 'green')).shape == (64, 64, 3)
  assert max(widest) <= 1_000_000
