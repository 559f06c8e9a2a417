"""Data sets keep the contract; photo_patches and digits hold what they say; tfds reads back what was prepared."""

import importlib
import io
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

import tlx.datasets
from tlx.data.decode import decode
from tlx.datasets import digits, photo_patches
from tlx.datasets import tfds as tfds_source
from tlx.types import DataSource, UsageError

NAMES = sorted(p.stem for p in pathlib.Path(tlx.datasets.__file__).parent.glob('*.py') if p.stem != '__init__')
EMBEDDED = ('digits', 'photo_patches')


@pytest.mark.parametrize('name', NAMES)
def test_every_file_has_load_and_a_docstring(name):
  module = importlib.import_module(f'tlx.datasets.{name}')
  assert callable(module.load) and module.__doc__ and module.load.__doc__


@pytest.mark.parametrize('name', NAMES)
def test_every_source_has_the_optional_members(name):
  """A source that does not inherit them fails late: in balanced sampling, or where a fingerprint is asked for."""
  module = importlib.import_module(f'tlx.datasets.{name}')
  own = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
  sources = [x for x in own if hasattr(x, '__getitem__') and not issubclass(x, tuple)]
  assert sources and all(DataSource in x.__mro__ for x in sources), sources


@pytest.mark.parametrize('name', [n for n in NAMES if n not in EMBEDDED])
def test_one_that_needs_an_argument_says_so(name):
  if name == 'tfds':
    pytest.importorskip('tensorflow_datasets')
  with pytest.raises(UsageError, match=rf'needs.*{name}:'):
    importlib.import_module(f'tlx.datasets.{name}').load('', seed=0)


@pytest.mark.parametrize('name', EMBEDDED)
def test_embedded(name):
  load = importlib.import_module(f'tlx.datasets.{name}').load
  with pytest.raises(UsageError, match='takes no argument'):
    load('x', seed=0)
  info, splits = load('', seed=0)
  again, other = load('', seed=0).splits, load('', seed=1).splits
  assert set(splits) >= {'train', 'validation'} and info.name == name
  for split, source in splits.items():
    assert source.labels.dtype == np.int32 and len(source) == len(source.labels) == sum(info.counts[split])
    assert tuple(np.bincount(source.labels, minlength=len(info.class_names))) == info.counts[split]
    names = {source[i].name for i in range(len(source))}
    assert len(names) == len(source)
    for i in (0, len(source) // 2, len(source) - 1):
      example = source[i]
      assert example.image.dtype == np.uint8 and example.image.shape == (*info.resolution, 3)
      assert example.annotation == source.labels[i]
      np.testing.assert_array_equal(example.image, again[split][i].image)
  assert any((splits['train'][i].image != other['train'][i].image).any() for i in range(5))


def rectangle(height, width, crop):
  mask = np.zeros((height, width), bool)
  mask[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side] = True
  return mask


@pytest.mark.parametrize('name', sorted(photo_patches.PHOTOGRAPHS))
def test_training_and_validation_crops_share_no_pixel(name):
  height, width, _ = photo_patches.photograph(name).shape
  covered = {}
  for split in ('train', 'validation'):
    crops = [photo_patches.draw(height, width, split, i, seed=s) for s in range(3) for i in range(60)]
    assert all(0 <= c.top <= height - c.side and 0 <= c.left <= width - c.side and c.side >= 40 for c in crops)
    covered[split] = np.any([rectangle(height, width, c) for c in crops], axis=0)
  assert covered['train'].any() and covered['validation'].any()
  assert not (covered['train'] & covered['validation']).any()


@pytest.mark.slow
def test_photo_patches_are_hard_for_raw_pixels():
  from sklearn.linear_model import LogisticRegression

  splits = photo_patches.load('', seed=0).splits

  def small(source):
    images = [Image.fromarray(source[i].image).resize((32, 32), Image.BOX) for i in range(len(source))]
    return np.stack([np.asarray(image) for image in images]).reshape(len(source), -1) / 255.0

  probe = LogisticRegression(C=0.01, max_iter=2000).fit(small(splits['train']), splits['train'].labels)
  assert 1 / 18 < probe.score(small(splits['validation']), splits['validation'].labels) < 0.35


def test_digits_keep_their_grey_levels_and_splits_are_disjoint():
  info, splits = digits.load('', seed=0)
  assert info.augment == 'glyph'
  images = np.stack([splits['train'][i].image for i in range(200)])
  assert images.min() == 0 and images.max() == 255 and (images[..., :1] == images).all()
  assert not set(splits['train'].positions) & set(splits['validation'].positions)
  shares = np.array(info.counts['validation']) / np.add(*[np.array(c) for c in info.counts.values()])
  assert np.abs(shares - 0.2).max() < 0.01


def png(array):
  file = io.BytesIO()
  Image.fromarray(array).save(file, 'PNG')
  return io.BytesIO(file.getvalue())


@pytest.fixture
def prepared(tmp_path, monkeypatch):
  """Makes the tfds data sets of a folder: from a name, the features, and the records of each split."""
  pytest.importorskip('importlib_resources')
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('array_record.python')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path), raising=False)

  def make(name, features, splits):
    class Base(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features(tfds.features)))

      def _split_generators(self, dl_manager):
        return {split: enumerate(records) for split, records in splits.items()}

      def _generate_examples(self):
        raise NotImplementedError

    builder = type(name, (Base,), {'__module__': __name__})
    builder(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()

  return make


def test_tfds_reads_masks_as_class_numbers(prepared):
  rng = np.random.default_rng(0)
  photos = rng.integers(0, 256, (12, 10, 8, 3), dtype=np.uint8)
  masks = rng.integers(1, 4, (12, 10, 8), dtype=np.uint8)
  features = lambda f: {
    'image': f.Image(shape=(None, None, 3)),
    'label': f.ClassLabel(names=['cat', 'dog']),
    'segmentation_mask': f.Image(shape=(None, None, 1), use_colormap=True),
    'name': f.Text(),
  }
  record = lambda i: {'image': png(photos[i]), 'label': i % 2, 'segmentation_mask': png(masks[i]), 'name': 'x'}
  prepared('TinyTrimaps', features, {'train': map(record, range(12))})
  info, splits = tfds_source.load('tiny_trimaps@segmentation_mask', seed=0)
  assert (info.task, info.class_names) == ('segmentation', ('class 1', 'class 2', 'class 3'))
  assert info.images == {'train': 10, 'validation': 2} and info.resolution == (10, 8)
  assert {s: sum(c) for s, c in info.counts.items()} == {'train': 800, 'validation': 160}
  for source in splits.values():
    for i, example in enumerate(source[i] for i in range(len(source))):
      (at,) = np.flatnonzero((photos == decode(example.image)).all(axis=(1, 2, 3)))  # tfds has shuffled them
      np.testing.assert_array_equal(example.annotation, masks[at] - 1)
      assert source.size(i) == (10, 8)
  assert splits['train'].fingerprint() != splits['validation'].fingerprint()
  assert tfds_source.load('tiny_trimaps', seed=0).info.task == 'classification'
  with pytest.raises(UsageError, match=r'no feature mask; its features: .*segmentation_mask'):
    tfds_source.load('tiny_trimaps@mask', seed=0)
  with pytest.raises(UsageError, match=r"'name' .*neither .*write tfds:tiny_trimaps@label, tfds:tiny_trimaps@segm"):
    tfds_source.load('tiny_trimaps@name', seed=0)


def test_tfds_reads_what_was_prepared_without_tensorflow(prepared):
  pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 10), dtype=np.uint8)
  features = lambda f: {'image': f.Image(shape=(None, None, 1)), 'label': f.ClassLabel(names=['a', 'b'])}
  record = lambda i: {'image': png(pixels[i]), 'label': i % 2}
  prepared('TinyShapes', features, {'train': map(record, range(20)), 'test': map(record, range(20, 30))})
  info, splits = tfds_source.load('tiny_shapes', seed=0)
  assert info.class_names == ('a', 'b') and info.counts == {'train': (10, 10), 'validation': (5, 5)}
  assert info.resolution == (12, 10)
  images = [decode(splits['validation'][i].image)[..., 0] for i in range(10)]
  assert {im.tobytes() for im in images} == {p.tobytes() for p in pixels[20:]}
  for image, label in zip(images, splits['validation'].labels, strict=True):
    assert label == next(i for i in range(30) if (pixels[i] == image).all()) % 2
  sliced = tfds_source.load('tiny_shapes:train[:75%],train[75%:],test', seed=0)
  assert [len(s) for s in sliced.splits.values()] == [15, 5, 10]
  with pytest.raises(UsageError, match='no split val; available: train, test'):
    tfds_source.load('tiny_shapes:train,val', seed=0)
  with pytest.raises(UsageError, match='did you mean tiny_shapes'):
    tfds_source.load('tiny_shape', seed=0)
  with pytest.raises(UsageError, match='not prepared.*tfds-prepare'):
    tfds_source.load('cifar10', seed=0)
  assert 'tensorflow' not in sys.modules
