"""Segmentation losses and their gradients against PyTorch and segmentation_models_pytorch, image by image."""

import functools

import jax
import numpy as np
import pytest
import reference

from tlx.tasks.segmentation import losses
from tlx.tasks.segmentation.losses import IGNORE

torch = pytest.importorskip('torch')
smp = reference.library('segmentation_models_pytorch.losses')
pytestmark = pytest.mark.parity

K = 5
RNG = np.random.default_rng(0)
LABELS = np.kron(RNG.integers(0, K, (2, 4, 4)), np.ones((4, 6), int))
LABELS[0][LABELS[0] == 3] = 1  # image 0 lacks class 3
LOGITS = (RNG.normal(size=(2, 16, 24, K)) + 2 * np.eye(K)[LABELS]).astype(np.float32)
LABELS[RNG.random(LABELS.shape) < 0.15] = IGNORE
WEIGHTS = (0.5, 2.0, 1.0, 0.25, 3.0)


def softmax_focal(logits, labels):
  from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits

  keep = labels != IGNORE
  return softmax_focal_loss_with_logits(logits.movedim(1, -1)[keep], labels[keep], gamma=1.5)


def weighted(logits, labels):
  """PyTorch's mean is over the weights, ours over the pixels."""
  weights = torch.tensor(WEIGHTS)
  loss = torch.nn.CrossEntropyLoss(weights, ignore_index=IGNORE, label_smoothing=0.1, reduction='sum')
  return loss(logits, labels) / (labels != IGNORE).sum()


def dice(logits, labels):
  """smp divides by all classes, ours by those that are present."""
  present = len(set(labels.unique().tolist()) - {IGNORE})
  return smp.DiceLoss('multiclass', ignore_index=IGNORE)(logits, labels) * K / present


def sigmoid_focal(**options):
  return smp.FocalLoss('multiclass', gamma=1.5, ignore_index=IGNORE, **options)


CASES = {
  'ce': (losses.cross_entropy, {}, torch.nn.CrossEntropyLoss(ignore_index=IGNORE)),
  'ce smoothed': (
    losses.cross_entropy,
    {'smoothing': 0.2},
    torch.nn.CrossEntropyLoss(ignore_index=IGNORE, label_smoothing=0.2),
  ),
  'ce weighted': (losses.cross_entropy, {'weights': WEIGHTS, 'smoothing': 0.1}, weighted),
  'dice': (losses.dice, {}, dice),
  'focal': (losses.focal, {'gamma': 1.5}, softmax_focal),
  'sigmoid_focal': (losses.sigmoid_focal, {'gamma': 1.5}, sigmoid_focal()),
  'lovasz': (losses.lovasz, {}, smp.LovaszLoss('multiclass', per_image=True, ignore_index=IGNORE)),
}


@pytest.mark.parametrize('case', CASES)
def test_values_and_gradients(case):
  function, options, reference = CASES[case]
  function, mask = functools.partial(function, **options), np.ones(2, bool)
  values = jax.jit(function)(LOGITS, LABELS, mask)
  gradient = jax.jit(jax.grad(lambda x: function(x, LABELS, mask).sum()))(LOGITS)
  # Lovasz: errors are counted in 4,096 buckets, which orders close ones otherwise.
  tolerance = {'rtol': 1e-4, 'atol': 1e-6} if case == 'lovasz' else {'rtol': 2e-5, 'atol': 1e-8}
  for i in range(2):
    logits = torch.from_numpy(LOGITS[i : i + 1].transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = reference(logits, torch.from_numpy(LABELS[i : i + 1]))
    expected.backward()
    theirs = logits.grad.numpy()[0].transpose(1, 2, 0)
    assert float(values[i]) == pytest.approx(expected.item(), rel=tolerance['rtol'])
    if case == 'lovasz':
      assert np.linalg.norm(gradient[i] - theirs) < 5e-3 * np.linalg.norm(theirs)
    else:
      np.testing.assert_allclose(gradient[i], theirs, **tolerance)


def test_class_weights_of_the_sigmoid_focal_loss():
  """smp divides by the sum of the weights, ours by the number of classes."""
  actual = jax.jit(functools.partial(losses.sigmoid_focal, weights=WEIGHTS, gamma=1.5))(
    LOGITS, LABELS, np.ones(2, bool)
  )
  for i in range(2):
    logits = torch.from_numpy(LOGITS[i : i + 1].transpose(0, 3, 1, 2).copy())
    expected = sigmoid_focal(class_weights=WEIGHTS)(logits, torch.from_numpy(LABELS[i : i + 1]))
    assert float(actual[i]) == pytest.approx(expected.item() * np.mean(WEIGHTS), rel=1e-5)
