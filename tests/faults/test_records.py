"""Records that other people wrote: each field is read as its library reads it, or refused in one line that names it."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tlx.pretrained import Asked, resolve
from tlx.types import Preprocess, TlxError
from tlx.weights import records

HALF = (0.5, 0.5, 0.5)
VIT = {
  'image_processor_type': 'ViTImageProcessor', 'do_resize': True, 'size': {'height': 224, 'width': 224},
  'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3,
  'resample': 2,
}  # fmt: skip
READ = Preprocess(224, 1.0, 'bilinear', HALF, HALF, 'squash')
CROP = {'do_center_crop': True, 'size': {'shortest_edge': 256}}
CONVNEXT = {'image_processor_type': 'ConvNextImageProcessor', 'size': {'shortest_edge': 224}, 'crop_pct': 0.875}
TIMM = {'architecture': 'resnet18', 'num_classes': 7, 'pretrained_cfg': {'input_size': [3, 160, 160], 'crop_pct': 1.0}}
FLAT = {
  'architecture': 'resnet18', 'num_classes': 7, 'input_size': [3, 160, 160], 'mean': [0.5] * 3, 'std': [0.25] * 3,
  'crop_pct': 1.0, 'interpolation': 'bilinear', 'crop_mode': 'squash', 'labels': list('abcdefg'),
}  # fmt: skip


def of_processor(record, **config):
  return records.preprocess({'model_type': 'vit', **config}, record, Preprocess())


def folder(path, config, processor=None):
  (path / 'config.json').write_text(json.dumps(config))
  if processor:
    (path / 'preprocessor_config.json').write_text(json.dumps(processor))
  return str(path)


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, {}),
    ({'do_rescale': False}, {'mean': (0.5 / 255,) * 3, 'std': (0.5 / 255,) * 3}),
    ({'rescale_factor': 1 / 127.5}, {'mean': (0.25,) * 3, 'std': (0.25,) * 3}),
    ({'rescale_factor': 1 / 127.5, 'do_normalize': False}, {'mean': (0.0,) * 3, 'std': HALF}),
    ({'do_rescale': False, 'do_normalize': False}, {'mean': (0.0,) * 3, 'std': (1 / 255,) * 3}),
    ({'size': {'height': 192, 'width': 256}}, {'size': (192, 256)}),
    ({'size': [192, 256]}, {'size': (192, 256)}),
    ({'size': 160}, {'size': 160}),
    ({'size': {'height': 160, 'width': 160, 'shortest_edge': None}}, {'size': 160}),
    ({'image_mean': 0.25, 'image_std': 0.75}, {'mean': (0.25,) * 3, 'std': (0.75,) * 3}),
    ({**CROP, 'crop_size': 224}, {'crop': 224 / 256.5, 'mode': 'center'}),
    ({**CROP, 'crop_size': [224, 224]}, {'crop': 224 / 256.5, 'mode': 'center'}),
    ({**CROP, 'size': 256, 'crop_size': {'height': 224, 'width': 224}}, {'crop': 224 / 256.5}),  # ViT's is a square
    ({**CROP, 'size': [200, 400], 'crop_size': [100, 200]}, {'size': (100, 200), 'crop': 200 / 400.5}),
    ({'resample': 1}, {'interpolation': 'lanczos'}),
    ({'resample': 'PILImageResampling.BICUBIC'}, {'interpolation': 'bicubic'}),
    # null turns a step off, as in transformers
    ({'do_normalize': None, 'image_mean': None}, {'mean': (0.0,) * 3, 'std': (1.0,) * 3}),
    ({'do_rescale': None, 'rescale_factor': None}, {'mean': (0.5 / 255,) * 3, 'std': (0.5 / 255,) * 3}),
    ({'do_pad': False, 'do_convert_rgb': None, 'crop_size': None, 'device': 'cpu', 'do_flip_channel_order': None}, {}),
    (CONVNEXT, {'crop': 224 / 256.5, 'mode': 'center'}),
    (CONVNEXT | {'size': 384}, {'size': 384}),
    (CONVNEXT | {'do_center_crop': True, 'crop_size': 224}, {'crop': 224 / 256.5, 'mode': 'center'}),
    ({'image_processor_type': 'EfficientNetImageProcessor', 'rescale_factor': 1 / 127.5, 'rescale_offset': True},
     {'mean': (0.75,) * 3, 'std': (0.125,) * 3}),
    ({'image_processor_type': 'EfficientNetImageProcessor', 'include_top': False}, {}),
    ({'image_processor_type': 'CLIPImageProcessorFast', 'size': 256}, {'crop': 224 / 256.5, 'mode': 'center'}),
    ({'image_processor_type': None, 'feature_extractor_type': 'DeiTFeatureExtractor', 'size': 256, 'crop_size': 224},
     {'crop': 224 / 256.5}),
    ({'image_processor_type': None, 'size': 192}, {'size': 192}),
  ],
)  # fmt: skip
def test_image_processors(changes, expected):
  found, wanted = of_processor({**VIT, **changes}), READ._replace(**expected)
  assert found._replace(mean=(), std=()) == wanted._replace(mean=(), std=())
  assert found.mean == pytest.approx(wanted.mean) and found.std == pytest.approx(wanted.std)


def test_a_record_with_a_class_only_has_the_defaults_of_the_class():
  found = of_processor({'image_processor_type': 'CLIPImageProcessor'})
  assert found.mean[0] == 0.48145466 and found[:3] == (224, 1.0, 'bicubic') and found.mode == 'center'
  assert of_processor({'do_resize': True}, model_type='swin') == READ


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'do_resize': False}, 'cannot honour do_resize false'),
    ({'do_resize': None}, 'cannot honour do_resize null'),
    ({'size': None}, 'size null: transformers too refuses null'),
    ({'resample': None}, 'resample null: transformers too'),
    ({'image_mean': None}, 'image_mean null: transformers too'),
    ({'image_std': None}, 'image_std null: transformers too'),
    ({'rescale_factor': None}, 'rescale_factor null: transformers too'),
    (CONVNEXT | {'crop_pct': None}, 'crop_pct null: transformers too'),
    ({'size': {'longest_edge': 224}}, r'cannot honour size \{"longest_edge": 224\}'),
    ({'size': {'shortest_edge': 224, 'longest_edge': 512}}, 'cannot honour size'),
    ({'size': {'max_height': 224, 'max_width': 224}}, 'cannot honour size'),
    ({'size': {'shortest_edge': 224}}, 'cannot honour size .*without do_center_crop'),
    ({**CROP}, 'crop_size null: it is missing'),
    ({**CROP, 'crop_size': 300}, 'cannot honour crop_size 300: it is larger'),
    ({**CROP, 'crop_size': [224, 192]}, r'cannot honour crop_size \[224, 192\]: it is not a square'),
    ({**CROP, 'crop_size': {'shortest_edge': 224}}, 'cannot honour crop_size'),
    ({**CROP, 'size': [256, 300], 'crop_size': 224}, 'cannot honour crop_size 224: it keeps different shares'),
    ({'do_pad': True}, 'cannot honour do_pad true'),
    ({'do_flip_channel_order': True}, 'cannot honour do_flip_channel_order true'),
    ({'do_convert_grayscale': True}, 'cannot honour do_convert_grayscale true'),
    ({'use_square_size': True}, 'cannot honour use_square_size true'),
    ({'crop_pct': 0.9}, 'cannot honour crop_pct 0.9: only ConvNext'),
    ({'rescale_offset': True}, 'cannot honour rescale_offset true: only EfficientNet'),
    ({'image_processor_type': 'DonutImageProcessor'}, 'cannot honour image_processor_type "DonutImageProcessor"'),
    (CONVNEXT | {'size': {'height': 224, 'width': 224}}, 'cannot honour size'),
    (CONVNEXT | {'crop_pct': 0.01, 'size': 383}, 'crop_pct 0.01: the resized picture would have 38300'),
    ({'size': '224'}, 'size "224": it must be a side from 1 to 4096'),
    ({'size': {'height': 224}}, r'size \{"height": 224\}: it must be'),
    ({'size': {'height': 100_000, 'width': 224}}, 'size .*from 1 to 4096'),
    ({'size': True}, 'size true'),
    ({'size': [224]}, r'size \[224\]'),
    ({'resample': 4}, 'resample 4: tlx has 0'),
    ({'resample': 'area'}, 'resample "area"'),
    ({'image_mean': [0.5, 0.5]}, r'image_mean \[0.5, 0.5\]: it must be .* one for each of 3 channels'),
    ({'image_mean': '0.5'}, 'image_mean "0.5"'),
    ({'image_std': [0, 0, 0]}, r'image_std \[0, 0, 0\]: it must be a number from 1e-06'),
    ({'image_std': float('nan')}, 'image_std NaN'),
    ({'image_std': -1}, 'image_std -1'),
    ({'rescale_factor': 0}, 'rescale_factor 0'),
    ({'do_normalize': 'yes'}, 'do_normalize "yes": it must be true or false'),
    ({'image_maen': [0.4] * 3}, 'image_maen .*did you mean image_mean'),
  ],
)
def test_what_an_image_processor_asks_for_in_vain(changes, problem):
  with pytest.raises(TlxError, match=f'^preprocessor_config.json: {problem}') as caught:
    of_processor({**VIT, **changes})
  assert '\n' not in str(caught.value) and 'next: ' in str(caught.value)


def test_the_older_form_of_timm(tmp_path):
  found = resolve(folder(tmp_path, FLAT))
  assert found.preprocess == Preprocess(160, 1.0, 'bilinear', HALF, (0.25,) * 3, 'squash')
  assert records.class_names(found.config) == tuple('abcdefg')
  # timm reads the top only if the other form is absent, and has defaults of its own for what is left out
  assert resolve(folder(tmp_path, {**FLAT, 'pretrained_cfg': {}})).preprocess == Preprocess()
  bare = {'architecture': 'vit_test', 'mean': None, 'crop_pct': None}
  assert resolve(folder(tmp_path, bare)).preprocess == Preprocess(64)


@pytest.mark.parametrize(
  ('config', 'size'),
  [
    ({'model_args': {'img_size': [160, 160]}}, 160),
    ({'input_size': [3, 96, 96], 'fixed_input_size': True}, 96),
    ({'pretrained_cfg': {'input_size': [3, 96, 96], 'fixed_input_size': True}, 'model_args': {'img_size': 32}}, 32),
    ({'input_size': [3, 96, 96], 'fixed_input_size': False}, 64),  # the variant's own
  ],
)
def test_the_size_of_a_network_is_found_as_timm_finds_it(config, size, tmp_path):
  found = resolve(folder(tmp_path, {'architecture': 'vit_test', **config}))
  assert found.variant.config.size == size == found.preprocess.size


def test_a_table_of_positions_is_square(tmp_path):
  wide = {'architecture': 'vit_test', 'model_args': {'img_size': [64, 96]}}
  with pytest.raises(TlxError, match='64x96: vit_test has a table of positions'):
    resolve(folder(tmp_path, wide))
  found = resolve(folder(tmp_path, {'architecture': 'vit_test'}, {**VIT, 'size': [64, 96]}))
  with pytest.raises(TlxError, match='64x96: vit_test has a table of positions'):
    Asked().preprocess(found)
  assert Asked(image_size=32).preprocess(found).size == 32  # the way out


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'mean': 'x'}, 'pretrained_cfg.mean "x"'),
    ({'mean': [0.5] * 4}, r'pretrained_cfg.mean .*for each of 3 channels'),
    ({'input_size': [4, 160, 160], 'mean': [0.5] * 2}, r'pretrained_cfg.mean .*for each of 4 channels'),
    ({'std': [0.2, 0, 0.2]}, 'pretrained_cfg.std'),
    ({'std': [0.2, float('nan'), 0.2]}, r'pretrained_cfg.std \[0.2, NaN, 0.2\]'),
    ({'crop_pct': 1.5}, 'pretrained_cfg.crop_pct 1.5: it must be a number from 0.01 to 1'),
    ({'crop_pct': True}, 'pretrained_cfg.crop_pct true'),
    ({'input_size': [3, 100_000, 100_000]}, 'pretrained_cfg.input_size'),
    ({'input_size': [3, 0, 160]}, 'pretrained_cfg.input_size'),
    ({'input_size': [160, 160]}, 'pretrained_cfg.input_size'),
    ({'input_size': [1000, 4096, 4096]}, 'pretrained_cfg.input_size'),
    ({'interpolation': 'random'}, 'pretrained_cfg.interpolation "random": tlx has nearest, bilinear, bicubic, lanczos'),
    ({'crop_mode': 'border'}, 'pretrained_cfg.crop_mode "border": tlx has center, squash'),
    ({'label_names': ['a', 3]}, r'pretrained_cfg.label_names \["a", 3\]'),
  ],
)
def test_what_is_wrong_with_timms_fields(changes, problem, tmp_path):
  config = {**TIMM, 'pretrained_cfg': {**TIMM['pretrained_cfg'], **changes}}
  with pytest.raises(TlxError, match=f'config.json: {problem}') as caught:
    resolve(folder(tmp_path, config))
  assert '\n' not in str(caught.value) and str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
  ('config', 'problem'),
  [
    ({**TIMM, 'pretrained_cfg': 'x'}, 'pretrained_cfg "x": it must be an object'),
    ({**TIMM, 'pretrained_cfg': None}, 'pretrained_cfg null: it must be an object'),
    ({**TIMM, 'model_args': []}, r'model_args \[\]: it must be an object'),
    ({'architecture': 'vit_test', 'model_args': {'img_size': 1_000_000_000}}, 'model_args.img_size 1000000000'),
    ({**TIMM, 'model_args': {'in_chans': -1}}, 'model_args.in_chans -1'),
    ({**TIMM, 'num_classes': 10**9}, 'num_classes 1000000000: it must be an integer from 0 to 1,000,000'),
    ({**TIMM, 'architecture': ['resnet18']}, r'architecture \["resnet18"\]: it must be a text'),
    ({'model_type': 3}, 'model_type 3: it must be a text'),
    ({'model_type': 'nope'}, 'model_type "nope": the installed transformers has no such model'),
    ({'model_type': 'vit', 'hidden_size': 0}, 'hidden_size 0: it must be one integer from 1'),
    ({'model_type': 'vit', 'hidden_size': 770}, 'hidden_size 770 is not divisible by num_attention_heads 12'),
    ({'model_type': 'vit', 'num_hidden_layers': 10**9}, 'num_hidden_layers 1000000000'),
    ({'model_type': 'vit', 'image_size': '224'}, 'image_size "224": it must be a side'),
    ({'model_type': 'vit', 'layer_norm_eps': float('inf')}, 'layer_norm_eps Infinity'),
    ({'model_type': 'vit', 'hidden_act': ['gelu']}, r'hidden_act \["gelu"\]: it must be a text'),
    ({'model_type': 'vit', 'qkv_bias': 'no'}, 'qkv_bias "no": it must be true or false'),
    ({'model_type': 'vit', 'num_labels': 10**9}, 'num_labels 1000000000'),
    ({'model_type': 'vit', 'architectures': 'x'}, 'architectures "x": it must be a list'),
    ({'model_type': 'clip', 'vision_config': 'x'}, 'vision_config "x": it must be an object'),
    ({'model_type': 'clip', 'vision_config': {'patch_size': 0}}, 'vision_config.patch_size 0'),
    ({'model_type': 'segformer', 'depths': [2, 2, 2]}, 'depths has 3 stages and hidden_sizes 4'),
    ({'model_type': 'vit', 'id2label': ['a']}, r'id2label \["a"\]: it must be an object from ids to texts'),
    ({'model_type': 'vit', 'id2label': {'0': 1}}, r'id2label \{"0": 1\}: it must be'),
    ({'model_type': 'vit', 'id2label': {'a': 'b'}}, 'id2label .*its ids must be the integers from 0 to 0'),
    ({'model_type': 'vit', 'id2label': {'1': 'a', '2': 'b'}}, 'id2label .*its ids must be the integers from 0 to 1'),
    ({**TIMM, 'label_names': ['a', 'b\ud800']}, r'label_names: 1 of 2 names contain control .*"b\\ud800"'),
    ({**TIMM, 'label_names': ['\x1b[31mred', 'b']}, r'label_names: 1 of 2 names contain control .*"\\u001b'),
    ({'_model_class': ['Unet']}, r'_model_class \["Unet"\]: it must be a text'),
    ({'_model_class': 'Unet', '_tlx': 3}, '_tlx 3: it must be an object'),
    ({'_model_class': 'Unet', 'in_channels': 10**9}, 'in_channels 1000000000'),
    ({**TIMM, 'tlx': {'head': 3}}, 'tlx.head 3: it must be a text'),
  ],
)
def test_what_is_wrong_with_config(config, problem, tmp_path):
  with pytest.raises(TlxError, match=problem) as caught:
    resolve(folder(tmp_path, config))
  assert '\n' not in str(caught.value) and str(caught.value).startswith(f'{tmp_path}/config.json: ')


def test_all_problems_of_both_files_are_one_error(tmp_path):
  config = {'model_type': 'vit', 'hidden_size': 'x', 'id2label': 3, 'num_labels': -1}
  with pytest.raises(TlxError) as caught:
    resolve(folder(tmp_path, config, {**VIT, 'size': 'x', 'do_resize': False, 'image_std': 0}))
  lines = str(caught.value).splitlines()
  for part in ('hidden_size', 'id2label', 'num_labels', 'size', 'do_resize', 'image_std'):
    assert sum(bool(re.search(rf'\b{part}\b', line)) for line in lines) == 1, part
  assert len(lines) == 6 and all(line.startswith(f'{tmp_path}/') for line in lines)


@pytest.mark.parametrize(('config', 'count'), [
  ({'architecture': 'resnet18', 'model_args': {'in_chans': 1}, 'pretrained_cfg': {'input_size': [3, 64, 64]}}, 1),
  ({'architecture': 'resnet18', 'input_size': [4, 64, 64]}, 4),
  ({'model_type': 'vit', 'num_channels': 1}, 1),
  ({'model_type': 'clip', 'vision_config': {'num_channels': 5}}, 5),
  ({'model_type': 'vit'}, 3),
])  # fmt: skip
def test_channels(config, count):
  assert records.channels(config) == count
  assert len(records.for_channels(records.preprocess(config, {}, Preprocess()), count).mean) == count


def test_a_record_of_other_channels_than_the_weights(tiny_model, tmp_path):
  import tlx

  source = json.loads(Path(tiny_model, 'config.json').read_text())
  source['pretrained_cfg']['input_size'][0] = 4
  shutil.copy(Path(tiny_model, 'model.safetensors'), tmp_path)
  with pytest.raises(TlxError, match='states 4 input channels and .*weight has 3') as caught:
    tlx.load(folder(tmp_path, source))
  assert '\n' not in str(caught.value)
  assert len(tlx.load(str(tmp_path), in_channels=4).preprocess.mean) == 4  # asked for


@pytest.mark.parametrize(
  ('changes', 'size', 'expected'),
  [
    ({}, 112, {'size': {'height': 112, 'width': 112}}),
    ({'size': 224}, 112, {'size': 112}),
    ({'size': [224, 224]}, (96, 128), {'size': [96, 128]}),
    ({'size': {'height': 192, 'width': 256}}, 96, {'size': {'height': 96, 'width': 96}}),
    ({'size': {'height': 192, 'width': 256}}, (192, 256), {}),
    ({**CROP, 'crop_size': [224, 224]}, 112, {'size': {'shortest_edge': 128}, 'crop_size': [112, 112]}),
    ({**CROP, 'crop_size': 224}, 112, {'size': {'shortest_edge': 128}, 'crop_size': 112}),
    ({**CROP, 'crop_size': None, 'do_center_crop': False, 'size': 224}, 112, {'size': 112}),
  ],
)
def test_the_writer_keeps_the_form_of_a_record(changes, size, expected):
  record, config = {**VIT, **changes}, {'model_type': 'vit'}
  wanted = records.preprocess(config, record, Preprocess())._replace(size=size)
  made = records.transformers_processor(record, config, wanted)
  assert made == {**record, **expected}
  assert records.preprocess(config, made, Preprocess()).shape == wanted.shape


def test_a_form_without_height_and_width_keeps_the_exact_record_for_tlx():
  config, wanted = {'model_type': 'convnext'}, Preprocess((96, 128), 0.875, 'bilinear', HALF, HALF)
  made = records.transformers_processor({**VIT, **CONVNEXT}, config, wanted)
  assert records.preprocess(config, made, Preprocess()) == wanted
  assert records.transformers_processor(made, config, wanted) == made
  square = records.transformers_processor(made, config, wanted._replace(size=64))
  assert records.preprocess(config, square, Preprocess()).shape == (64, 64)


def test_the_writer_states_a_new_number_of_channels():
  plain = {'model_type': 'vit', 'num_channels': 3}
  assert records.transformers_config(plain, 2, 'ab', channels=1)['num_channels'] == 1
  nested = {'model_type': 'clip', 'vision_config': {'image_size': 64}}
  written = records.transformers_config(nested, 2, 'ab', size=32, channels=4)
  assert written['vision_config'] == {'image_size': 32, 'num_channels': 4} and records.channels(written) == 4
  assert 'num_channels' not in records.transformers_config({'model_type': 'vit'}, 2, 'ab', channels=3)
