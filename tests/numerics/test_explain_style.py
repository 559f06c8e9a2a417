"""Style transfer: its Gram matrices, its layers, its colours, and a loss that falls."""

import jax
import numpy as np
import pytest
import tiny

from tlx import catalog, pretrained
from tlx.data.pixels import grey
from tlx.explain import objectives, style
from tlx.types import Preprocess, Pretrained, UsageError

QUICK = ('efficientnet_test', 'vit_test')
KINDS = ('beit_test', 'convnext_test', 'resnet_test', 'squeezenet_test', 'swin_test')
FAMILIES = tiny.matrix([*QUICK, *KINDS], QUICK)


def photographs(height=48, width=64):
  """Two smooth pictures of other colours, uint8."""
  y, x = np.mgrid[:height, :width] / 16
  one = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 60 + 120
  two = np.stack([np.sin(3 * x * y), np.cos(5 * y), np.cos(4 * x)], -1) * (90, 40, 20) + (160, 110, 60)
  return one.astype(np.uint8), two.astype(np.uint8)


@pytest.mark.parametrize('shape', [(2, 5, 7, 4), (2, 9, 4)])  # a map, tokens
def test_gram_matrices(shape):
  values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  rows = values.reshape(shape[0], -1, shape[-1])
  expected = np.stack([row.T @ row / len(row) for row in rows])
  np.testing.assert_allclose(objectives.gram(values), expected, rtol=1e-5, atol=1e-6)


def test_losses_are_shares_of_the_target():
  rng = np.random.default_rng(0)
  values, target = rng.normal(size=(2, 1, 6, 5, 4)).astype(np.float32)
  content = np.square(values - target).mean() / np.square(target).mean()
  np.testing.assert_allclose(objectives.content('a', target)({'a': values}), [content], rtol=1e-5)
  grams = {name: np.asarray(objectives.gram(target * scale)) for name, scale in (('a', 1), ('b', 100))}
  parts = objectives.style(grams)({'a': values, 'b': 100 * values})
  one = objectives.style({'a': grams['a']})({'a': values})
  np.testing.assert_allclose(parts, one, rtol=1e-4)  # a layer's scale gives it no more weight
  assert float(objectives.style(grams)({'a': target, 'b': 100 * target})[0]) < 1e-9


def test_the_default_layers_of_vgg_are_those_of_the_paper():
  module = pretrained.build(catalog.variant('vgg19'), 1000)
  model = Pretrained(module, pretrained.abstract(module), Preprocess(), (), None)
  firsts = ('stem', 'stage1_block0', 'stage2_block0', 'stage3_block0', 'stage4_block0')  # conv1_1, 2_1, ... 5_1
  assert style.paper_layers(model) == (firsts, 'stage3_block1')  # conv4_2


@pytest.mark.parametrize('name', FAMILIES)
def test_the_loss_falls_for_every_family(name):
  model = tiny.built(name)
  sizes = style.sizes_to(model, model.module.backbone.config.size or 80)
  work = style.style_transfer(model, *photographs(), sizes=sizes, steps=24, every=24, optimizer='adam')
  found = list(work)[-1]
  (losses,) = found.figures['losses'].values()
  assert min(losses) < losses[0] and len(losses) == 24
  assert found.pictures['picture'].shape[1] == sizes[-1] and set(found.pictures) == {'picture', 'progress', 'loss'}


@pytest.mark.slow
def test_lbfgs_beats_its_start_and_goes_from_coarse_to_fine():
  model = tiny.built('mobilenetv1_test')
  found = list(style.style_transfer(model, *photographs(), sizes=(64, 96), steps=6, every=3))
  last = found[-1]
  assert [part.done for part in found] == [3, 6, 9, 12] and last.total == 12
  assert last.figures['style'] < 0.8 * last.figures['style_of_content']
  assert list(map(len, last.figures['losses'].values())) == [6, 6]
  assert [part.pictures['picture'].shape for part in found[1:3]] == [(48, 64, 3), (72, 96, 3)]


@pytest.mark.slow
def test_luminance_keeps_the_colours():
  model, (content, manner) = tiny.built('resnet_test'), photographs()
  work = style.style_transfer(
    model, content, manner, sizes=[64], steps=4, every=4, colours='luminance', optimizer='adam'
  )
  picture, original = (x.astype(np.float32) / 255 for x in (list(work)[-1].pictures['picture'], content))
  inside = ((picture > 0.01) & (picture < 0.99)).all(-1)  # elsewhere a colour would leave [0, 1]
  chroma = lambda pixels: np.asarray(pixels - grey(pixels))[inside]
  assert inside.mean() > 0.8
  np.testing.assert_allclose(chroma(picture), chroma(original), atol=0.01)
  assert np.abs(grey(picture) - grey(original)).mean() > 0.01


def test_histogram_gives_the_style_the_colours_of_the_content():
  rng = np.random.default_rng(0)
  content = (0.5 + 0.05 * rng.normal(size=(1, 40, 40, 3)) @ rng.normal(size=(3, 3))).astype(np.float32)
  manner = (0.4 + 0.1 * rng.normal(size=(1, 40, 40, 3))).astype(np.float32)
  found = style.matched(manner, content).reshape(-1, 3)
  np.testing.assert_allclose(found.mean(0), content.reshape(-1, 3).mean(0), atol=0.005)
  np.testing.assert_allclose(np.cov(found.T), np.cov(content.reshape(-1, 3).T), atol=0.002)
  grey_picture = np.full((1, 8, 8, 3), 0.3, np.float32)
  assert np.isfinite(style.matched(grey_picture, content)).all()


def test_the_shuffled_control_has_the_same_pixels_elsewhere():
  photo = np.random.default_rng(0).uniform(size=(1, 43, 66, 3)).astype(np.float32)
  mixed = style.shuffled(np.random.default_rng(1), photo)
  assert (mixed != photo).mean() > 0.8
  np.testing.assert_array_equal(np.sort(mixed.ravel()), np.sort(photo.ravel()))


def test_sizes():
  model = tiny.built('resnet_test')
  assert style.sizes_to(model, 1024) == (256, 512, 1024) and style.sizes_to(model, 200) == (200,)
  assert style.sizes_to(tiny.built('vit_test'), None) == (64,)
  with pytest.raises(UsageError, match='64 pixels only'):
    style.sizes_to(tiny.built('vit_test'), 512)
  assert jax.config.jax_enable_x64 is False  # what other files switch on stays with them
