"""Grey of more than 8 bits: one scale per data set, from its files; the same pixels in training and prediction."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image

import tlx
from tlx.actions import predict, tasks
from tlx.data import decode, grey, pipeline, transforms
from tlx.datasets import folder
from tlx.types import Example, GreyScale, Preprocess

RNG = np.random.default_rng(0)


def encode(values, kind='TIFF', **options):
  file = io.BytesIO()
  Image.fromarray(values).save(file, kind, **options)
  return file.getvalue()


def look(folder, *images, kind='TIFF'):
  paths = [folder / f'{i}.{kind}' for i in range(len(images))]
  for path, values in zip(paths, images):
    path.write_bytes(encode(values, kind))
  assert all(decode.inspect(path, full=full).grey for path in paths for full in (True, False))
  return decode.look(paths)


@pytest.mark.parametrize(('dtype', 'field'), [(np.uint16, 'uint16'), (np.int32, 'int32'), (np.float32, 'float32')])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_every_depth_keeps_its_levels(bits, dtype, field, tmp_path):
  values = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(dtype)
  found = look(tmp_path, values, values // 2)
  assert getattr(found.scale, field) == (0, 2**bits - 1)
  levels = decode.decode(encode(values), scale=found.scale)[..., 0]
  np.testing.assert_array_equal(levels, np.rint(values.astype(float) * 255 / (2**bits - 1)))
  assert len(np.unique(levels)) == 256
  assert decode.decode(encode(values // 2), scale=found.scale).max() in (127, 128)  # half as bright, as it was


@pytest.mark.parametrize(('values', 'expected'), [
  ([0, 1], (0, 1)), ([0, 1.02], (0, 1)), ([-0.03, 0.9], (0, 1)), ([0.001, 0.002], (0, 1)), ([-1, 1], (-1, 1)),
  ([0, 1.2], (0, 1.2)), ([0, 255], (0, 255)), ([0, 200], (0, 255)), ([-1000, 3000], (-1000, 3000)),
  ([0, 4000], (0, 4095)), ([0, 1e6], (0, 1e6)), ([-5, -3], (-5, -3)), ([0, 0], (0, 1)), ([2, 2], (0, 2)),
])  # fmt: skip
def test_ranges_of_fractional_numbers(values, expected):
  ends = grey.Ends('float32', *np.float32(values).tolist())
  assert grey.choose([ends]).scale.float32 == pytest.approx(expected)


@pytest.mark.parametrize('strange', [np.nan, np.inf, -np.inf, 1.02, 50.0])
def test_one_strange_pixel_changes_no_other(strange, tmp_path):
  usual = RNG.random((64, 64), np.float32)
  odd = usual.copy()
  odd[0, 0] = strange
  found = look(tmp_path, usual, odd)
  assert found.scale == GreyScale() == look(tmp_path, odd).scale
  for scale in (None, found.scale):
    expected, levels = (decode.decode(encode(x), scale=scale)[..., 0] for x in (usual, odd))
    np.testing.assert_array_equal(levels.ravel()[1:], expected.ravel()[1:])
    assert levels[0, 0] == (255 if np.isfinite(strange) else 0)


def test_only_strange_pixels(tmp_path):
  assert look(tmp_path, np.full((4, 4), np.nan, np.float32)) == grey.Look(None)
  assert not decode.decode(encode(np.full((4, 4), np.nan, np.float32))).any()


def test_256_differs_little_from_255(tmp_path):
  dim, bright = np.full((8, 8), 255, np.int32), np.full((8, 8), 256, np.int32)
  scale = look(tmp_path, dim, bright).scale
  means = [decode.decode(encode(x), scale=scale).mean() for x in (dim, bright)]
  assert abs(means[0] - means[1]) <= 1 and means[0] > 60


def test_few_levels_are_told(tmp_path):
  (note,) = look(tmp_path, np.full((8, 8), 300, np.uint16) + np.arange(8, dtype=np.uint16), kind='PNG').notes
  assert '0 is black and 1023 is white' in note and 'only 2 of 256 levels (values 300 to 307)' in note


def test_kinds_have_scales_of_their_own_and_others_do_not_count(tmp_path):
  paths = [tmp_path / name for name in ('a.png', 'b.tif', 'c.jpg', 'd.png', 'missing.png')]
  images = (np.uint16([[0, 900]]), 'PNG'), (np.float32([[0, 9]]), 'TIFF'), (np.uint8([[3]]), 'JPEG')
  for path, (values, kind) in zip(paths, images):
    path.write_bytes(encode(values, kind))
  paths[3].write_bytes(paths[0].read_bytes()[:40])
  found = decode.look(paths)
  assert found.scale == GreyScale(uint16=(0, 1023), float32=(0, 9)) and len(found.notes) == 2


def test_a_look_reads_a_seeded_sample(tmp_path, monkeypatch):
  read = []
  monkeypatch.setattr(decode, 'LOOK', 3)
  monkeypatch.setattr(decode, '_ends', lambda path: read.append(path) or grey.Ends('uint16', 0, 9))
  decode.look(range(100), seed=1)
  first = sorted(read)
  read.clear()
  decode.look(range(100), seed=1)
  assert sorted(read) == first and len(first) == 3
  decode.look(range(100), seed=2)
  assert sorted(read[3:]) != first


@pytest.mark.parametrize('mode', ['I;16', 'I;16B'])
def test_the_default_is_fixed_and_not_a_guess(mode):
  """Both byte orders; one bright pixel changes no other."""
  values = np.arange(0, 65536, 8).reshape(64, 128)
  image = Image.frombytes(mode, (128, 64), values.astype('<u2' if mode == 'I;16' else '>u2').tobytes())
  file = io.BytesIO()
  image.save(file, 'TIFF')
  np.testing.assert_array_equal(decode.decode(file.getvalue())[..., 1], np.rint(values / 257))
  assert decode.decode(encode(np.int32([[0, 255]]))).max() == 1
  assert decode.decode(encode(np.float32([[0, 0.5, 7]])))[0, :, 0].tolist() == [0, 128, 255]


def test_parts_of_a_large_image_are_scaled_alike(monkeypatch):
  values = RNG.integers(0, 4096, (50, 40), dtype=np.uint16)
  whole = decode.decode(encode(values, 'PNG'), scale=GreyScale(uint16=(0, 4095)))
  monkeypatch.setattr(grey, 'BAND', 300)
  monkeypatch.setattr(decode, 'BAND', 300)
  np.testing.assert_array_equal(decode.decode(encode(values, 'PNG'), scale=GreyScale(uint16=(0, 4095))), whole)


class Source:
  labels = np.zeros(1, np.int32)

  def __len__(self):
    return 1

  def __getitem__(self, index):
    return Example(encode(np.full((9, 9), 2048, np.uint16), 'PNG'), 0, 'x.png')

  def annotation(self, index):
    return 0


@pytest.mark.parametrize(('scale', 'level'), [(None, 8), (GreyScale(uint16=(0, 4095)), 128)])
def test_training_and_evaluation_use_the_scale_of_the_record(scale, level):
  record = Preprocess(size=8, grey=scale)
  for transform in (transforms.evaluation(record), transforms.canvas(8, record.grey)):
    (batch,) = pipeline.eval_batches(Source(), batch_size=1, transform=transform)
    assert (batch['image'] == level).all() and batch['mask'].all()


def test_a_data_set_a_model_and_its_predictions_share_the_scale(tmp_path, monkeypatch):
  for i in range(6):
    path = tmp_path / 'data' / 'ab'[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(RNG.integers(0, 4096, (32, 32)).astype(np.uint16), 'PNG'))
  info = folder.load(str(tmp_path / 'data'), seed=0).info
  assert info.grey.uint16 == (0, 4095) and '4095 is white' in info.notes[-1]
  task = tiny.task(tiny.CLASSES)
  trained = tasks.trained_for(task, tiny.built('squeezenet_test'), info._replace(class_names=task.class_names))
  tlx.save(tmp_path / 'model', trained)
  loaded = tlx.load(str(tmp_path / 'model'))
  assert loaded.preprocess.grey == info.grey
  tlx.save(tmp_path / 'again', loaded._replace(preprocess=loaded.preprocess._replace(grey=None)))
  assert tlx.load(str(tmp_path / 'again')).preprocess.grey is None
  seen = []
  monkeypatch.setattr(predict, 'forward_of', lambda model: lambda x: seen.append(x) or np.zeros((len(x), 5)))
  list(predict.predict(str(tmp_path / 'model'), [tmp_path / 'data/a/0.png']))
  assert seen[0].max() > 200  # without the scale it would be 16
