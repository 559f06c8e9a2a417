"""Losses of semantic segmentation: pure functions that return one float32 value per image.

All of them take logits float [b, h, w, k], labels int [b, h, w] with class ids in [0, k) or IGNORE, and mask bool [b],
False = padding. Pixels that are ignored or belong to padding do not count, even if their logits are NaN, and their
gradient is 0. An image without labelled pixels has the loss 0.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import optax

from tlx.data.masks import IGNORE
from tlx.types import UsageError

FOCAL_GAMMA = 2.0  # Lin et al. 2017, Sec. 4.1
BUCKETS = 4096  # number of intervals of errors in [0, 1], see `lovasz`


def labelled(labels, mask):
  """Counts the labelled pixels of each image.

  Args:
    labels: int [b, h, w].
    mask: bool [b], False = padding.

  Returns:
    float32 [b]; 0 for padding.
  """
  return _counts(labels, mask).sum(axis=(1, 2), dtype=jnp.float32)


def cross_entropy(logits, labels, mask, weights=None, smoothing=0.0):
  """Mean over the image's labelled pixels of -sum_c t_c w_c log p_c, where t is the smoothed one-hot label.

  PyTorch's `CrossEntropyLoss(weight, ignore_index, label_smoothing)` has the same sum. Its mean divides by the sum of
  the pixels' weights. This one divides by their number, so that the gradient does not depend on how a batch is split.

  Args:
    logits: float [b, h, w, k].
    labels: int [b, h, w], class ids or IGNORE.
    mask: bool [b], False = padding.
    weights: float [k], one per class; None = 1 for all.
    smoothing: share of each label that is spread evenly over all classes, in [0, 1].

  Returns:
    float32 [b].
  """
  logits, targets, counts = _prepare(logits, labels, mask)
  if weights is None and not smoothing:  # on a CPU it takes two thirds of the time of the general form
    places = jnp.where(counts, labels, 0).astype(jnp.int32)
    return _mean_over_pixels(optax.softmax_cross_entropy_with_integer_labels(logits, places), counts)
  targets = optax.smooth_labels(targets, smoothing)
  targets = targets if weights is None else targets * jnp.asarray(weights, jnp.float32)
  return _mean_over_pixels(optax.softmax_cross_entropy(logits, targets), counts)


def focal(logits, labels, mask, weights=None, gamma=FOCAL_GAMMA):
  """Softmax focal loss: mean over the labelled pixels of -w_y (1 - p_y)^gamma log p_y, y being the pixel's class.

  It is the form of Lin et al. 2017 (https://arxiv.org/abs/1708.02002) for classes that exclude each other.
  `sigmoid_focal` is the paper's own form.

  Args:
    logits: float [b, h, w, k].
    labels: int [b, h, w], class ids or IGNORE.
    mask: bool [b], False = padding.
    weights: float [k], one per class; None = 1 for all.
    gamma: exponent, 0 or more; 0 gives the cross-entropy.

  Returns:
    float32 [b].
  """
  logits, targets, counts = _prepare(logits, labels, mask)
  log_p = (jax.nn.log_softmax(logits) * targets).sum(axis=-1)
  miss = -jnp.expm1(log_p)  # 1 - p, without the cancellation where p is near one
  # At miss = 0 the power's derivative is infinite for gamma < 1, and its product with log p = 0 is NaN.
  losses = -jnp.where(miss > 0, jnp.where(miss > 0, miss, 1) ** gamma, 0) * log_p
  losses = losses if weights is None else losses * (targets * jnp.asarray(weights, jnp.float32)).sum(axis=-1)
  return _mean_over_pixels(losses, counts)


def sigmoid_focal(logits, labels, mask, weights=None, gamma=FOCAL_GAMMA):
  """One-versus-rest focal loss (https://arxiv.org/abs/1708.02002): mean over the classes and the labelled pixels.

  It equals `FocalLoss('multiclass')` of segmentation_models_pytorch. On a CPU it takes ten times as long as `focal`.

  Args:
    logits: float [b, h, w, k].
    labels: int [b, h, w], class ids or IGNORE.
    mask: bool [b], False = padding.
    weights: float [k], factors of the classes' terms; None = 1 for all.
    gamma: exponent, 0 or more.

  Returns:
    float32 [b].
  """
  logits, targets, counts = _prepare(logits, labels, mask)
  losses = optax.losses.sigmoid_focal_loss(logits, targets, gamma=gamma)
  losses = losses if weights is None else losses * jnp.asarray(weights, jnp.float32)
  return _mean_over_pixels(losses.mean(axis=-1), counts)


def dice(logits, labels, mask):
  """Soft dice loss of the softmax (Milletari et al. 2016, https://arxiv.org/abs/1606.04797), in [0, 1].

  It is 1 - 2 sum(p t) / (sum(p) + sum(t)) over the labelled pixels, averaged over the classes that are present in the
  image. Absent classes do not count: their intersection is 0 for any prediction, and pixels wrongly predicted as them
  are missing from a present class. segmentation_models_pytorch's `DiceLoss` sums over the batch and divides by the
  number of all classes, where absent ones add 0: for one image it gives present / k times this value.

  Args:
    logits: float [b, h, w, k].
    labels: int [b, h, w], class ids or IGNORE.
    mask: bool [b], False = padding.

  Returns:
    float32 [b].
  """
  probabilities, targets, _ = _probabilities(logits, labels, mask)  # optax.losses.dice_loss cannot leave out pixels
  both, truth, found = (x.sum(axis=(1, 2)) for x in (probabilities * targets, targets, probabilities))
  present = truth > 0
  return _mean_over_classes(1 - 2 * both / jnp.where(present, truth + found, 1), present)


def lovasz(logits, labels, mask):
  """Lovasz-softmax loss, in [0, 1]: the convex surrogate of 1 - IoU, averaged over the classes that are present.

  Berman et al. 2018, https://arxiv.org/abs/1705.08790, Sec. 3.1 with 'per image' and 'present classes'. Instead of
  sorting the pixels by error, it counts them in BUCKETS intervals of equal width. On a CPU this takes 0.25 instead of
  2.8 s for 8 x 240 x 320 x 11, and the value differs by less than 1 / BUCKETS.

  Args:
    logits: float [b, h, w, k].
    labels: int [b, h, w], class ids or IGNORE.
    mask: bool [b], False = padding.

  Returns:
    float32 [b].
  """
  probabilities, targets, counts = _probabilities(logits, labels, mask)
  errors = jnp.abs(targets - probabilities)
  errors, targets, counts = (x.reshape(len(x), -1, *x.shape[3:]) for x in (errors, targets, counts))
  # vmap instead of flat ids, so that each device counts only its own images.
  losses = jax.vmap(jax.vmap(_lovasz_extension, (1, 1, None)))(errors, targets, counts)
  return _mean_over_classes(losses, targets.any(axis=1))


def _lovasz_extension(errors, truth, counts):
  """The loss of one class of one image, float32 [] (Alg. 1 of the paper); errors in [0, 1], truth 0 or 1, [n] each."""
  bucket = ((1 - jax.lax.stop_gradient(errors)) * BUCKETS).astype(jnp.int32).clip(0, BUCKETS - 1)  # largest error first
  place = bucket + BUCKETS * truth.astype(jnp.int32)
  found = jax.ops.segment_sum(counts.astype(jnp.int32), place, 2 * BUCKETS).reshape(2, BUCKETS)
  after = found.cumsum(axis=1)
  before = after - found
  # After F of the class's G pixels and N others, 1 - IoU is 1 - (G - F) / (G + N). A bucket's pixels share its step:
  # the mean of two orders, the class first or last, is a subgradient of the loss with errors rounded to buckets.
  total = after[1, -1]
  union_before, union_after = (jnp.maximum(total + n[0], 1).astype(jnp.float32) for n in (before, after))
  left = total - (before[1] + after[1]) / 2
  share = jnp.concatenate([left / union_before / union_after, (1 / union_before + 1 / union_after) / 2])
  return jnp.where(counts, errors * share[place], 0).sum()


TERMS = {'ce': cross_entropy, 'dice': dice, 'focal': focal, 'lovasz': lovasz, 'sigmoid_focal': sigmoid_focal}
OPTIONS = {  # {field of Loss: {term: its argument}}
  'class_weights': {'ce': 'weights', 'focal': 'weights', 'sigmoid_focal': 'weights'},
  'label_smoothing': {'ce': 'smoothing'},
  'focal_gamma': {'focal': 'gamma', 'sigmoid_focal': 'gamma'},
}


@dataclasses.dataclass(frozen=True)
class Loss:
  """A weighted sum of losses. It is hashable, so that it can be a static argument of jit. `parse` makes one from text.

  OPTIONS names the terms that each option applies to.

  Raises:
    UsageError: for a name that is not in TERMS, and an option out of range or without effect; one line for each.
  """

  terms: tuple[tuple[float, str], ...] = ((1.0, 'ce'),)  # (weight, name)
  class_weights: tuple[float, ...] | None = None  # one per class
  label_smoothing: float = 0.0
  focal_gamma: float = FOCAL_GAMMA

  def __post_init__(self):
    if self.class_weights is not None:  # a list, as JSON gives it, is not hashable
      object.__setattr__(self, 'class_weights', tuple(float(weight) for weight in self.class_weights))
    if problems := self._problems():
      raise UsageError('\n'.join(f'segmentation loss: {problem}' for problem in problems))

  def __call__(self, logits, labels, mask):
    """The loss of each image, float32 [b]. The arguments are those of the functions in this file."""
    return sum(weight * TERMS[name](logits, labels, mask, **self._options(name)) for weight, name in self.terms)

  def _options(self, name: str) -> dict:
    return {arguments[name]: getattr(self, field) for field, arguments in OPTIONS.items() if name in arguments}

  def _problems(self) -> list[str]:
    names, weights, known = [name for _, name in self.terms], self.class_weights, ', '.join(TERMS)
    problems = [f'there is no {name!r}; there are {known}' for name in names if name not in TERMS]
    problems += [
      f'the weight of {name!r} is {weight}; give a finite number above 0'
      for weight, name in self.terms
      if not 0 < weight < math.inf
    ]
    problems += [
      f'{field} has no effect without one of {", ".join(OPTIONS[field])}'
      for field in ('class_weights', 'label_smoothing')
      if getattr(self, field) and not set(names) & set(OPTIONS[field])
    ]
    checks = (
      (f'it has no term; give one or a sum of {known}', not names),
      (f'class_weights is {weights}; give finite numbers >= 0', not all(0 <= w < math.inf for w in weights or ())),
      (f'label_smoothing is {self.label_smoothing}; give a number from 0 to 1', not 0 <= self.label_smoothing <= 1),
      (f'focal_gamma is {self.focal_gamma}; give a finite number >= 0', not 0 <= self.focal_gamma < math.inf),
    )
    return problems + [problem for problem, wrong in checks if wrong]


def parse(text: str, **options) -> Loss:
  """Makes a loss from a text.

  Args:
    text: a sum of terms NAME or NUMBER*NAME, such as 'ce' or '0.5*ce+0.5*lovasz'.
    options: other fields of Loss.

  Returns:
    The loss.

  Raises:
    UsageError: for a term that cannot be read, and as Loss does.

  Examples:
    >>> parse('0.5*ce + dice').terms
    ((0.5, 'ce'), (1.0, 'dice'))
  """
  # The plus in '1e+2*ce' does not separate terms.
  words = [word.strip() for word in re.split(r'(?<![0-9.][eE])\+', text)]
  return Loss(tuple(_term(word, text) for word in words), **options)


def _term(word: str, text: str) -> tuple[float, str]:
  weight, star, name = word.rpartition('*')
  try:
    return (float(weight) if star else 1.0), name.strip()
  except ValueError:
    message = f"segmentation loss: cannot read {word!r} of {text!r}; next: NAME or NUMBER*NAME, such as '0.5*ce+dice'"
    raise UsageError(message) from None


def _counts(labels, mask):
  """The pixels that count, bool [b, h, w]."""
  return (labels != IGNORE) & mask.astype(bool)[:, None, None]


def _prepare(logits, labels, mask):
  """(logits float32, one-hot targets float32 [b, h, w, k], both 0 at other pixels; what counts, bool [b, h, w])."""
  counts = _counts(labels, mask)
  logits = jnp.where(counts[..., None], logits, 0).astype(jnp.float32)  # else 0 x NaN would reach the gradient
  return logits, jax.nn.one_hot(jnp.where(counts, labels, -1), logits.shape[-1], dtype=jnp.float32), counts


def _probabilities(logits, labels, mask):
  """`_prepare` with probabilities instead of logits."""
  logits, targets, counts = _prepare(logits, labels, mask)
  return jnp.where(counts[..., None], jax.nn.softmax(logits), 0), targets, counts


def _mean_over_pixels(losses, counts):
  """[b, h, w] -> [b]; 0 for an image in which no pixel counts."""
  total = jnp.where(counts, losses, 0).sum(axis=(1, 2))
  return total / jnp.maximum(counts.sum(axis=(1, 2)), 1)


def _mean_over_classes(losses, present):
  """[b, k] -> [b], the mean over present classes; 0 if there are none."""
  return jnp.where(present, losses, 0).sum(axis=-1) / jnp.maximum(present.sum(axis=-1), 1)
