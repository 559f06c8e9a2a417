"""Google's npz layouts: what tlx writes, timm's own reader of them makes the same model of."""

import numpy as np
import pytest
import reference
from conftest import randomised

import tlx
from tlx import pretrained
from tlx.heads.linear import Head
from tlx.models import siglip, vit
from tlx.nn.model import Backbone, TransferModel
from tlx.weights import rules

torch = pytest.importorskip('torch')
VisionTransformer = reference.library('timm.models.vision_transformer').VisionTransformer
pytestmark = pytest.mark.parity
SHAPE = dict(dim=32, depth=2, heads=4, size=48)
THEIRS = dict(img_size=48, patch_size=16, embed_dim=32, depth=2, num_heads=4, num_classes=5)


@pytest.mark.parametrize(
  ('config', 'layout', 'arguments'),
  [
    (vit.ViTConfig(**SHAPE), vit.LAYOUTS['npz'], {}),
    (vit.ViTConfig(**SHAPE), vit.LAYOUTS['big_vision'], {}),
    (siglip.SigLipConfig(**SHAPE), siglip.LAYOUTS['npz'], {'class_token': False, 'global_pool': 'map'}),
  ],
  ids=['augreg', 'big_vision', 'siglip'],
)
def test_timm_reads_what_we_write(config, layout, arguments, tmp_path):
  module = TransferModel(Backbone(config), Head(5))
  variables = randomised(pretrained.abstract(module))
  tensors = rules.write(variables, tuple(layout(config)))
  np.savez(tmp_path / 'weights.npz', **tensors)
  theirs = VisionTransformer(**THEIRS, **arguments).eval()
  theirs.load_pretrained(str(tmp_path / 'weights.npz'))
  images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
  with torch.no_grad():
    expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  found = np.asarray(module.apply(variables, images))
  assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_npz_needs_no_config_and_fits_another_size(tmp_path):
  """The tiny variant's weights for 64 pixels, read by name for 96."""
  first = tlx.load('vit_test', pretrained=False, num_classes=5)
  variables = randomised(first.variables)
  table = tuple(vit.LAYOUTS['npz'](first.module.backbone.config))
  np.savez(tmp_path / 'weights.npz', **rules.write(variables, table), **{'pre_logits/kernel': np.zeros((8, 8))})
  loaded = tlx.load('vit_test', weights=str(tmp_path / 'weights.npz'), image_size=96)
  assert loaded.source.layout == 'npz' and set(loaded.source.dropped) == {'pre_logits/kernel'}
  assert loaded.module.apply(loaded.variables, np.zeros((1, 96, 96, 3), np.float32)).shape == (1, 5)
