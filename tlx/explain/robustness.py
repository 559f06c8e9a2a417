"""Accuracy of a model under attack, as a curve over the allowed size of the change."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tlx.data import pipeline, transforms
from tlx.data.augment import to_float
from tlx.data.split import Subset
from tlx.explain import pictures
from tlx.explain.attack import Attack, perturb
from tlx.explain.outputs import LOGITS, Explanation, check_head, look
from tlx.types import Batch, DataSource, Pretrained, UsageError

# norm -> (factor from epsilon to the x axis, label of the x axis)
UNITS = {'linf': (255, 'epsilon, of 255 levels (L-infinity)'), 'l2': (1, 'epsilon (L2, pixels in [0, 1])')}


def robustness(
  model: Pretrained,
  source: DataSource,
  epsilons: Mapping[str, float],
  attack: Attack,
  *,
  batch_size: int = 32,
  seed: int = 0,
) -> Iterator[Explanation]:
  """Attacks every image of a source, away from the model's own answer, at each epsilon in ascending order.

  `changed` is the share of answers that the attack changes. `accuracy` is the share of images that are answered
  correctly and whose answer stays. A larger ball contains the smaller ones, so an image that changed at one epsilon
  counts as changed at all larger ones and is not attacked again: both curves are monotonic.

  Args:
    model: with a head.
    source: the images.
    epsilons: name -> size, see `attack`.
    attack: an untargeted attack that stops at success.
    batch_size: images per step. Padding is masked; images that cannot be read are left out and counted.
    seed: of the random starts.

  Yields:
    The curve so far, after each batch. It gains one point with each epsilon.

  Raises:
    UsageError: if the model or the data set has no class per image.
  """
  check_head(model)
  if source.labels is None:
    raise UsageError('the data set has no single class per image, so no answer is right or wrong; choose another')
  seen, program, key = look(model), perturb(look(model), attack), jax.random.key(seed)
  answer = jax.jit(lambda variables, images: seen(variables, to_float(images))[LOGITS].argmax(-1))
  survives = jax.jit(
    lambda variables, images, labels, epsilons, numbers: (
      ~program(variables, to_float(images), labels, epsilons, key, numbers).success
    )
  )
  answers = np.full(len(source), -1, np.int32)
  total, done = len(source) * (1 + len(epsilons)), 0
  for batch, numbers in _batches(model, source, np.arange(len(source)), batch_size):
    kept, done = batch['mask'], done + int((numbers >= 0).sum())
    answers[numbers[kept]] = np.asarray(answer(model.variables, batch['image']))[kept]
    yield _found(_clean(answers, source, done, attack), [], attack.norm, done, total)
  figures, read, right = _clean(answers, source, done, attack), np.flatnonzero(answers >= 0), answers == source.labels
  points, alive = [], read
  for name, epsilon in sorted(epsilons.items(), key=lambda item: item[1]):
    kept = []
    for batch, numbers in _batches(model, source, alive, batch_size):
      reach = np.where(batch['mask'], epsilon, 0).astype(np.float32)
      stands = np.asarray(survives(model.variables, batch['image'], answers[numbers], reach, numbers))
      kept, done = [*kept, numbers[stands & batch['mask']]], done + int(batch['mask'].sum())
      yield _found(figures, points, attack.norm, done, total)
    done += len(source) - len(alive)
    alive = np.concatenate(kept) if kept else alive
    share = lambda some: float(some) / max(1, len(read))
    point = {'epsilon': name, 'size': epsilon, 'accuracy': share(right[alive].sum())}
    points = [*points, {**point, 'changed': share(len(read) - len(alive))}]
    yield _found(figures, points, attack.norm, done, total)


def _batches(model: Pretrained, source: DataSource, chosen: np.ndarray, size: int) -> Iterator[tuple[Batch, Any]]:
  """Batches of the chosen positions of a source, with these positions int [b]; -1 marks padding."""
  part, transform = Subset(source, chosen), transforms.evaluation(model.preprocess)
  for batch in pipeline.eval_batches(part, batch_size=size, transform=transform) if len(chosen) else ():
    yield batch, np.where(batch['index'] >= 0, chosen[batch['index']], -1)


def _clean(answers: np.ndarray, source: DataSource, done: int, attack: Attack) -> dict[str, Any]:
  """Figures without an attack. An answer of -1 means an image that cannot be read."""
  read = answers >= 0
  return {
    'accuracy': float((answers == source.labels)[read].mean()) if read.any() else 0.0,
    'count': int(read.sum()),
    'left_out': done - int(read.sum()),
    **{name: getattr(attack, name) for name in ('norm', 'steps', 'restarts', 'momentum')},
  }


def _found(figures: Mapping[str, Any], points: list, norm: str, done: int, total: int) -> Explanation:
  shown = {'robustness': _curve(figures, points, norm)} if points else {}
  return Explanation({**figures, 'curve': points}, shown, done=done, total=total)


def _curve(figures: Mapping[str, Any], points: list, norm: str) -> np.ndarray:
  scale, unit = UNITS[norm]
  xs = [scale * point['size'] for point in points]
  lines = {'accuracy under attack': 'accuracy', 'answers changed': 'changed'}
  lines = {text: (xs, [point[name] for point in points]) for text, name in lines.items()}
  title = f'share of {figures["count"]:,} images; steps {figures["steps"]}, restarts {figures["restarts"]}'
  return pictures.chart(lines, unit, title, within=(0, 1))
