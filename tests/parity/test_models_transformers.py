"""Every family that transformers has against its own classes, all weights random: outputs, gradients, files both ways.

A config.json says what a network is, so that these are small ones. Largest errors of `pytest -m parity -n 0 -s
tests/parity/test_models_transformers.py` with jax 0.10.2, torch 2.13.0 and transformers 5.23.0, each as a share of its
tensor's largest value, in float64: logits 1e-13 (Swin V2 1e-8), statistics 5e-14, gradients 5e-10 (Swin V2 3e-7).
"""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import reference
from tiny import matrix

import tlx
from tlx import catalog
from tlx.types import UsageError
from tlx.weights import read_tensors

# Plain transformers.
SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16)
VIT = SHAPE | dict(intermediate_size=80)
DECODER = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=99,
            bos_token_id=1, eos_token_id=2)  # fmt: skip
TOWERS = dict(vision_config=VIT, text_config=TEXT)
BEIT = VIT | dict(use_relative_position_bias=True)
# Pyramids and convolutions.
SWIN = dict(image_size=64, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)
STAGES = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1])
CONVNEXT = STAGES | dict(layer_norm_eps=1e-6)  # of the last norm: by default 1e-12, tlx has its authors'
RESNET = dict(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 1, 1])
REGNET = STAGES | dict(embedding_size=8, groups_width=8)
SEGFORMER = STAGES | dict(num_attention_heads=[1, 2, 3, 4])
EFFICIENT = dict(width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640)


class Case(NamedTuple):
  """transformers' class, its config's arguments, which of its outputs is ours, and the pixels of its images."""

  kind: str
  config: dict[str, Any]
  output: str = 'logits'
  size: int = 48


CASES = {
  'beit': {
    'beit': Case('BeitForImageClassification', BEIT),
    'beit_token': Case('BeitForImageClassification', BEIT | dict(use_mean_pooling=False)),
    'beit_base': Case('BeitModel', BEIT, 'pooled'),
  },
  'clip': {
    'clip': Case('CLIPModel', TOWERS, 'pooled'),
    'clip_vision': Case('CLIPVisionModel', VIT, 'pooled'),
    'clip_projection': Case('CLIPVisionModelWithProjection', VIT, 'pooled'),
    'clip_classes': Case('CLIPForImageClassification', TOWERS),
  },
  'convnext': {
    'convnext': Case('ConvNextForImageClassification', CONVNEXT, size=75),
    'convnextv2': Case('ConvNextV2ForImageClassification', CONVNEXT, size=75),
    'convnext_base': Case('ConvNextModel', CONVNEXT, 'pooled', 64),
  },
  'deit': {
    'deit': Case('DeiTForImageClassification', VIT),
    'deit_teacher': Case('DeiTForImageClassificationWithTeacher', VIT, 'token'),
    'deit_base': Case('DeiTModel', VIT, 'token'),
  },
  'dinov2': {
    'dinov2': Case('Dinov2ForImageClassification', SHAPE),
    'dinov2_base': Case('Dinov2Model', SHAPE, 'token'),
    'dinov2_gated': Case('Dinov2Model', SHAPE | dict(use_swiglu_ffn=True), 'token'),
    'dinov2_registers': Case('Dinov2WithRegistersForImageClassification', SHAPE),
    'dinov2_registers_base': Case('Dinov2WithRegistersModel', SHAPE, 'token'),
  },
  'dinov3': {
    'dinov3': Case('DINOv3ViTModel', VIT | dict(num_register_tokens=2), 'pooled'),
    'dinov3_gated': Case(
      'DINOv3ViTModel', VIT | dict(use_gated_mlp=True, hidden_act='silu', query_bias=False, value_bias=False), 'token'
    ),
  },
  'efficientnet': {  # sides that each stride halves: others it pads as at the size that config.json names
    'efficientnet': Case('EfficientNetForImageClassification', EFFICIENT, size=64),
    'efficientnet_wider': Case(
      'EfficientNetForImageClassification',
      EFFICIENT | dict(width_coefficient=0.75, hidden_dim=960, batch_norm_eps=1e-5), size=64,
    ),
    'efficientnet_base': Case('EfficientNetModel', EFFICIENT, 'pooled', 64),
  },
  'mobilenetv1': {
    'mobilenetv1': Case('MobileNetV1ForImageClassification', dict(depth_multiplier=0.25), size=75),
    'mobilenetv1_wider': Case('MobileNetV1ForImageClassification', dict(depth_multiplier=0.5, layer_norm_eps=1e-5)),
    'mobilenetv1_base': Case('MobileNetV1Model', dict(depth_multiplier=0.25), 'pooled'),
  },
  'mobilenetv2': {
    'mobilenetv2': Case('MobileNetV2ForImageClassification', dict(depth_multiplier=0.35), size=75),
    'mobilenetv2_wider': Case('MobileNetV2ForImageClassification', dict(depth_multiplier=0.5, layer_norm_eps=1e-5)),
    'mobilenetv2_base': Case('MobileNetV2Model', dict(depth_multiplier=0.35), 'pooled'),
  },
  'mit': {
    'segformer': Case('SegformerForImageClassification', SEGFORMER, size=75),
    'segformer_tokens': Case('SegformerForImageClassification', SEGFORMER | dict(reshape_last_stage=False), size=64),
    'segformer_base': Case('SegformerModel', SEGFORMER | dict(sr_ratios=[4, 2, 1, 1]), 'mean', 64),
  },
  'regnet': {
    'regnet_x': Case('RegNetForImageClassification', REGNET | dict(layer_type='x'), size=75),
    'regnet_y': Case('RegNetForImageClassification', REGNET, size=64),
    'regnet_base': Case('RegNetModel', REGNET, 'pooled'),
  },
  'resnet': {
    'resnet': Case('ResNetForImageClassification', RESNET, size=75),
    'resnet_basic': Case(
      'ResNetForImageClassification', RESNET | dict(layer_type='basic', hidden_sizes=[8, 16, 32, 64]), size=64
    ),
    'resnet_base': Case('ResNetModel', RESNET, 'pooled'),
  },
  'siglip': {
    'siglip': Case('SiglipModel', TOWERS, 'pooled'),
    'siglip_vision': Case('SiglipVisionModel', VIT, 'pooled'),
    'siglip_classes': Case('SiglipForImageClassification', TOWERS),
  },
  'swin': {
    'swin': Case('SwinForImageClassification', SWIN, size=64),
    'swin_one_window': Case('SwinForImageClassification', SWIN | dict(image_size=32, mlp_ratio=2.0), size=32),
    'swin_base': Case('SwinModel', SWIN, 'pooled', 64),
  },
  'swinv2': {
    'swinv2': Case('Swinv2ForImageClassification', SWIN, size=64),
    'swinv2_shrunk': Case(  # a window that is larger than the second map, as large as the first
      'Swinv2ForImageClassification',
      SWIN | dict(window_size=8, image_size=32, pretrained_window_sizes=[6, 3]), size=32,
    ),
    'swinv2_base': Case('Swinv2Model', SWIN, 'pooled', 64),
  },
  'vit': {
    'vit': Case('ViTForImageClassification', VIT),
    'vit_base': Case('ViTModel', VIT, 'token'),
    'vit_no_qkv_bias': Case('ViTForImageClassification', VIT | dict(qkv_bias=False)),
    'mae': Case('ViTMAEForPreTraining', VIT | DECODER, 'token'),
    'mae_base': Case('ViTMAEModel', VIT | DECODER, 'token'),
  },
}  # fmt: skip
FLAT = {name: case for cases in CASES.values() for name, case in cases.items()}
OFTEN = ('convnext', 'resnet', 'swin', 'vit')  # not only when drawn
NO_CLASSIFIER = {'dinov3'}  # its gradients are compared with timm's only
CLASSIFIERS = [name for name, case in FLAT.items() if case.output == 'logits']
EXACT = 1e-8  # float64, of each tensor's largest value
ROUNDED = 1e-6  # the same of Swin V2, whose steps between places transformers holds in float32
SINGLE = 1e-4  # float32


@pytest.fixture(scope='module')
def transformers():
  reference.library('transformers.modeling_utils')  # imports torchvision
  return reference.library('transformers')


def made(transformers, name):
  """transformers' model with every tensor random, in evaluation mode."""
  kind = getattr(transformers, FLAT[name].kind)
  model = kind(kind.config_class(**FLAT[name].config, num_labels=7)).eval()
  reference.draw(model)
  for part in model.modules():  # MobileNets and EfficientNet have TensorFlow's momentum, which is one less PyTorch's
    if hasattr(part, 'momentum'):
      part.momentum = 0.1
  return model


def answer(model, name, images):
  """What our model has to give for images [b, h, w, c]."""
  import torch

  x, output = reference.to_torch(images), FLAT[name].output
  with torch.no_grad():
    if output == 'logits':
      return model(x).logits.numpy()
    if output == 'pooled':
      tower = getattr(model, 'vision_model', model)
      return tower(x).pooler_output.flatten(1).numpy()
    if output == 'mean':
      return model(x).last_hidden_state.mean((2, 3)).numpy()
    tower = getattr(model, 'vit', getattr(model, 'deit', model))
    if hasattr(tower.config, 'mask_ratio'):
      tower.config.mask_ratio = 0.0  # every patch is seen, in random order, which the class token does not notice
    return tower(x).last_hidden_state[:, 0].numpy()


def close(found, expected):
  assert found.shape == expected.shape and reference.relative(np.asarray(found), expected) < SINGLE


def test_every_family_with_such_a_layout_is_compared():
  families = {name: catalog.find('models', name) for name in catalog.names('models')}
  assert {name for name, family in families.items() if 'transformers' in family.LAYOUTS} == CASES.keys()
  assert all(len(cases) >= 2 for cases in CASES.values())
  with_logits = {name for name, cases in CASES.items() if any(case.output == 'logits' for case in cases.values())}
  assert with_logits == CASES.keys() - NO_CLASSIFIER


@pytest.mark.parity
def test_transformers_has_no_classifier_of_the_others(transformers):
  for family in NO_CLASSIFIER:
    for case in CASES[family].values():
      assert not hasattr(transformers, case.kind.removesuffix('Model') + 'ForImageClassification')


@pytest.mark.parity
@pytest.mark.parametrize('name', matrix(FLAT, OFTEN))
def test_outputs_and_files(name, transformers, tmp_path):
  model = made(transformers, name)
  model.save_pretrained(tmp_path / 'theirs')
  images = reference.images(FLAT[name].size)
  expected = answer(model, name, images)
  ours = tlx.load(str(tmp_path / 'theirs'))
  assert ours.module.head.num_classes == (expected.shape[-1] if FLAT[name].output == 'logits' else 0)
  close(jax.jit(ours.module.apply)(ours.variables, images), expected)
  tlx.save(tmp_path / 'back', ours.module, ours.variables, source=ours.source, preprocess=ours.preprocess)
  before, after = (read_tensors(tmp_path / at) for at in ('theirs', 'back'))
  assert before.keys() == after.keys()
  assert all(before[key].tobytes() == after[key].tobytes() for key in before)
  close(answer(again(type(model), tmp_path / 'back'), name, images), expected)


def again(kind, folder):
  """Their model from our folder; every tensor must be there and none besides."""
  model, told = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(told.values()), told
  return model.eval()


@pytest.mark.parity
@pytest.mark.parametrize('mode', ['eval', 'train'])
@pytest.mark.parametrize('name', matrix(CLASSIFIERS, OFTEN))
def test_logits_statistics_and_gradients(name, mode, transformers, tmp_path):
  model = made(transformers, name)
  model.save_pretrained(tmp_path / 'theirs')
  ours = tlx.load(str(tmp_path / 'theirs'))
  if mode == 'eval' and 'batch_stats' not in ours.variables:
    pytest.skip('without batch statistics both modes are one program')
  renamed = lambda found: reference.as_saved(model, found, tmp_path / 'found')
  images = reference.images(FLAT[name].size)
  errors = reference.float64_errors(ours, model, images, train=mode == 'train', renamed=renamed)
  print(f'\n{name} {mode}:', *(f'{what} {worst.error:.1e} {worst.name};' for what, worst in errors.items()))
  limit = ROUNDED if 'swinv2' in name else EXACT
  assert not {what: worst for what, worst in errors.items() if worst.error >= limit}


@pytest.mark.parity
@pytest.mark.parametrize('name', matrix(CLASSIFIERS, OFTEN))
def test_a_fine_tuned_one_in_transformers(name, transformers, tmp_path):
  model = made(transformers, name)
  model.save_pretrained(tmp_path / 'theirs')
  tuned = tlx.load(str(tmp_path / 'theirs'), num_classes=5)
  variables = reference.random_head(tuned)
  names = [f'kind {i}' for i in range(5)]
  folder = tlx.save(tmp_path / 'tuned', tuned.module, variables, source=tuned.source, class_names=names)
  theirs = again(type(model), folder)
  assert [theirs.config.id2label[i] for i in range(5)] == names
  images = reference.images(FLAT[name].size)
  logits = jax.jit(tuned.module.apply)(variables, images)
  assert logits.shape == (2, 5)
  close(logits, answer(theirs, name, images))


@pytest.mark.parity
@pytest.mark.parametrize('name', matrix(['dinov2_registers', 'dinov3', 'vit', 'clip'], OFTEN))
def test_another_size(name, transformers, tmp_path):
  """Positions of DINOv2 with registers are resampled by transformers as by timm; those of ViT without antialias.

  DINOv3 has none to resample.
  """
  model = made(transformers, name)
  model.save_pretrained(tmp_path / 'theirs')
  ours = tlx.load(str(tmp_path / 'theirs'), image_size=32)
  images = reference.images(32)
  found = ours.module.apply(ours.variables, images)
  assert ours.preprocess.size == 32 and np.isfinite(found).all()
  folder = tlx.save(tmp_path / 'smaller', ours.module, ours.variables, source=ours.source)
  close(found, answer(again(type(model), folder), name, images))
  if name in ('dinov2_registers', 'dinov3'):
    close(found, answer(model, name, images))
  with pytest.raises(UsageError, match='takes images of 32 x 32 pixels, not 48 x 48'):
    ours.module.apply(ours.variables, np.zeros((1, 48, 48, 3), np.float32))


@pytest.mark.parity
def test_an_activation_that_tlx_lacks_is_named(transformers, tmp_path):
  config = transformers.ViTConfig(**VIT, hidden_act='relu').to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UsageError, match="no activation 'relu'.*gelu_tanh"):
    tlx.load(str(tmp_path))
