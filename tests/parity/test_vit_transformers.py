"""The plain transformers against transformers' own classes, every tensor random: outputs, files in both directions."""

import json

import jax
import numpy as np
import pytest

import tlx
from tlx.types import UsageError

torch = pytest.importorskip('torch')
try:
  import transformers
except Exception as error:  # a CPU-only torch beside torchvision's wheel raises RuntimeError, not ImportError
  pytest.skip(f'transformers cannot be imported: {type(error).__name__}: {error}', allow_module_level=True)
safetensors = pytest.importorskip('safetensors.numpy')
pytestmark = pytest.mark.parity

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16)
VIT = SHAPE | dict(intermediate_size=80)
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=99,
            bos_token_id=1, eos_token_id=2)  # fmt: skip
DECODER = dict(decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)


def clip():
  vision = transformers.CLIPVisionConfig(**VIT).to_dict()
  return transformers.CLIPConfig(vision_config=vision, text_config=TEXT)


def siglip():
  vision = transformers.SiglipVisionConfig(**VIT).to_dict()
  return transformers.SiglipConfig(vision_config=vision, text_config=TEXT)


CASES = {  # transformers' class, its config, which of its outputs is ours
  'vit': ('ViTForImageClassification', lambda: transformers.ViTConfig(**VIT), 'logits'),
  'vit_base': ('ViTModel', lambda: transformers.ViTConfig(**VIT), 'token'),
  'vit_no_qkv_bias': ('ViTForImageClassification', lambda: transformers.ViTConfig(**VIT, qkv_bias=False), 'logits'),
  'mae': ('ViTMAEForPreTraining', lambda: transformers.ViTMAEConfig(**VIT, **DECODER), 'encoder'),
  'mae_base': ('ViTMAEModel', lambda: transformers.ViTMAEConfig(**VIT, **DECODER), 'encoder'),
  'deit': ('DeiTForImageClassification', lambda: transformers.DeiTConfig(**VIT), 'logits'),
  'deit_teacher': ('DeiTForImageClassificationWithTeacher', lambda: transformers.DeiTConfig(**VIT), 'encoder'),
  'deit_base': ('DeiTModel', lambda: transformers.DeiTConfig(**VIT), 'token'),
  'dinov2': ('Dinov2ForImageClassification', lambda: transformers.Dinov2Config(**SHAPE), 'logits'),
  'dinov2_base': ('Dinov2Model', lambda: transformers.Dinov2Config(**SHAPE), 'token'),
  'dinov2_gated': ('Dinov2Model', lambda: transformers.Dinov2Config(**SHAPE, use_swiglu_ffn=True), 'token'),
  'dinov2_registers': (
    'Dinov2WithRegistersForImageClassification', lambda: transformers.Dinov2WithRegistersConfig(**SHAPE), 'logits'
  ),
  'dinov2_registers_base': (
    'Dinov2WithRegistersModel', lambda: transformers.Dinov2WithRegistersConfig(**SHAPE), 'token'
  ),
  'clip': ('CLIPModel', clip, 'pooled'),
  'clip_vision': ('CLIPVisionModel', lambda: transformers.CLIPVisionConfig(**VIT), 'pooled'),
  'clip_projection': ('CLIPVisionModelWithProjection', lambda: transformers.CLIPVisionConfig(**VIT), 'pooled'),
  'siglip': ('SiglipModel', siglip, 'pooled'),
  'siglip_vision': ('SiglipVisionModel', lambda: transformers.SiglipVisionConfig(**VIT), 'pooled'),
  'siglip_classes': ('SiglipForImageClassification', siglip, 'logits'),
  'clip_classes': ('CLIPForImageClassification', clip, 'logits'),
}  # fmt: skip


def made(name):
  """transformers' model with every parameter random, in evaluation mode."""
  torch.manual_seed(0)
  kind, config, output = CASES[name]
  model = getattr(transformers, kind)(config()).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
      parameter.copy_(torch.randn_like(parameter) * scale)
      parameter += 1.0 if parameter.ndim == 1 and scale == 0.2 else 0.0
  return model, output


def answer(model, output, images):
  """What our model has to give for images [b, h, w, 3]."""
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    if output == 'logits':
      return model(x).logits.numpy()
    if output == 'pooled':
      tower = model if type(model).__name__.endswith('VisionModel') else model.vision_model
      return tower(x).pooler_output.numpy()
    if output == 'token':
      return model(x).last_hidden_state[:, 0].numpy()
    tower = getattr(model, 'vit', getattr(model, 'deit', model))
    if hasattr(tower.config, 'mask_ratio'):
      tower.config.mask_ratio = 0.0  # every patch is seen, in random order, which the class token does not notice
    return tower(x).last_hidden_state[:, 0].numpy()


def close(found, expected):
  assert found.shape == expected.shape
  assert np.abs(np.asarray(found) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize('name', CASES)
def test_outputs_and_files(name, tmp_path):
  model, output = made(name)
  model.save_pretrained(tmp_path / 'theirs')
  images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
  expected = answer(model, output, images)
  ours = tlx.load(str(tmp_path / 'theirs'))
  assert ours.module.head.num_classes == (expected.shape[-1] if output == 'logits' else 0)
  close(jax.jit(ours.module.apply)(ours.variables, images), expected)
  tlx.save(tmp_path / 'back', ours.module, ours.variables, source=ours.source, preprocess=ours.preprocess)
  before, after = (safetensors.load_file(tmp_path / at / 'model.safetensors') for at in ('theirs', 'back'))
  assert before.keys() == after.keys()
  assert all(before[key].tobytes() == after[key].tobytes() for key in before)
  again = type(model).from_pretrained(tmp_path / 'back').eval()
  close(answer(again, output, images), expected)


@pytest.mark.parametrize('name', ['dinov2_registers', 'vit', 'clip'])
def test_another_size(name, tmp_path):
  """Positions of DINOv2 with registers are resampled by transformers as by timm; those of ViT without antialias."""
  model, output = made(name)
  model.save_pretrained(tmp_path / 'theirs')
  ours = tlx.load(str(tmp_path / 'theirs'), image_size=32)
  images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  found = ours.module.apply(ours.variables, images)
  assert ours.preprocess.size == 32 and np.isfinite(found).all()
  folder = tlx.save(tmp_path / 'smaller', ours.module, ours.variables, source=ours.source)
  again = type(model).from_pretrained(folder).eval()
  close(found, answer(again, output, images))
  if name == 'dinov2_registers':
    close(found, answer(model, output, images))
  with pytest.raises(UsageError, match='takes images of 32 x 32 pixels, not 48 x 48'):
    ours.module.apply(ours.variables, np.zeros((1, 48, 48, 3), np.float32))


def test_an_activation_that_tlx_lacks_is_named(tmp_path):
  config = transformers.ViTConfig(**VIT, hidden_act='relu').to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(UsageError, match="no activation 'relu'.*gelu_tanh"):
    tlx.load(str(tmp_path))
