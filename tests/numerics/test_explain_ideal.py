"""Ideal pictures: the Fourier basis, the transforms, and descent on every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from tlx.data import transforms as host
from tlx.explain import fourier, ideal, pictures, transforms
from tlx.explain.outputs import check_size, look
from tlx.types import UsageError

DEAD = 'inception_test'  # with random weights its channels answer nothing to grey, from where descent begins
QUICK = ('efficientnet_test', 'vit_test')
FAMILIES = tiny.matrix([name for name in tiny.NAMES if name != DEAD], QUICK)


def test_the_basis_is_orthonormal_and_its_own_inverse():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 12, 9, 3)).astype(np.float32)
  np.testing.assert_allclose(fourier.hartley(fourier.hartley(a)), a, atol=1e-5)
  np.testing.assert_allclose(jnp.vdot(fourier.hartley(a), fourier.hartley(b)), np.vdot(a, b), rtol=1e-3)


def test_each_coefficient_is_a_wave_of_its_frequency():
  for place in ((0, 3), (2, 0), (5, 7)):
    wave = np.asarray(fourier.hartley(jnp.zeros((16, 16, 1)).at[place].set(1.0)))[..., 0]
    power = np.abs(np.fft.fft2(wave))
    mirrored = tuple(-k % 16 for k in place)
    assert {tuple(map(int, k)) for k in np.argwhere(power > 1e-3)} == {place, mirrored}


def test_the_spectrum_is_white_but_for_the_weights():
  """Power of independent draws: flat without weights; with them it falls as 1 / frequency squared."""
  draws = jax.random.normal(jax.random.key(0), (400, 32, 32, 1))
  power = lambda values: np.mean(np.abs(np.fft.fft2(np.asarray(values)[..., 0], norm='ortho')) ** 2, axis=0)
  assert np.abs(power(fourier.hartley(draws)) - 1).max() < 0.35
  weighted = power(fourier.hartley(draws * fourier.falloff(32, 32)))
  assert weighted[0, 8] / weighted[0, 16] == pytest.approx(4, rel=0.3)
  assert weighted.mean() == pytest.approx(1, abs=0.1)


def test_colours_are_decorrelated_as_in_photographs():
  data = pytest.importorskip('skimage.data')
  rows = np.concatenate([picture.reshape(-1, 3) for picture in (data.chelsea(), data.coffee(), data.astronaut())]) / 255
  before = np.corrcoef(rows, rowvar=False)
  after = np.corrcoef(np.linalg.solve(fourier.COLOURS, rows.T))
  off = lambda matrix: np.abs(matrix[np.triu_indices(3, 1)]).mean()
  assert off(before) > 0.7 > 0.45 > off(after)


def test_transforms_are_keyed_and_the_identity_without_strength():
  pixels = jax.random.uniform(jax.random.key(0), (3, 20, 24, 3))
  one, two, other = (transforms.transformed(jax.random.key(k), pixels) for k in (1, 1, 2))
  assert (one == two).all() and (one != other).any() and one.shape == pixels.shape
  assert one.min() >= 0 and one.max() <= 1 + 1e-6
  assert transforms.transformed(jax.random.key(1), pixels, transforms.NONE) is pixels
  still = transforms.transformed(jax.random.key(1), pixels, transforms.Transforms(0, 0, 1e-12))
  np.testing.assert_allclose(still, pixels, atol=1e-4)
  np.testing.assert_allclose(one[:1], transforms.transformed(jax.random.key(1), pixels[:1]), atol=1e-6)  # its own draw


def test_jitter_moves_all_pixels_alike():
  ramp = jnp.broadcast_to(jnp.arange(40.0)[None, None, :, None] / 40, (1, 40, 40, 3))
  moved = transforms.transformed(jax.random.key(3), ramp, transforms.Transforms(0.1, 0, 0))
  inner = np.asarray(moved - ramp)[0, 6:-6, 6:-6]
  np.testing.assert_allclose(inner, inner.mean(), atol=1e-5)
  assert abs(inner.mean()) * 40 <= 4 and inner.mean() != 0


def made(model, goals, **options):
  return list(ideal.ideal_images(model, goals, size=model.preprocess.size, **({'steps': 6, 'every': 3} | options)))


@pytest.mark.parametrize('name', FAMILIES)
def test_a_few_steps_raise_the_objective_of_every_family(name):
  model = tiny.built(name)
  grey = np.full((1, model.preprocess.size, model.preprocess.size, 3), 0.5, np.float32)
  seen = jax.jit(look(model))(model.variables, grey)
  goal = ideal.of_class(model, int(seen['logits'].argmax()))  # a rectified one has no slope at 0
  first, last = made(model, [goal], variation=0.0, transforms=transforms.NONE)
  (figures,) = last.figures['pictures'].values()
  assert figures['objective'] > figures['objective_of_noise']
  assert (first.done, last.done, last.total) == (3, 6, 6) and len(last.figures['losses']) == 6
  (picture,) = last.pictures.values()
  assert picture.dtype == np.uint8 and picture.shape == (model.preprocess.size,) * 2 + (3,)


@pytest.mark.parametrize('parametrisation', tiny.matrix(['fourier', 'pixels'], ['fourier']))
def test_the_same_seed_gives_the_same_pictures_within_zero_and_one(parametrisation):
  model = tiny.built('mobilenetv1_test')
  goals = [ideal.of_class(model, 1), ideal.of_channel(model, 'stage0_block0', 2)]
  one, two, other = (made(model, goals, seed=s, parametrisation=parametrisation)[-1] for s in (0, 0, 1))
  assert list(one.pictures) == ['class_1', 'stage0_block0_channel_2', 'sheet']
  assert all((one.pictures[k] == two.pictures[k]).all() for k in one.pictures)
  assert (one.pictures['class_1'] != other.pictures['class_1']).any()
  made_of = fourier.PARAMETRISATIONS[parametrisation]
  pixels = made_of.pixels(made_of.project(3 * jax.random.normal(jax.random.key(0), (1, 32, 32, 3))))
  assert pixels.min() >= 0 and pixels.max() <= 1


@pytest.mark.slow
def test_total_variation_is_lowered_by_its_weight_and_the_figures_are_of_the_files():
  model = tiny.built('resnet_test')
  goals = [ideal.of_class(model, 2)]
  rough, smooth = (made(model, goals, variation=v, steps=40, every=40)[-1] for v in (0.0, 300.0))
  assert smooth.figures['variation'] < rough.figures['variation'] / 2
  see = ideal._see(model, set())(model.variables, pictures.to_floats(rough.pictures['class_2'])[None])
  found = rough.figures['pictures']['class 2']['probability']
  assert found == pytest.approx(float(jax.nn.softmax(see['logits'][0])[2]), rel=1e-5)


def test_a_direction_is_what_the_photograph_has_over_a_plain_one():
  model = tiny.built('efficientnet_test')
  photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  goal = ideal.of_direction(model, 'stage1_block0', photo, 'noise')
  plain = np.full_like(photo, photo.mean((0, 1)))
  of = lambda picture: float(
    goal.aim(ideal._see(model, {goal.layer})(model.variables, pictures.to_floats(picture)[None]))[0]
  )
  assert of(photo) > of(plain)


@pytest.mark.slow
def test_the_judge_answers_by_class_name():
  model, other = tiny.built('resnet_test'), tiny.built('vgg_test')
  model = model._replace(class_names=tuple('abcde'))
  judge = other._replace(class_names=tuple('edcba'))
  assert ideal.judged_class(judge, model, 1) == 3
  found = made(model, [ideal.of_class(model, 'B')], judge=judge)[-1].figures['pictures']['b']
  assert 0 < found['judge_probability'] <= 1 and 1 <= found['judge_rank'] <= 5 and found['judge_says'] in 'abcde'
  assert found['judge_agrees'] == (found['judge_rank'] == 1)
  with pytest.raises(UsageError, match='the judge has no class'):
    ideal.judged_class(judge._replace(class_names=tuple('vwxyz')), model, 1)


@pytest.mark.parametrize('name, size, message', [('vit_test', 32, 'of 64 pixels only'), ('resnet_test', 8, 'below 32')])
def test_sizes_that_a_model_does_not_take(name, size, message):
  with pytest.raises(UsageError, match=message):
    check_size(tiny.built(name), size)


@pytest.mark.slow
def test_the_files_are_read_back_by_the_host_transform_unchanged():
  model = tiny.built('resnet_test')
  picture = next(iter(made(model, [ideal.of_class(model, 0)])[-1].pictures.values()))
  assert (host.evaluation(model.preprocess)(picture) == picture).all()
