"""Pictures that Pillow decodes partly, without a word: tlx reports them as damaged, at every level of its checks."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from tlx.data import bounds, masks
from tlx.data.decode import decode, inspect
from tlx.types import TlxError

RNG = np.random.default_rng(0)
SMOOTH = Image.fromarray(RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((160, 120), Image.BICUBIC)
PIXELS = np.clip(np.asarray(SMOOTH) + RNG.integers(-8, 9, (120, 160, 3)), 0, 255).astype(np.uint8)


def encode(kind, pixels=PIXELS, **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(rows, height=120, **changes):
  """A PNG of RGB rows, with right checksums."""
  head = struct.pack('>IIBBBBB', 160, height, 8, 2, 0, 0, changes.get('interlaced', 0))
  data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def changed(encoded, place):
  return encoded[:place] + bytes([encoded[place] ^ 4]) + encoded[place + 1 :]


def refused(encoded, path, cheap):
  path.write_bytes(encoded)
  with pytest.raises(TlxError, match='damaged|truncated|broken|not an image|unrecognized'):
    decode(encoded)
  with pytest.raises(TlxError):
    decode(encoded, min_size=16)
  assert inspect(path).reason
  assert bool(inspect(path, full=False).reason) == cheap


@pytest.mark.parametrize('share', [0.05, 0.3, 0.6, 0.99])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', '1'])
def test_one_damaged_byte_of_a_png(mode, share, tmp_path):
  encoded = encode('PNG', np.asarray(SMOOTH.convert('L' if mode in 'LP1' else mode)))
  start, end = encoded.index(b'IDAT') + 4, encoded.rindex(b'IEND') - 8
  refused(changed(encoded, int(start + share * (end - start))), tmp_path / 'x.png', cheap=True)


def test_every_byte_of_a_small_png(tmp_path):
  whole = encode('PNG', PIXELS[:6, :6])
  path = tmp_path / 'x.png'
  for place in range(len(whole)):
    path.write_bytes(changed(whole, place))
    assert inspect(path).reason and inspect(path, full=False).reason
    with pytest.raises(TlxError):
      decode(changed(whole, place))


def test_a_png_with_too_few_rows(tmp_path):
  """Its checksums are right, and Pillow leaves the other rows black."""
  whole = png(PIXELS)
  np.testing.assert_array_equal(decode(whole), PIXELS)
  refused(png(PIXELS[:60]), tmp_path / 'x.png', cheap=False)
  refused(png(PIXELS[:0]), tmp_path / 'x.png', cheap=False)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF'])
@pytest.mark.parametrize('shade', [0, 128])
def test_a_plain_picture_is_no_damage(kind, shade, tmp_path):
  plain = np.full((120, 160, 3), shade, np.uint8)
  (tmp_path / 'x').write_bytes(encode(kind, plain))
  assert inspect(tmp_path / 'x').reason == '' == inspect(tmp_path / 'x', full=False).reason
  np.testing.assert_array_equal(decode(encode(kind, plain)), plain)


def test_an_interlaced_png_with_black_rows():
  file = bytearray(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 5, 7, 8, 0, 0, 0, 1)))
  sizes = [(1, 1), (1, 1), (1, 2), (2, 1), (2, 3), (4, 2), (3, 5)]  # (rows, columns) of the seven passes
  data = b''.join((b'\0' + bytes(columns)) * rows for rows, columns in sizes)
  end = chunk(b'IEND', b'')
  assert not decode(bytes(file) + chunk(b'IDAT', zlib.compress(data)) + end).any()
  with pytest.raises(TlxError, match='too little data'):
    decode(bytes(file) + chunk(b'IDAT', zlib.compress(data[:-6])) + end)


@pytest.mark.parametrize('options', [{}, {'subsampling': 0}, {'progressive': True}, {'restart_marker_rows': 2}])
@pytest.mark.parametrize('share', [0.3, 0.5])
def test_a_jpeg_that_ends_early_with_an_end_marker(options, share, tmp_path):
  whole = encode('JPEG', quality=90, **options)
  start = whole.index(b'\xff\xda')
  early = whole[: int(start + share * (len(whole) - start))].rstrip(b'\xff') + b'\xff\xd9'
  refused(early, tmp_path / 'x.jpg', cheap=False)
  assert decode(whole).shape == PIXELS.shape


def test_a_film_behind_a_jpeg_is_no_damage(tmp_path):
  (tmp_path / 'x.jpg').write_bytes(encode('JPEG') + b'ftypmp42' * 4000)
  assert inspect(tmp_path / 'x.jpg', full=False).reason == '' == inspect(tmp_path / 'x.jpg').reason


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP'])
def test_another_package_that_loads_truncated_pictures_changes_nothing(kind, monkeypatch):
  monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
  encoded = encode(kind)
  with pytest.raises(TlxError):
    decode(encoded[: len(encoded) // 2])


def test_a_damaged_mask_is_refused(tmp_path):
  whole = encode('PNG', PIXELS[..., 0])
  broken = changed(whole, len(whole) // 2)
  (tmp_path / 'x.png').write_bytes(broken)
  with pytest.raises(TlxError, match='wrong checksum'):
    masks.read(broken)
  assert masks.look(tmp_path / 'x.png').reason and masks.read(whole).shape == (120, 160)


def test_a_folder_read_as_a_picture(tmp_path):
  with pytest.raises(TlxError, match='a folder, not a file'):
    bounds.read(tmp_path)
