"""Attacks against foolbox's (JAX backend): the same pixels without random starts, the same success with them.

foolbox's MI-FGSM sums the signs of the gradients, where Alg. 1 of the paper sums gradients of unit L1 length; here it
is given the paper's. The pixels are compared in float64, where a gradient near zero has the same sign in whatever order
it is summed; the success rates in float32. Images are crops of scikit-learn's photographs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images
from tiny import built

from tlx.explain.attack import Attack, perturb
from tlx.explain.outputs import LOGITS, look

foolbox = pytest.importorskip('foolbox')
pytestmark = pytest.mark.parity
SIDE, COUNT = 64, 120
EPSILONS = {'linf': 0.004, 'l2': 0.12}  # where random weights are fooled about every second time

LINF, L2 = 'LinfProjectedGradientDescentAttack', 'L2ProjectedGradientDescentAttack'
TEN = {'steps': 10, 'rel_stepsize': 0.2, 'random_start': False}

# foolbox's class, its arguments and ours
EXACT = {
  'fgsm': ('LinfFastGradientAttack', {}, Attack(steps=1)),
  'fgm': ('L2FastGradientAttack', {}, Attack('l2', steps=1)),
  'pgd': (LINF, TEN, Attack('linf', 10, 0.2)),
  'l2pgd': (L2, TEN, Attack('l2', 10, 0.2)),
  'mifgsm': ('LinfMomentumIterativeFastGradientMethod', TEN | {'momentum': 0.9}, Attack('linf', 10, 0.2, momentum=0.9)),
  'pgd targeted': (LINF, TEN, Attack('linf', 10, 0.2, targeted=True)),
  'l2pgd targeted': (L2, TEN, Attack('l2', 10, 0.2, targeted=True)),
}
RANDOM = {
  'pgd': ('LinfPGD', {'steps': 20, 'rel_stepsize': 0.1}, Attack('linf', 20, 0.1, random_start=True)),
  'l2pgd': ('L2PGD', {'steps': 20, 'rel_stepsize': 0.1}, Attack('l2', 20, 0.1, random_start=True)),
}


@pytest.fixture(scope='module')
def crops():
  """float64 [COUNT, SIDE, SIDE, 3] in [0, 1]."""
  rng, photos = np.random.default_rng(0), load_sample_images().images
  places = [(photos[i % 2], rng.integers(0, 427 - SIDE), rng.integers(0, 640 - SIDE)) for i in range(COUNT)]
  return np.stack([photo[y : y + SIDE, x : x + SIDE] for photo, y, x in places]) / 255


def both(name, crops, case, dtype, count=COUNT):
  """(pixels, success) of foolbox and of ours."""
  attack_name, arguments, attack = case
  model = built(name)
  variables = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), model.variables)
  seen, x = look(model), jnp.asarray(crops[:count], dtype)
  logits = jax.jit(lambda variables, x: seen(variables, x)[LOGITS])
  order = logits(variables, x).argsort(-1)
  labels, epsilon = order[:, -2] if attack.targeted else order[:, -1], EPSILONS[attack.norm]
  criterion = foolbox.criteria.TargetedMisclassification(labels) if attack.targeted else labels
  wrapped = foolbox.JAXModel(lambda x: logits(variables, x), bounds=(0, 1))
  method = getattr(foolbox.attacks, attack_name)(**arguments)
  if attack.momentum:
    unit = foolbox.attacks.gradient_descent_base.normalize_lp_norms
    method.normalize = lambda gradients, *, x, bounds: unit(gradients, p=1)
  theirs = method(wrapped, x, criterion, epsilons=epsilon)
  ours = perturb(seen, attack)(variables, x, labels, epsilon, jax.random.key(0), jnp.arange(count))
  return (np.asarray(theirs[1]), np.asarray(theirs[2])), (np.asarray(ours.pixels), np.asarray(ours.success))


@pytest.mark.parametrize('kind', EXACT)
def test_without_random_starts_the_pixels_are_the_same(crops, kind):
  with jax.enable_x64():
    (theirs, their_success), (ours, success) = both('resnet_test', crops, EXACT[kind], np.float64, count=24)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
  assert np.array_equal(success, their_success) and ours.dtype == np.float64


@pytest.mark.full
@pytest.mark.parametrize('name', ['resnet_test', 'vit_test'])
@pytest.mark.parametrize('kind', RANDOM)
def test_with_random_starts_as_many_are_fooled(crops, name, kind):
  (_, theirs), (_, ours) = both(name, crops, RANDOM[kind], np.float32)
  assert 0.02 < theirs.mean() < 0.98, 'an epsilon at which all or none are fooled compares nothing'
  assert abs(theirs.mean() - ours.mean()) <= 0.01
