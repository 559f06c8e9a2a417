"""Where models look: over every family, and against gradients, finite differences and sums taken another way."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NAMES, built, matrix

from tlx.data import transforms
from tlx.explain import objectives, outputs, pictures
from tlx.explain.attribution import gradcam, gradcam_layer, integrated_gradients
from tlx.explain.deletion import _ranks, areas, blurred, deletion
from tlx.explain.exciting import Best, exciting
from tlx.explain.features import feature_maps
from tlx.explain.gradcam import fine, overlays, where
from tlx.types import Example, TlxError, UsageError


def pixels(model, count=2, seed=0):
  size = model.preprocess.size
  return np.random.default_rng(seed).random((count, size, size, 3), np.float32)


class Photos:
  """Random pictures; those at `broken` cannot be read."""

  def __init__(self, count, broken=()):
    self.labels, self.broken = np.arange(count, dtype=np.int32) % 2, broken

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    image = np.random.default_rng(index).integers(0, 256, (40, 48, 3), np.uint8)
    return Example(b'no picture' if index in self.broken else image, int(self.labels[index]), f'photo{index}')


# By default one of each kind: a map, a class token, none, registers, an attention pool, a head that sees the map.
KINDS = ('resnet_test', 'vit_test', 'beit_test', 'dinov2_reg_test', 'siglip_test', 'squeezenet_test')
FAMILIES = matrix(NAMES, KINDS)


@pytest.mark.parametrize('name', FAMILIES)
def test_the_layer_is_the_last_map_that_the_logits_depend_on(name):
  model = built(name)
  chosen, names = gradcam_layer(model), model.module.backbone.names
  later = names[names.index(chosen) + 1 :]

  @jax.jit
  def found(variables, images):
    features, to_map = outputs.look(model)(variables, images), lambda x: outputs.as_map(model.module, x)
    sizes = lambda layer: lambda x: jnp.square(outputs.rest(model, layer)(variables, x)).sum()
    slopes = {layer: to_map(jax.grad(sizes(layer))(features[layer])) for layer in later}
    return gradcam(model, chosen)(variables, images, jnp.array([1, 3])), to_map(features[chosen]), slopes

  heat, values, slopes = found(model.variables, pixels(model))
  assert heat.shape == values.shape[:3] and heat.shape[1] > 1 and (heat >= 0).all() and jnp.isfinite(heat).all()
  assert all(slope.shape[1:3] == (1, 1) or not slope.any() for slope in slopes.values())


def test_a_class_token_is_looked_past_and_an_average_is_not():
  assert gradcam_layer(built('vit_test')) == 'block0'  # of two blocks and a norm, whose patches the head does not see
  model = built('resnet_test')
  assert gradcam_layer(model) == model.module.backbone.names[-1]


def test_layers_without_a_map_are_refused():
  model = built('siglip_test')
  with pytest.raises(UsageError, match=r"'pool' returns one vector"):
    gradcam_layer(model, 'pool')
  with pytest.raises(UsageError, match=r"no layer 'nrom': did you mean norm"):
    gradcam_layer(model, 'nrom')
  assert feature_maps(model, pictures.to_bytes(pixels(model)[0])).figures['layers']['pool']['shape'] == (1, 1, 8)


def test_gradcam_is_its_two_equations_in_float64():
  """Weights by central differences of the logit along each channel, over all places at once."""
  with jax.enable_x64(True):
    model = built('resnet_test')
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model.variables)
    images, layer = jnp.asarray(pixels(model), jnp.float64), 'stage2_block0'
    values, of = jax.jit(outputs.look(model))(variables, images)[layer], jnp.array([1, 4])
    heat = jax.jit(gradcam(model, layer))(variables, images, of)
    assert values.dtype == jnp.float64
    logit = jax.jit(lambda x: objectives.of_class(outputs.rest(model, layer)(variables, x), of))
    weights = np.zeros((2, values.shape[-1]))
    for channel in range(values.shape[-1]):
      step = jnp.zeros(values.shape[-1]).at[channel].set(1e-4)
      weights[:, channel] = (logit(values + step) - logit(values - step)) / 2e-4 / values[0, ..., 0].size
    expected = np.maximum(np.einsum('bhwd,bd->bhw', values, weights), 0)
    scale = np.abs(expected).max()
    assert scale > 0 and np.abs(heat - expected).max() < 2e-4 * scale  # logits are float32 behind a float64 backbone


@pytest.mark.parametrize(
  ('name', 'score'),
  [('resnet_test', objectives.log_probability), ('vit_test', objectives.logit)],
)
def test_integrated_gradients_are_complete(name, score):
  """What they add up to is the score less the baseline's, the nearer the finer the steps."""
  model = built(name)
  images, of = jnp.asarray(pixels(model)), jnp.array([0, 2])
  value = jax.jit(lambda images: score(of)(outputs.look(model)(model.variables, images)))
  gain = value(images) - value(jnp.full_like(images, 0.25))
  errors = []
  for steps in (2, 128):
    parts = jax.jit(integrated_gradients(model, steps, score, baseline=0.25))(model.variables, images, of)
    errors.append(np.abs(parts.sum((1, 2, 3)) - gain).max())
  assert parts.shape == images.shape and errors[1] < 0.02 * np.abs(gain).max()
  assert errors[1] < errors[0]


def test_integrated_gradients_of_a_line_are_its_terms():
  model = built('resnet_test')
  slope = np.random.default_rng(0).normal(size=model.preprocess.size * model.preprocess.size * 3)
  line = lambda classes: lambda seen: seen['pixels'].reshape(len(seen['pixels']), -1) @ slope
  images = jnp.asarray(pixels(model))
  parts = integrated_gradients(model, 64, line)(model.variables, images, jnp.zeros(2, int))
  np.testing.assert_allclose(parts, images * slope.reshape(images.shape[1:]), rtol=1e-4, atol=1e-5)


def test_figures_and_pictures_of_a_photograph():
  model = built('vit_test')
  picture = pictures.to_bytes(pixels(model)[0])
  found = where(model, picture, steps=128)
  logits = jax.jit(outputs.look(model))(model.variables, pictures.to_floats(picture)[None])['logits'][0]
  assert found.figures['index'] == int(logits.argmax()) and found.figures['class'] == f'class {logits.argmax()}'
  assert found.figures['probability'] == pytest.approx(float(jax.nn.softmax(logits).max()), rel=1e-4)
  assert found.figures['completeness'] < 0.05
  assert found.pictures['gradcam'].shape[1] > 3 * model.preprocess.size


def test_batches_of_overlays_do_not_depend_on_their_size():
  model = built('resnet_test')
  images, of = list(pictures.to_bytes(pixels(model, 5))), np.arange(5)
  one, many = (list(overlays(model, images, of, batch_size=size)) for size in (1, 4))
  assert len(many) == 5 and many[0].shape == images[0].shape
  assert max(np.abs(a.astype(int) - b).max() for a, b in zip(one, many)) <= 1


def test_single_pixels_that_outshine_all_are_cut():
  parts = np.ones((20, 20))
  parts[0, 0], parts[1, 1] = 1000, -5
  assert fine(parts).max() < 20 and fine(parts)[1, 1] == 0


@pytest.mark.slow
def test_deletion_begins_whole_ends_at_the_fill_and_is_the_same_again():
  model = built('resnet_test')
  source = Photos(5, broken=(2,))
  run = lambda size: list(deletion(model, source, cells=4, points=8, steps=4, batch_size=size))[-1].figures
  found, again = run(2), run(5)
  assert found['photographs'] == 4 and len(found['curves']['random']) == 9
  images = np.stack([transforms.evaluation(model.preprocess)(source[i].image) for i in (0, 1, 3, 4)])
  look = jax.jit(outputs.look(model))
  rows = [look(model.variables, x)['logits'] for x in (images / 255.0, blurred(images / 255.0))]
  of = rows[0].argmax(-1)
  start, end = (float(jax.nn.softmax(row)[np.arange(4), of].mean()) for row in rows)
  for name, curve in found['curves'].items():
    assert curve[0] == pytest.approx(start, abs=1e-4) and curve[-1] == pytest.approx(end, abs=1e-4)
    np.testing.assert_allclose(curve, again['curves'][name], atol=1e-4)  # the order of batches is not in it
  assert found['gradcam_over_random'] == pytest.approx(found['area_gradcam'] / found['area_random'])


def test_deletion_takes_the_hottest_first_and_ties_at_random():
  values = jnp.array([[[[0.0, 3.0], [0.0, 1.0]]]])
  ranks = np.asarray(_ranks(values, jnp.array([[[0.9, 0.1], [0.2, 0.5]]])))[0, 0]
  assert ranks.tolist() == [[3, 0], [2, 1]]
  assert areas(np.array([1.0, 0.5, 0.0])) == 0.5 and areas(np.ones(4)) == pytest.approx(1)


def test_blur_keeps_a_flat_colour_and_the_mean_of_noise_alone():
  flat = jnp.full((1, 40, 40, 3), 0.3)
  np.testing.assert_allclose(blurred(flat), flat, atol=1e-5)
  noise = jnp.asarray(np.random.default_rng(0).random((1, 40, 40, 3)))
  assert blurred(noise).std() < 0.3 * noise.std()


@pytest.mark.parametrize('sizes', [(1,) * 12, (5, 5, 2), (12,)])
def test_the_running_best_are_the_best_of_all(sizes):
  peaks = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
  peaks[:, 5] = 2  # alike for all photographs
  best, first = Best.none(6), 0
  for size in sizes:
    best = best.merge(peaks[first : first + size], np.arange(first, first + size), 3)
    first += size
  order = np.argsort(-peaks, axis=0, kind='stable')[:3]
  np.testing.assert_array_equal(best.indices, order)
  np.testing.assert_array_equal(best.values, np.take_along_axis(peaks, order, 0))
  expected = (best.values.mean(0) - peaks.mean(0))[:5] / peaks.std(0)[:5]
  np.testing.assert_allclose(best.selectivity[:5], expected, rtol=1e-4)
  assert best.selectivity[5] == 0


def test_exciting_photographs():
  model, source = built('vit_test'), Photos(7, broken=(3,))
  layer = model.module.backbone.names[1]
  found = list(exciting(model, source, ('even', 'odd'), layer, most=2, photographs=3, batch_size=3))
  rows, drawn = found[-1].figures['channels'], found[-1].pictures[layer]()
  assert [one.done for one in found] == [3, 5, 6] and len(rows) == 2 and drawn.shape[1] > 4 * 112
  transform = transforms.evaluation(model.preprocess)
  photos = {i: transform(source[i].image) for i in range(7) if i != 3}
  maps = jax.jit(lambda x: outputs.as_map(model.module, outputs.look(model)(model.variables, x[None] / 255.0)[layer]))
  peaks = {i: np.asarray(maps(x)).max((0, 1, 2)) for i, x in photos.items()}
  for row in rows:
    best = sorted(peaks, key=lambda i, c=row['channel']: -peaks[i][c])[:3]
    assert row['indices'] == best and row['names'] == [f'photo{i}' for i in best]
    assert row['labels'] == [('even', 'odd')[i % 2] for i in best]
  with pytest.raises(UsageError, match=r'--channel 99 is out of range'):
    next(exciting(model, source, ('even', 'odd'), layer, 99))


def test_nothing_to_read_and_no_classes_are_said():
  model = built('resnet_test')
  for work in (deletion(model, Photos(1, (0,))), exciting(model, Photos(1, (0,)), 'ab', 'stem')):
    with pytest.raises(TlxError, match='none of the photographs'):
      list(work)
  headless = model._replace(module=SimpleNamespace(head=SimpleNamespace(num_classes=0)))
  with pytest.raises(UsageError, match='no head'):
    where(headless, np.zeros((4, 4, 3), np.uint8))
