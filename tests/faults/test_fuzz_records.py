"""Hundreds of damaged config.json and preprocessor_config.json: each is refused, or gives sane preprocessing."""

import copy
import json
import math
import random
import time

import pytest

from tlx.pretrained import Asked, resolve
from tlx.types import TlxError
from tlx.weights import fields

HALF, COUNT, SECONDS = [0.5, 0.5, 0.5], 250, 10
TIMM = {
  'architecture': 'vit_test', 'num_classes': 3, 'num_features': 8, 'label_names': ['a', 'b', 'c'],
  'global_pool': 'token', 'model_args': {'img_size': [64, 64], 'in_chans': 3, 'num_classes': 3, 'global_pool': 'token'},
  'pretrained_cfg': {
    'tag': 'random', 'custom_load': False, 'input_size': [3, 64, 64], 'fixed_input_size': True,
    'interpolation': 'bicubic', 'crop_pct': 0.9, 'crop_mode': 'center', 'mean': HALF, 'std': HALF, 'num_classes': 3,
    'pool_size': None, 'first_conv': 'patch_embed.proj', 'classifier': 'head', 'license': 'apache-2.0',
  },
}  # fmt: skip
FLAT = {
  'architecture': 'resnet_test', 'num_classes': 2, 'num_features': 8, 'labels': ['a', 'b'], 'input_size': [3, 160, 160],
  'pool_size': [5, 5], 'crop_pct': 0.95, 'interpolation': 'bilinear', 'mean': HALF, 'std': HALF, 'first_conv': 'conv1',
}  # fmt: skip
UNET = {
  '_model_class': 'Unet', 'activation': None, 'aux_params': None, 'classes': 5, 'decoder_attention_type': None,
  'decoder_channels': [256, 128, 64, 32, 16], 'decoder_interpolation': 'nearest', 'decoder_use_norm': 'batchnorm',
  'encoder_depth': 5, 'encoder_name': 'resnet18', 'encoder_weights': 'imagenet', 'in_channels': 4,
  '_tlx': {**TIMM, 'tlx': {'head': 'unet', 'num_classes': 5, 'class_names': list('abcde'), 'task': 'segmentation'}},
}  # fmt: skip
OURS = {
  **TIMM,
  'tlx': {'head': 'mlp', 'module': 'm', 'num_classes': 2, 'class_names': ['a', 'b'], 'task': 'x', 'backbone': {}},
}
NAMES = {'id2label': {'0': 'cat', '1': 'dog'}, 'label2id': {'cat': 0, 'dog': 1}}
COMMON = {'do_resize': True, 'do_rescale': True, 'do_normalize': True, 'rescale_factor': 1 / 255, 'resample': 3,
          'image_mean': HALF, 'image_std': HALF}  # fmt: skip
SQUARE, EDGE = {'height': 64, 'width': 64}, {'shortest_edge': 64}
CROPPED = {'size': {'shortest_edge': 72}, 'do_center_crop': True, 'crop_size': SQUARE}
PROCESSORS = [
  {**COMMON, 'image_processor_type': 'ViTImageProcessor', 'size': SQUARE, 'do_convert_rgb': None},
  {**COMMON, 'feature_extractor_type': 'ConvNextFeatureExtractor', 'size': 64, 'crop_pct': 0.875},
  {**COMMON, 'image_processor_type': 'EfficientNetImageProcessor', 'size': SQUARE, 'rescale_offset': True,
   'include_top': True, 'do_center_crop': False, 'crop_size': SQUARE},
  {**COMMON, 'image_processor_type': 'SegformerImageProcessor', 'size': SQUARE, 'do_reduce_labels': False},
  {**COMMON, 'image_processor_type': 'CLIPImageProcessorFast', **CROPPED, 'do_convert_rgb': True},
  {**COMMON, 'image_processor_type': 'SiglipImageProcessor', 'size': SQUARE},
  {**COMMON, 'feature_extractor_type': 'DeiTFeatureExtractor', 'size': 72, 'do_center_crop': True, 'crop_size': 64},
]  # fmt: skip
VIT = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 32, 'image_size': 64,
       'patch_size': 16, 'num_channels': 3, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-6}  # fmt: skip
STAGES = {'hidden_sizes': [8, 16, 24, 32], 'depths': [1, 1, 1, 1], 'num_channels': 3}
NETWORKS = {
  'vit': {**VIT, 'qkv_bias': True, 'architectures': ['ViTForImageClassification']},
  'clip': {'vision_config': VIT, 'architectures': ['CLIPModel']},
  'convnext': {**STAGES, 'patch_size': 4, 'layer_norm_eps': 1e-6, 'hidden_act': 'gelu'},
  'segformer': {**STAGES, 'num_attention_heads': [1, 2, 3, 4], 'sr_ratios': [8, 4, 2, 1], 'mlp_ratios': [4, 4, 4, 4],
                'architectures': ['SegformerForSemanticSegmentation'], 'decoder_hidden_size': 16},
  'efficientnet': {'width_coefficient': 0.5, 'depth_coefficient': 0.3, 'hidden_dim': 640, 'batch_norm_eps': 1e-3},
  'regnet': {**STAGES, 'embedding_size': 8, 'groups_width': 8, 'layer_type': 'y'},
  'swinv2': {'image_size': 64, 'embed_dim': 8, 'depths': [2, 2], 'num_heads': [2, 4], 'window_size': 4, 'patch_size': 4,
             'pretrained_window_sizes': [0, 0], 'mlp_ratio': 4.0},
  'dinov2': {**VIT, 'mlp_ratio': 4, 'use_swiglu_ffn': False},
}  # fmt: skip
OF_TRANSFORMERS = [({'model_type': kind, **NAMES, **network}, {}) for kind, network in NETWORKS.items()]
OTHERS = [(config, {}) for config in (TIMM, FLAT, UNET, OURS)] + [(FLAT, processor) for processor in PROCESSORS]
VALUES = [
  None, True, False, 0, 1, -1, 3, 1_000_000_000, 10**30, 100_000, 0.0, -0.5, 0.5, 1e-300, 1e300, math.nan, math.inf, '',
  'x', '224', 'bilinear', 'ViTImageProcessor', '\ud800', '\x1b[31m', [], {}, [0], [1e9], [None], ['x'], [0, 0, 0],
  [3, 0, 0], [3, 64, 96], [4, 64, 64], [1] * 99, [[1]], [math.nan] * 3, {'0': 'a', '2': 'b'}, {'x': 'y'}, {'0': 0},
  {'height': -1, 'width': 64}, {'height': 10**9, 'width': 64}, {'longest_edge': 64}, {'shortest_edge': '64'},
  {'height': 64, 'width': 96}, {'max_height': 9, 'max_width': 9},
]  # fmt: skip


def paths(record, start=()):
  """Every place in a record: keys, keys of objects in it, and elements of lists."""
  items = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
  for key, value in items:
    yield (*start, key)
    yield from paths(value, (*start, key))


def damaged(records, rng):
  """The two records, with one to three values replaced, removed or added."""
  pair = copy.deepcopy(records)
  for _ in range(rng.choice([1, 1, 1, 2, 3])):
    record = rng.choice([each for each in pair if each])
    *way, last = rng.choice(list(paths(record)))
    for key in way:
      record = record[key]
    if rng.random() < 0.1 and isinstance(record, dict):
      record.pop(last)
    else:
      record[last] = copy.deepcopy(rng.choice(VALUES))
  return pair


def outcome(folder, pair):
  """'refused', or what makes the preprocessing insane, if anything does."""
  for name, record in zip(('config.json', 'preprocessor_config.json'), pair):
    (folder / name).unlink(missing_ok=True)
    if record:
      (folder / name).write_text(json.dumps(record))
  start = time.monotonic()
  try:
    found = resolve(str(folder))
    record = Asked().preprocess(found)
  except TlxError as error:
    assert len(str(error)) < 9000 and str(error).isascii() and '\x1b' not in str(error)
    assert time.monotonic() - start < SECONDS
    return 'refused'
  assert time.monotonic() - start < SECONDS
  sides = [*record.shape, *(side / record.crop for side in record.shape)]
  assert all(1 <= side <= fields.RESIZED for side in sides) and all(type(side) is int for side in record.shape)
  assert record.interpolation in ('nearest', 'bilinear', 'bicubic', 'lanczos') and record.mode in ('center', 'squash')
  assert len(record.mean) == len(record.std) == Asked().channels(found.config) <= fields.CHANNELS
  assert all(map(math.isfinite, record.mean)) and all(0 < value < math.inf for value in record.std)
  return 'read'


@pytest.mark.parametrize('records', [OTHERS, OF_TRANSFORMERS], ids=['timm_smp_processors', 'transformers'])
def test_damaged_records(records, tmp_path):
  assert pytest.importorskip('transformers').AutoConfig  # its import may take longer than a record is given
  assert {outcome(tmp_path, pair) for pair in records} == {'read'}  # they are whole
  rng, failed, outcomes = random.Random(0), [], []
  for _ in range(COUNT):
    pair = damaged(rng.choice(records), rng)
    try:
      outcomes.append(outcome(tmp_path, pair))
    except Exception as error:  # the test is about which ones come through
      failed.append(f'{type(error).__name__} {error}: {json.dumps(pair)}')
  assert not failed, '\n'.join([f'{len(failed)} of {COUNT}', *failed[:5]])
  assert min(outcomes.count('read'), outcomes.count('refused')) > COUNT / 8
