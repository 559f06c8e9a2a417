"""Damaged and unusual files: decoded as documented, or refused with a reason, and never the end of a run."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from tlx.data import decode as decoding
from tlx.data import orientation, pipeline, transforms
from tlx.data.decode import decode, inspect
from tlx.types import Example, Preprocess, TlxError

RNG = np.random.default_rng(0)
PIXELS = np.asarray(Image.fromarray(RNG.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((160, 120), Image.BICUBIC))


def encode(image, kind='JPEG', **options):
  file = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
  return file.getvalue()


JPEG, PNG, GIF = encode(PIXELS), encode(PIXELS, 'PNG'), encode(PIXELS, 'GIF')
DAMAGED = {
  'empty': b'',
  'text': b'<html>not found</html>',
  'header only': JPEG[:20],
  'truncated jpeg': JPEG[: len(JPEG) // 2],
  'jpeg without its last bytes': JPEG[:-40],
  'truncated png': PNG[: len(PNG) // 2],
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_files_are_refused_with_a_reason(name, tmp_path):
  path = tmp_path / 'x.jpg'
  path.write_bytes(DAMAGED[name])
  with pytest.raises(TlxError) as error:
    decode(DAMAGED[name])
  with pytest.raises(TlxError):
    decode(DAMAGED[name], min_size=16)
  assert str(error.value) and '\n' not in str(error.value)
  assert inspect(path).reason


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF'])
def test_a_cut_file_lacks_its_end_marker(kind, tmp_path):
  encoded = encode(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8), kind)
  path = tmp_path / 'x'
  path.write_bytes(encoded)
  assert inspect(path, full=False) == inspect(path) == decoding.Finding('', (90, 90))
  path.write_bytes(encoded[: len(encoded) // 2])
  assert inspect(path).reason
  if kind != 'GIF':  # its marker is one common byte, so that a header check proves little
    assert 'truncated' in inspect(path, full=False).reason


def test_missing_file_is_a_finding(tmp_path):
  assert 'No such file' in inspect(tmp_path / 'gone.jpg').reason


def test_orientation_is_applied():
  exif = Image.Exif()
  exif[orientation.TAG] = 6  # a quarter turn clockwise
  np.testing.assert_array_equal(decode(encode(PIXELS, 'PNG', exif=exif)), np.rot90(PIXELS, -1))
  assert decode(encode(PIXELS, exif=exif), min_size=30).shape == (40, 30, 3)


@pytest.mark.parametrize('value', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'JPEG'])
def test_every_orientation_equals_pillows(value, kind):
  exif = Image.Exif()
  exif[orientation.TAG] = value
  encoded = encode(PIXELS, kind, exif=exif)
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
  np.testing.assert_array_equal(decode(encoded), np.asarray(upright.convert('RGB')))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK'])
def test_modes_equal_pillows_conversion(mode):
  image = Image.fromarray(PIXELS).convert(mode)
  encoded = encode(image, 'TIFF' if mode == 'CMYK' else 'PNG')
  np.testing.assert_array_equal(decode(encoded), np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')))


def test_cmyk_jpeg_keeps_its_colours():
  assert np.abs(decode(encode(Image.fromarray(PIXELS).convert('CMYK'), quality=95)).astype(int) - PIXELS).mean() < 4


def test_palette_with_transparency_drops_it():
  image = Image.fromarray(PIXELS).convert('P', palette=Image.Palette.ADAPTIVE)
  np.testing.assert_array_equal(decode(encode(image, 'PNG', transparency=0)), np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('kind', ['GIF', 'WEBP'])
def test_animation_gives_its_first_frame(kind):
  frames = [Image.new('RGB', (20, 30), colour) for colour in ('red', 'blue')]
  image = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
  assert image.shape == (30, 20, 3) and image[..., 0].min() > 200 and image[..., 2].max() < 50


@pytest.mark.parametrize('size', [(1, 1), (20_000, 3), (3, 20_000), (20_000, 1)])
def test_extreme_sizes(size):
  image = decode(encode(Image.new('RGB', size, 'green'), 'PNG'))
  assert image.shape == (size[1], size[0], 3)
  canvas = transforms.canvas(32)
  seen = canvas.geometry(*image.shape[:2])
  assert canvas(image).shape == (32, 32, 3) and seen.width / seen.height == size[0] / size[1]
  assert transforms.evaluation(Preprocess(size=32))(image).shape == (32, 32, 3)


def test_a_bomb_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
  monkeypatch.setattr(Image, 'warnings', type('Silent', (), {'warn': staticmethod(lambda *a, **k: None)}))
  for side in (110, 300):  # above the limit, and above twice the limit
    encoded = encode(Image.new('L', (side, side)), 'PNG')
    (tmp_path / 'x.png').write_bytes(encoded)
    with pytest.raises(TlxError, match='limit of 10000'):
      decode(encoded)
    assert 'limit of 10000' in inspect(tmp_path / 'x.png').reason


def test_draft_is_near_and_only_on_request():
  large = encode(Image.fromarray(PIXELS).resize((800, 600), Image.BICUBIC), quality=95)
  exact, draft = decode(large), decode(large, min_size=100)
  assert exact.shape == (600, 800, 3) and draft.shape == (150, 200, 3)
  small = np.asarray(Image.fromarray(exact).resize((200, 150), Image.BOX))
  assert np.abs(small.astype(int) - draft).mean() < 2


class Source:
  labels = np.arange(6, dtype=np.int32)
  files = [PNG, DAMAGED['truncated jpeg'], PIXELS, b'', None, JPEG]

  def __len__(self):
    return 6

  def __getitem__(self, index):
    if self.files[index] is None:
      raise FileNotFoundError('deleted during the run')
    return Example(self.files[index], index, f'photo {index}')


def test_a_failing_image_is_masked_and_the_run_goes_on(caplog):
  transform = transforms.evaluation(Preprocess(size=16))
  batches = list(pipeline.eval_batches(Source(), batch_size=4, transform=transform))
  mask = np.concatenate([b['mask'] for b in batches])
  np.testing.assert_array_equal(mask, [True, False, True, False, False, True, False, False])
  np.testing.assert_array_equal(np.concatenate([b['index'] for b in batches]), [0, 1, 2, 3, 4, 5, -1, -1])
  images = np.concatenate([b['image'] for b in batches])
  assert not images[~mask].any() and images[mask].any()
  assert len(caplog.records) == 3 and {r.getMessage().split(' cannot')[0] for r in caplog.records} == {
    'photo 1', 'photo 3', 'image 4'  # the source could not read the last one
  }  # fmt: skip
  train = pipeline.train_batches(Source(), batch_size=6, transform=transforms.canvas(16), seed=0)
  first = next(train)
  labels = first['target']['label']
  assert first['mask'].sum() == 3 and set(labels[first['mask']]) == {0, 2, 5}
  assert not labels[~first['mask']].any()  # a blank target stands for an image that cannot be decoded
