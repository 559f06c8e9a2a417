"""Gradients of every objective equal central differences, in float64, on a CNN with batch norm and a transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tlx.explain import fourier, objectives, style
from tlx.explain.outputs import PIXELS, look
from tlx.explain.transforms import USUAL, transformed

MODELS = ('efficientnet_test', 'vit_test')
STEP = 1e-5


def aims(layer, width, other):
  """Every objective, by name; `other`: what the model sees in another picture."""
  rng = np.random.default_rng(1)
  style_of_other = objectives.style({layer: objectives.gram(other[layer])})
  return {
    'logit': objectives.logit(3),
    'log_probability': objectives.log_probability(3),
    'channel': objectives.channel(layer, 1),
    'direction': objectives.direction(layer, jnp.asarray(rng.normal(size=width))),
    'variation': objectives.variation(),
    'content': objectives.content(layer, other[layer]),
    'style': style_of_other,
    'total': objectives.total((1, objectives.logit(0)), (-0.5, objectives.variation()), (3, style_of_other)),
  }


def agree(values, start, rng):
  """The slopes of each of `values` [n] along a random direction against central differences."""
  slopes = jax.jit(jax.jacrev(values))(start)
  way = jnp.asarray(rng.normal(size=start.shape))
  values = jax.jit(values)
  expected = (values(start + STEP * way) - values(start - STEP * way)) / (2 * STEP)
  found = jnp.tensordot(slopes, way, way.ndim)
  assert float(jnp.abs(found).min()) > 0
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize('name', MODELS)
def test_slopes_equal_finite_differences(name):
  with jax.enable_x64(True):
    model = tiny.built(name)
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), model.variables)
    rng, layer, side = np.random.default_rng(0), model.module.backbone.names[2], tiny.side(model.module)
    see = jax.jit(look(model))
    start, other = (jnp.asarray(rng.uniform(0.2, 0.8, (1, side, side, 3))) for _ in range(2))
    assert start.dtype == jnp.float64
    there = see(variables, other)
    every = aims(layer, there[layer].shape[-1], there).values()
    agree(lambda pixels: jnp.stack([aim(seen)[0] for seen in [see(variables, pixels)] for aim in every]), start, rng)


@pytest.mark.parametrize('name', MODELS)
def test_slopes_through_parametrisation_and_transforms(name):
  with jax.enable_x64(True):
    model = tiny.built(name)
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), model.variables)
    side, rng = tiny.side(model.module), np.random.default_rng(0)
    aim = objectives.total((1, objectives.logit(2)), (-1, objectives.variation()))

    def value(coefficients):
      pixels = transformed(jax.random.key(1), fourier.to_pixels(coefficients), USUAL)
      return aim(look(model)(variables, pixels))

    agree(value, jnp.asarray(rng.normal(size=(1, side, side, 3))), rng)


@pytest.mark.slow
def test_slopes_of_the_loss_of_style_transfer():
  with jax.enable_x64(True):
    model = tiny.built('efficientnet_test')
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), model.variables)
    rng = np.random.default_rng(0)
    job = style.Transfer(look(model), ('stem', 'stage1_block0'), 'stage1_block1', style.USUAL)
    photo, manner = (jnp.asarray(rng.uniform(0.2, 0.8, (1, 48, 40, 3))) for _ in range(2))
    fixed = variables, *job.targets(variables, photo, manner)
    agree(lambda pixels: job.loss(fixed, pixels)[None], photo + 0.1, rng)
    agree(lambda grey: job.loss(fixed, grey)[None], photo[..., :1] + 0.1, rng)


def test_total_variation_by_hand():
  pixels = np.random.default_rng(0).uniform(size=(2, 5, 7, 3)).astype(np.float32)
  expected = [np.abs(np.diff(p, axis=0)).mean() + np.abs(np.diff(p, axis=1)).mean() for p in pixels]
  np.testing.assert_allclose(objectives.variation()({PIXELS: pixels}), expected, rtol=1e-6)
