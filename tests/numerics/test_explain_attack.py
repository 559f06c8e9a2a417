"""Attacks: within their ball to the last bit, the same whatever else is in the batch, and the smallest where asked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CLASSES, built, matrix, side

from tlx.explain.attack import Attack, descend_to, perturb, project, shrunk, sizes, smallest
from tlx.explain.objectives import log_probability
from tlx.explain.outputs import LOGITS, look
from tlx.explain.robustness import robustness
from tlx.types import Example, UsageError

KEY = jax.random.key(0)
PGD = Attack(steps=3, random_start=True)


@functools.cache
def model_of(name):
  return built(name)


def photos(count=3, pixels=32, seed=0):
  """With values at both ends of [0, 1] too."""
  x = np.random.default_rng(seed).uniform(-0.2, 1.2, (count, pixels, pixels, 3))
  return jnp.asarray(np.clip(x, 0, 1), jnp.float32)


def linear(variables, pixels):
  """A model whose decision borders are planes: exact answers are known."""
  return {LOGITS: pixels.reshape(len(pixels), -1) @ variables}


@pytest.fixture(scope='module')
def planes():
  """Two classes with a border through the middle of pixel space, and pixels that lie 0.5 to its first side."""
  normal = np.random.default_rng(1).normal(size=48)
  normal /= np.linalg.norm(normal)
  weights = np.stack([normal, -normal], 1) * 3
  x = 0.5 + 0.01 * np.random.default_rng(2).normal(size=(4, 48))
  x += (0.5 - x @ normal)[:, None] * normal
  return jnp.asarray(weights, jnp.float32), jnp.asarray(x, jnp.float32).reshape(4, 4, 4, 3), normal


def run(look, attack, variables, x, labels, epsilon, first=0):
  return perturb(look, attack)(variables, x, labels, epsilon, KEY, first + jnp.arange(len(x)))


FEW = ('efficientnet_test', 'vit_test')  # one with maps, one with tokens; the others take seconds each to compile
KINDS = ('beit_test', 'convnext_test', 'resnetv2_test', 'squeezenet_test', 'swin_test')
FAMILIES = matrix([*FEW, *KINDS], FEW)


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_attacked_within_the_ball(name):
  model = model_of(name)
  x, epsilon = photos(2, side(model.module)), np.float32(8 / 255)
  seen = jax.jit(look(model))
  labels = seen(model.variables, x)[LOGITS].argmax(-1)
  program = perturb(seen, Attack(steps=8, random_start=True))
  found = program(model.variables, x, labels, epsilon, KEY, jnp.arange(2))
  change = np.asarray(found.pixels, np.float64) - np.asarray(x, np.float64)
  assert 0.5 * epsilon < np.abs(change).max() <= epsilon  # in float64: no tolerance
  assert found.pixels.min() >= 0 and found.pixels.max() <= 1
  before, after = (log_probability(labels)(seen(model.variables, pixels)) for pixels in (x, found.pixels))
  assert (after < before).all()
  nothing = program(model.variables, x, labels, 0.0, KEY, jnp.arange(2))
  assert np.array_equal(nothing.pixels.view(jnp.int32), x.view(jnp.int32))  # bit for bit
  assert not nothing.success.any() and not nothing.steps.any()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('random_start', [False, True])
def test_no_rounding_steps_over_the_border(norm, random_start):
  model, x, far = model_of('resnet_test'), photos(8, 24, 3), photos(8, 24, 4)
  program = perturb(look(model), Attack(norm, steps=2, random_start=True))
  for epsilon in np.float32([1e-4, 1 / 255, 0.03, 0.7]):
    if random_start:
      y = program(model.variables, x, jnp.zeros(8, int), epsilon, KEY, jnp.arange(8)).pixels
    else:
      y = project(norm, far, x, jnp.full(8, epsilon))
    change = (np.asarray(y, np.float64) - np.asarray(x, np.float64)).reshape(8, -1)
    length = np.abs(change).max(1) if norm == 'linf' else np.sqrt((change**2).sum(1))
    assert (length <= epsilon).all()
    assert y.min() >= 0 and y.max() <= 1


def test_projection_on_the_sphere_is_the_nearest_point():
  x, far = jnp.full((2, 8, 8, 3), 0.5), 0.5 + jax.random.normal(KEY, (2, 8, 8, 3))
  change = np.asarray(far - x, np.float64).reshape(2, -1)
  expected = change * (0.3 / np.linalg.norm(change, axis=1, keepdims=True))
  found = np.asarray(project('l2', far, x, jnp.full(2, 0.3)) - x).reshape(2, -1)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  near = x + 0.001 * (far - x)
  np.testing.assert_allclose(project('l2', near, x, jnp.full(2, 0.3)), near, atol=1e-7)  # inside, nothing moves


def test_the_gradient_is_that_of_finite_differences():
  with jax.enable_x64():
    model = model_of('efficientnet_test')
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.variables)
    x, labels = jnp.asarray(np.asarray(photos(1)), jnp.float64), jnp.array([2])
    merit = jax.jit(lambda x: log_probability(labels)(look(model)(variables, x)).sum())
    along = jax.random.normal(KEY, x.shape, jnp.float64)
    along, h = along / jnp.sqrt((along**2).sum()), 1e-5
    slope = (jax.grad(merit)(x) * along).sum()
    assert slope.dtype == np.float64
    np.testing.assert_allclose((merit(x + h * along) - merit(x - h * along)) / (2 * h), slope, rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize('attack', [PGD, Attack('l2', 3, random_start=True, restarts=2, momentum=0.9)])
def test_neither_batch_nor_place_matters(attack):
  model = model_of('resnet_test')
  x, labels, share = photos(4), jnp.array([0, 1, 2, 3]), 4 / 255 if attack.norm == 'linf' else 0.5
  program = perturb(look(model), attack)
  whole = program(model.variables, x, labels, share, KEY, jnp.arange(4))
  again = program(model.variables, x, labels, share, KEY, jnp.arange(4))
  assert np.array_equal(whole.pixels, again.pixels)
  parts = [program(model.variables, x[i : i + 1], labels[i : i + 1], share, KEY, jnp.array([i])) for i in (3, 0)]
  for i, part in zip((3, 0), parts):
    # A gradient near zero may have another sign where it is summed in another order.
    assert (np.abs(part.pixels[0] - whole.pixels[i]) > 1e-5).mean() < 0.01
  other = program(model.variables, x, labels, share, jax.random.key(1), jnp.arange(4))
  assert not np.array_equal(whole.pixels, other.pixels)


def test_random_starts_fill_the_ball_evenly():
  x = jnp.full((256, 2, 2, 3), 0.5)
  still = lambda variables, pixels: {LOGITS: jnp.zeros((len(pixels), 2)) + 0 * pixels.sum()}  # no gradient, no step
  for norm in ('linf', 'l2'):
    y = run(still, Attack(norm, steps=1, random_start=True), None, x, jnp.zeros(256, int), 0.1).pixels
    change = np.asarray(y - x).reshape(256, -1) / 0.1
    assert np.abs(change.mean(0)).max() < 0.15
    if norm == 'linf':
      assert abs(change.var() - 1 / 3) < 0.02
    else:  # the radius of an even draw from a ball in 12 dimensions is u ** (1 / 12)
      assert abs((np.linalg.norm(change, axis=1) ** 12).mean() - 0.5) < 0.06


def test_fgsm_on_a_plane_goes_along_the_signs(planes):
  weights, x, normal = planes
  found = run(linear, Attack(steps=1), weights, x, jnp.zeros(4, int), 0.05)
  np.testing.assert_allclose(
    np.asarray(found.pixels - x).reshape(4, -1), np.tile(-0.05 * np.sign(normal), (4, 1)), atol=1e-6
  )
  found = run(linear, Attack('l2', steps=1), weights, x, jnp.zeros(4, int), 0.05)
  np.testing.assert_allclose(np.asarray(found.pixels - x).reshape(4, -1), np.tile(-0.05 * normal, (4, 1)), atol=1e-6)


@pytest.mark.slow
def test_success_begins_at_the_border(planes):
  weights, x, normal = planes  # 0.5 / sum |normal| is how far away the border lies in L-infinity
  border = 0.5 / np.abs(normal).sum()
  for share, success in ((0.99, False), (1.01, True)):
    for attack in (Attack(), Attack(momentum=0.9), Attack(stop=True), Attack(random_start=True, restarts=3, steps=40)):
      assert (run(linear, attack, weights, x, jnp.zeros(4, int), share * border).success == success).all()
    towards = run(linear, Attack(targeted=True), weights, x, jnp.ones(4, int), share * border)
    assert (towards.success == success).all()


def test_what_has_succeeded_stays_as_it_is(planes):
  weights, x, normal = planes
  epsilon = jnp.array([0.0, 1.2, 3, 20]) * 0.5 / np.abs(normal).sum()
  found = run(linear, Attack(steps=20, stop=True), weights, x, jnp.zeros(4, int), epsilon)
  assert found.success.tolist() == [False, True, True, True]
  assert found.steps[0] == 0 and 20 > found.steps[1] > found.steps[2] >= found.steps[3] >= 1
  assert (run(linear, Attack(steps=20), weights, x, jnp.zeros(4, int), epsilon).steps[1:] == 20).all()


@pytest.mark.slow
def test_restarts_keep_the_best():
  model = model_of('resnet_test')
  x, seen = photos(4), jax.jit(look(model))
  labels = seen(model.variables, x)[LOGITS].argmax(-1)
  merits = []
  for restarts in (1, 4):
    attack = Attack(steps=1, random_start=True, restarts=restarts)
    found = run(look(model), attack, model.variables, x, labels, 0.002)
    merits.append(np.asarray(-log_probability(labels)(seen(model.variables, found.pixels))))
  assert (merits[1] >= merits[0] - 1e-6).all() and (merits[1] > merits[0] + 1e-6).any()


def test_bisection_finds_the_border(planes):
  weights, x, _ = planes
  labels = jnp.ones(4, int)
  reached = descend_to(linear, steps=200, rate=0.05, targeted=True)(weights, x, labels)
  assert reached.success.all() and (reached.steps > 1).all()
  assert (sizes(x, reached.pixels)['l2'] > 0.5).all()
  scale = smallest(linear, targeted=True, halvings=20)(weights, x, reached.pixels, labels)
  least = shrunk(x, reached.pixels, scale)
  np.testing.assert_allclose(sizes(x, least)['l2'], 0.5, atol=1e-5)  # the distance of the plane
  for change, success in ((0, True), (-4e-6, False)):
    answers = linear(weights, shrunk(x, reached.pixels, scale + change))[LOGITS].argmax(-1)
    assert ((answers == labels) == success).all()


@pytest.mark.slow
def test_bisection_of_a_network_is_minimal_along_its_line():
  model = model_of('efficientnet_test')
  seen, x = jax.jit(look(model)), photos(4)
  logits = seen(model.variables, x)[LOGITS]
  labels = logits.argsort(-1)[:, -2]  # the second likeliest
  reached = descend_to(look(model), steps=1500, rate=10, targeted=True)(model.variables, x, labels)
  assert reached.success.all()
  scale = smallest(look(model), targeted=True)(model.variables, x, reached.pixels, labels)
  called = lambda scale: seen(model.variables, shrunk(x, reached.pixels, scale))[LOGITS].argmax(-1) == labels
  assert (scale < 1).any() and called(scale).all() and not called(scale - 2.0**-10).any()


def test_wrong_attacks_say_all_that_is_wrong():
  with pytest.raises(UsageError) as error:
    Attack('l1', steps=0, momentum=-1, restarts=2)
  assert [line.split()[1] for line in str(error.value).splitlines()] == ['norm', 'steps', 'momentum', 'restarts']


class Pictures:
  """A split of random pictures; the one at 2 cannot be read."""

  def __init__(self, count):
    rng = np.random.default_rng(5)
    self.images = rng.integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    self.labels = rng.integers(0, CLASSES, count).astype(np.int32)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    return Example(b'no image' if index == 2 else self.images[index], int(self.labels[index]), str(index))


def test_the_curve_counts_every_image_once_and_never_turns():
  model, source = model_of('resnet_test'), Pictures(11)
  sizes = {'big': 0.1, '0': 0.0, '2/255': 2 / 255, '0.2/255': 0.2 / 255}
  walks = [list(robustness(model, source, sizes, Attack(steps=5, stop=True), batch_size=size)) for size in (4, 11)]
  one, other = (walk[-1] for walk in walks)
  assert one.figures['count'] == 10 and one.figures['left_out'] == 1 and one.done == one.total == 11 * 5
  assert [walk.done for walk in walks[0]] == sorted(walk.done for walk in walks[0])
  assert one.figures == other.figures  # whatever the batch
  curve = one.figures['curve']
  assert [point['epsilon'] for point in curve] == ['0', '0.2/255', '2/255', 'big']
  assert curve[0]['accuracy'] == one.figures['accuracy'] and curve[0]['changed'] == 0
  changed = [point['changed'] for point in curve]
  assert changed == sorted(changed) and changed[-1] == 1 and curve[-1]['accuracy'] == 0
  assert one.pictures['robustness'].shape[2] == 3
  # stopped after the second size, it has the points of both
  early = next(found for found in walks[0] if len(found.figures['curve']) == 2)
  assert early.figures['curve'] == curve[:2] and 'robustness' in early.pictures
