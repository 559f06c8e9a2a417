"""What a config.json of segmentation-models-pytorch says, and what is refused of it."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import randomised

import tlx
from tlx import catalog, weights
from tlx.heads import deeplabv3plus, fpn, segformer, unet, upernet
from tlx.pretrained import modules
from tlx.types import UsageError
from tlx.weights import records, rules, smp

UNET = {  # as smp 0.6.0 writes it
  '_model_class': 'Unet', 'activation': None, 'aux_params': None, 'classes': 5, 'decoder_attention_type': None,
  'decoder_channels': [256, 128, 64, 32, 16], 'decoder_interpolation': 'nearest', 'decoder_use_norm': 'batchnorm',
  'encoder_depth': 5, 'encoder_name': 'resnet18', 'encoder_weights': 'imagenet', 'in_channels': 4,
}  # fmt: skip
RESNET = ('stem/conv', 'stage0', 'stage1', 'stage2', 'stage3')


def test_a_unet():
  found = unet.of_smp(UNET)
  assert (found.backbone, found.num_classes, found.task) == ('resnet18', 5, 'segmentation')
  assert found.options == {
    'layers': RESNET, 'widths': (256, 128, 64, 32, 16), 'norm': True, 'interpolation': 'nearest', 'center': False
  }  # fmt: skip
  assert not found.backbone_options
  assert records.channels(UNET) == 4


def test_what_is_left_out_has_the_default_of_smp():
  written = {name: value for name, value in UNET.items() if name in ('classes', 'encoder_name')}
  assert unet.of_smp(written) == unet.of_smp(UNET)
  assert unet.of_smp({}).backbone == 'resnet34' and unet.of_smp({}).num_classes == 1
  assert records.channels({'_model_class': 'Unet'}) == 3


@pytest.mark.parametrize(
  ('value', 'norm'),
  [('batchnorm', True), (True, True), ({'type': 'batchnorm'}, True), ('identity', False), (False, False)],
)
def test_norms(value, norm):
  assert unet.of_smp({**UNET, 'decoder_use_norm': value}).options['norm'] is norm
  older = {name: x for name, x in UNET.items() if name != 'decoder_use_norm'}
  assert unet.of_smp({**older, 'decoder_use_batchnorm': value}).options['norm'] is norm


def test_the_other_classes():
  config = {'encoder_name': 'mobilenet_v2', 'classes': 3}
  maps = ('stage0', 'stage1', 'stage2', 'stage4', 'final_conv')
  found = fpn.of_smp({**config, 'decoder_dropout': 0.3, 'decoder_merge_policy': 'cat'})
  assert found.options == {
    'layers': maps[1:], 'width': 256, 'inner': 128, 'merge': 'cat', 'dropout': 0.3, 'interpolation': 'nearest',
    'upsampling': 4,
  }  # fmt: skip
  found = deeplabv3plus.of_smp({**config, 'decoder_aspp_dropout': 0.1, 'encoder_depth': 4})
  assert found.backbone == 'mobilenetv2_100'
  assert found.backbone_options == {'output_stride': 16, 'dilate_early': True}
  assert found.options == {
    'layers': ('stage1', 'stage4'), 'width': 256, 'rates': (12, 24, 36), 'separable': True, 'dropout': 0.1,
    'upsampling': 4,
  }  # fmt: skip
  found = deeplabv3plus.of_smp({'encoder_name': 'tu-resnet50.a1_in1k', 'encoder_output_stride': 8})
  assert (found.backbone, found.backbone_options) == ('resnet50', {'output_stride': 8})
  found = segformer.of_smp({'encoder_name': 'mit_b2', 'encoder_depth': 4, 'decoder_segmentation_channels': 768})
  assert (found.backbone, found.backbone_options) == ('mit_b2', {'epsilon': 1e-6})
  assert found.options == {'layers': RESNET[1:4], 'width': 768, 'upsampling': 4, 'dropout': 0.0}
  found = upernet.of_smp({'encoder_name': 'tu-swin_tiny_patch4_window7_224', 'img_size': 512})
  assert found.backbone_options == {'final_norm': False, 'size': 512}
  assert found.options == {'layers': RESNET[1:], 'width': 256, 'norm': True, 'upsampling': 4}


def test_every_encoder_is_a_variant():
  names = (
    'resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d mobilenet_v2 vgg16_bn vgg19 '
    'efficientnet-b0 timm-efficientnet-b4 timm-tf_efficientnet_lite0 tu-efficientnet_lite0 tu-tf_efficientnet_b3 '
    'tu-mobilenetv2_100 tu-resnet50d tu-seresnet50 tu-wide_resnet50_2 tu-convnext_tiny.fb_in22k tu-convnextv2_tiny '
    'tu-swin_base_patch4_window12_384 mit_b3'
  )
  for name in names.split():
    assert catalog.variant(unet.of_smp({'encoder_name': name}).backbone), name
  assert all(encoder.maps[1:] for encoder in smp.ENCODERS)


def test_everything_that_tlx_lacks_is_listed_at_once():
  config = {
    **UNET, 'activation': 'sigmoid', 'aux_params': {'classes': 2}, 'decoder_attention_type': 'scse',
    'decoder_use_norm': {'type': 'layernorm'}, 'decoder_channels': [256, '128'], 'classes': 0, 'encoder_depth': 6,
    'encoder_name': 'dpn68', 'drop_path_rate': 0.1,
  }  # fmt: skip
  with pytest.raises(UsageError) as error:
    unet.of_smp(config)
  text = str(error.value)
  assert text.startswith('config.json describes a Unet of segmentation-models-pytorch that tlx lacks: ')
  for part in (
    "encoder_name 'dpn68' (tlx has resnet*", 'encoder_depth 6 (tlx has 1 and 2 and 3 and 4 and 5)',
    "activation 'sigmoid' (tlx has None and 'identity')", "aux_params {'classes': 2} (tlx has None)",
    "decoder_attention_type 'scse' (tlx has None)", "decoder_use_norm {'type': 'layernorm'} (tlx has batchnorm and",
    "decoder_channels [256, '128'] (tlx needs a list", 'classes 0 (tlx needs an integer above 0)',
    'drop_path_rate (unknown to tlx)',
  ):  # fmt: skip
    assert part in text, part


@pytest.mark.parametrize(
  ('read', 'config', 'problem'),
  [
    (fpn.of_smp, {'encoder_depth': 3}, 'encoder_depth 3 (tlx has 4 and 5)'),
    (fpn.of_smp, {'decoder_dropout': 1.5}, 'decoder_dropout 1.5 (tlx needs a number from 0'),
    (unet.of_smp, {'encoder_name': 'tu-resnet18', 'encoder_depth': 4}, 'encoder_depth 4 (tlx has 5)'),
    (unet.of_smp, {'encoder_name': 'efficientnet-b3'}, "encoder_name 'efficientnet-b3'"),
    (unet.of_smp, {'encoder_name': 'tu-resnetv2_50'}, "encoder_name 'tu-resnetv2_50'"),
    (unet.of_smp, {'img_size': 512}, 'img_size (unknown to tlx)'),
    (deeplabv3plus.of_smp, {'encoder_name': 'vgg16'}, 'encoder_output_stride 16 (tlx has no dilation in vgg16)'),
    (deeplabv3plus.of_smp, {'encoder_output_stride': 32}, 'encoder_output_stride 32 (tlx has 8 and 16)'),
    (upernet.of_smp, {'decoder_pyramid_channels': 256}, 'decoder_pyramid_channels (unknown to tlx)'),
  ],
)
def test_refused(read, config, problem):
  with pytest.raises(UsageError) as error:
    read(config)
  assert problem in str(error.value)


def test_a_folder_of_smp_is_loaded_saved_and_loaded_again(tmp_path):
  config = {
    **UNET, 'encoder_name': 'tu-convnext_test.random', 'decoder_channels': [8] * 5, 'in_channels': 3,
  }  # fmt: skip
  head, whole = catalog.whole_of_config(config)
  variant = catalog.variant(whole.backbone)
  variant = variant._replace(config=dataclasses.replace(variant.config, **whole.backbone_options))
  module = modules.build(variant, 5, head=catalog.head(head, num_classes=5, **whole.options))
  table = modules.whole_table(variant, module, unet.LAYOUTS['smp_tu'])
  tensors = rules.write(randomised(modules.abstract(module)), table)
  assert {name.split('.')[0] for name in tensors} == {'encoder', 'decoder', 'segmentation_head'}
  (tmp_path / 'a').mkdir()
  weights.write_safetensors(tmp_path / 'a' / 'model.safetensors', tensors, {})
  (tmp_path / 'a' / 'config.json').write_text(json.dumps(config))

  loaded = tlx.load(str(tmp_path / 'a'))
  assert (loaded.module.head.num_classes, loaded.source.layout) == (5, 'smp_tu')
  again = tlx.load(str(tlx.save(tmp_path / 'b', loaded, class_names=list('abcde'))))
  written = json.loads((tmp_path / 'b' / 'config.json').read_text())
  assert {name: value for name, value in written.items() if name != '_tlx'} == config
  assert again.class_names == tuple('abcde') and again.module == loaded.module
  back = weights.read_tensors(tmp_path / 'b')
  assert back.keys() == tensors.keys() and all(np.array_equal(back[name], x) for name, x in tensors.items())

  third = tlx.load(str(tlx.save(tmp_path / 'c', tlx.load(str(tmp_path / 'b'), num_classes=2))))
  assert third.module.head.num_classes == 2
  assert json.loads((tmp_path / 'c' / 'config.json').read_text())['classes'] == 2
  other = tlx.load(str(tmp_path / 'b'), head='fpn(width=8, inner=32)', num_classes=2)
  tlx.save(tmp_path / 'd', other)  # of which smp's config.json says nothing any more
  assert '_model_class' not in json.loads((tmp_path / 'd' / 'config.json').read_text())
  assert tlx.load(str(tmp_path / 'd')).module == other.module


def test_a_class_of_smp_that_there_is_not_is_named():
  with pytest.raises(
    UsageError,
    match="no head of segmentation-models-pytorch's class 'UnetPlusPlus'; there are .*FPN, .*Unet",
  ):
    catalog.whole_of_config({**UNET, '_model_class': 'UnetPlusPlus'})
