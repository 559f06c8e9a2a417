"""What a preprocessor_config.json gives is what transformers' own image processor (Pillow's) gives."""

import json

import numpy as np
import pytest
import reference
from PIL import Image

from tlx.data import transforms
from tlx.types import Preprocess, TlxError
from tlx.weights import processors, records

pytestmark = pytest.mark.parity
PLAIN = {'image_mean': [0.2, 0.4, 0.6], 'image_std': [0.3, 0.5, 0.9]}
CASES = {
  'vit': ('ViT', {}),
  'vit_wide': ('ViT', {'size': {'height': 48, 'width': 80}, **PLAIN}),
  'vit_list': ('ViT', {'size': [80, 48], 'resample': 0}),
  'vit_number': ('ViT', {'size': 64, 'resample': 3}),
  'vit_scalars': ('ViT', {'size': 64, 'image_mean': 0.25, 'image_std': 0.75}),
  'vit_not_rescaled': ('ViT', {'size': 64, 'do_rescale': False, 'image_mean': [99.0] * 3, 'image_std': [50.0] * 3}),
  'vit_rescaled_only': ('ViT', {'size': 64, 'rescale_factor': 1 / 127.5, 'do_normalize': False}),
  'vit_rescaled_twice_as_much': ('ViT', {'size': 64, 'rescale_factor': 1 / 127.5, **PLAIN}),
  'vit_nothing': ('ViT', {'size': 64, 'do_rescale': False, 'do_normalize': False}),
  'vit_cropped_wide': ('ViT', {'size': [64, 96], 'do_center_crop': True, 'crop_size': [32, 48], **PLAIN}),
  'vit_null': ('ViT', {'do_normalize': None, 'image_mean': None, 'do_center_crop': None, 'crop_size': None}),
  'vit_null_rescale': ('ViT', {'do_rescale': None, 'rescale_factor': None}),
  'efficientnet_null': ('EfficientNet', {'size': 64, 'include_top': None, 'rescale_offset': None, **PLAIN}),
  'deit': ('DeiT', {}),
  'deit_older': ('DeiT', {'size': 72, 'crop_size': 64, 'do_center_crop': True, 'resample': 3}),
  'beit': ('Beit', {'size': 72, 'crop_size': 64, 'do_center_crop': True, 'do_reduce_labels': True}),
  'clip': ('CLIP', {}),
  'clip_numbers': ('CLIP', {'size': 72, 'crop_size': 64}),
  'clip_list': ('CLIP', {'size': {'shortest_edge': 72}, 'crop_size': [64, 64], 'do_convert_rgb': None}),
  'bit': ('Bit', {'size': {'shortest_edge': 64}, 'crop_size': {'height': 64, 'width': 64}}),
  'siglip': ('Siglip', {}),
  'segformer': ('Segformer', {'size': {'height': 64, 'width': 96}}),
  'convnext': ('ConvNext', {'size': {'shortest_edge': 56}, 'crop_pct': 0.875}),
  'convnext_number': ('ConvNext', {'size': 56}),
  'convnext_large': ('ConvNext', {'size': {'shortest_edge': 384}}),
  'efficientnet': ('EfficientNet', {'size': 64}),
  'efficientnet_offset': ('EfficientNet', {'size': 64, 'rescale_offset': True, 'rescale_factor': 1 / 127.5, **PLAIN}),
  'efficientnet_once': ('EfficientNet', {'size': 64, 'include_top': False, **PLAIN}),
  'efficientnet_not_normalised': ('EfficientNet', {'size': 64, 'do_normalize': False, **PLAIN}),
  'mobilenet_v1': ('MobileNetV1', {'size': {'shortest_edge': 72}, 'crop_size': {'height': 64, 'width': 64}}),
  'mobilenet_v2': ('MobileNetV2', {}),
}
NEEDED = ('size', 'resample', 'image_mean', 'image_std', 'rescale_factor', 'crop_size')
SIZES = [(96, 120), (120, 96), (64, 64), (192, 240)]  # (height, width); every crop has equal margins on both sides


@pytest.fixture(scope='module')
def transformers():
  reference.library('transformers.modeling_utils')  # imports torchvision
  return reference.library('transformers')


def theirs(transformers, name):
  return getattr(transformers, f'{name}ImageProcessorPil')


@pytest.mark.parametrize('name', CASES)
def test_inputs(name, transformers):
  kind, changes = CASES[name]
  processor = theirs(transformers, kind)(**changes)
  for record in ({'image_processor_type': f'{kind}ImageProcessor', **changes}, json.loads(processor.to_json_string())):
    ours = records.preprocess({}, record, Preprocess(1, 0.1, 'lanczos'))
    transform = transforms.evaluation(ours)
    for height, width in SIZES:
      pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
      expected = processor(Image.fromarray(pixels), return_tensors='np')['pixel_values'][0].transpose(1, 2, 0)
      found = ours.normalise(transform(pixels))
      assert found.shape == expected.shape
      difference = np.abs(found - expected) * ours.std  # of pixels in [0, 1]
      assert difference.max() < 1.01 / 255  # one level: Pillow may resize columns first
      assert np.mean(difference > 1e-4) < 0.3


@pytest.mark.parametrize('name', processors.KINDS)
def test_defaults(name, transformers):
  """What a record leaves out. DINOv3's class has no Pillow version."""
  kind = getattr(transformers, f'{name}ImageProcessor') if name == 'DINOv3ViT' else theirs(transformers, name)
  ours = processors.KINDS[name]
  crop = getattr(kind, 'crop_size', None)
  size = {'height': ours.size, 'width': ours.size} if isinstance(ours.size, int) else ours.size
  assert size == kind.size and ours.crop == (crop and crop['height'])
  assert ours.cropped == bool(getattr(kind, 'do_center_crop', False)) and ours.square == kind.default_to_square
  assert ours.resample == kind.resample and ours.statistics == (tuple(kind.image_mean), tuple(kind.image_std))
  assert ours.crop_pct == getattr(kind, 'crop_pct', None) and ours.twice == getattr(kind, 'include_top', False)
  assert kind.do_resize and kind.do_rescale and kind.do_normalize and kind.rescale_factor == 1 / 255


def test_classes_of_models(transformers):
  mapping = reference.library('transformers.models.auto.image_processing_auto').IMAGE_PROCESSOR_MAPPING_NAMES
  known = {kind: classes['torchvision'] for kind, classes in mapping.items() if kind in processors.MODELS}
  told = {kind: name.removesuffix('ImageProcessor') for kind, name in known.items()}
  assert {kind: name for kind, name in processors.MODELS.items() if kind in told} == told


def test_what_transformers_refuses_too(transformers):
  image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
  for name, changes in (
    ('ViT', {'size': {'longest_edge': 64}}), ('ViT', {'size': {'height': 64}}), ('ViT', {'do_center_crop': True}),
    ('ConvNext', {'size': {'height': 64, 'width': 64}}),
    ('CLIP', {'crop_size': {'shortest_edge': 64}}),
    *[('CLIP', {name: None}) for name in NEEDED],
  ):  # fmt: skip
    with pytest.raises(TlxError):
      records.preprocess({}, {'image_processor_type': f'{name}ImageProcessor', **changes}, Preprocess())
    with pytest.raises((ValueError, TypeError, AttributeError)):
      theirs(transformers, name)(**changes)(image)
