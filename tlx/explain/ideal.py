"""Ideal pictures: activation maximisation, which begins from noise, with regularisation that keeps the result legible.

The objective is maximised by gradient ascent with a total variation penalty. Jitter, scale and rotation, and the
Fourier coefficients of decorrelated colours follow Olah et al. 2017 (https://distill.pub/2017/feature-visualization).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlx.explain import objectives, pictures
from tlx.explain.descend import descend
from tlx.explain.fourier import PARAMETRISATIONS, Parametrisation
from tlx.explain.outputs import LOGITS, PIXELS, Explanation, Seen, check_layer, class_index, class_name, look, shapes
from tlx.explain.transforms import USUAL, Transforms, transformed
from tlx.types import Pretrained, UsageError


class Goal(NamedTuple):
  """What one picture shall maximise."""

  name: str
  layer: str  # the layer that `aim` reads; the standard deviation of its output is the unit of the aim
  aim: objectives.Objective
  index: int | None = None  # the class, if the aim is a class


def of_class(model: Pretrained, name: str | int) -> Goal:
  """The logit of a class, by name or number. Raises UsageError for an unknown class."""
  index = class_index(model, name)
  return Goal(class_name(model, index), LOGITS, objectives.logit(index), index)


def of_channel(model: Pretrained, layer: str, number: int) -> Goal:
  """The mean of one channel of a layer. Raises UsageError for an unknown layer or channel."""
  width = shapes(model)[check_layer(model.module, layer)].shape[-1]
  if not 0 <= number < width:
    raise UsageError(f'channel {number} is out of range: {layer} has 0 to {width - 1}')
  return Goal(f'{layer} channel {number}', layer, objectives.channel(layer, number))


def of_direction(model: Pretrained, layer: str, picture: np.ndarray, name: str) -> Goal:
  """The direction from a plain picture to an image in a layer's features; the plain one has the image's mean colour.

  Args:
    model: any backbone.
    layer: a layer's name.
    picture: uint8 [s, s, 3], at the model's input size.
    name: of the picture, for the goal's name.

  Returns:
    A goal with a direction of length 1: the difference of the features' means over all positions.

  Raises:
    UsageError: for an unknown layer.
  """
  check_layer(model.module, layer)
  photo = pictures.to_floats(picture)
  both = np.stack([photo, np.broadcast_to(photo.mean((0, 1)), photo.shape)])
  values = jax.jit(lambda variables, pixels: look(model)(variables, pixels)[layer])(model.variables, both)
  photo, plain = objectives.places(values).mean(axis=1)
  vector = (photo - plain) / jnp.maximum(jnp.linalg.norm(photo - plain), 1e-12)
  return Goal(f'{layer} towards {name}', layer, objectives.direction(layer, vector))


def ideal_images(
  model: Pretrained,
  goals: Sequence[Goal],
  *,
  size: int,
  steps: int = 512,
  variation: float = 2000.0,
  parametrisation: str = 'fourier',
  transforms: Transforms = USUAL,
  seed: int = 0,
  judge: Pretrained | None = None,
  every: int = 32,
) -> Iterator[Explanation]:
  """Makes one picture for each goal, all at once.

  The figures describe the pictures as their files hold them (uint8), without random transforms.

  Args:
    model: any backbone; classes need a head.
    goals: one per picture.
    size: height and width of the pictures and of the model's input, pixels.
    steps: gradient steps.
    variation: weight of the total variation, against one standard deviation of the goal's outputs.
    parametrisation: a key of PARAMETRISATIONS.
    transforms: random transforms at each step.
    seed: of the noise and the transforms.
    judge: a second model that classifies the finished pictures; the descent does not use it.
    every: steps between two results.

  Yields:
    The result so far, after every `every` steps and after the last.
  """
  made, see, key = PARAMETRISATIONS[parametrisation], _see(model, {goal.layer for goal in goals}), jax.random.key(seed)
  start = jnp.stack([made.start(jax.random.fold_in(key, i), size) for i in range(len(goals))])
  noise = see(model.variables, made.pixels(start))
  spread = jnp.stack([jnp.maximum(noise[goal.layer].std(), 1e-6) for goal in goals])
  loss = _loss(look(model), goals, made, transforms, variation)
  optimizer = optax.adam(optax.cosine_decay_schedule(made.rate, steps))
  work = descend(loss, (model.variables, spread), start, optimizer, steps, key=key, project=made.project, every=every)
  for found in work:
    shown = pictures.to_bytes(made.pixels(found.best))
    values = see(model.variables, pictures.to_floats(shown))
    each = {goal.name: _figures(goal, i, values, noise) for i, goal in enumerate(goals)}
    for goal, verdict in zip(goals, _verdicts(judge, model, goals, shown)) if judge else ():
      each[goal.name] |= verdict
    figures = {**_summary(each), 'steps': found.step, 'pictures': each, 'losses': found.losses}
    yield Explanation(figures, _named(goals, shown), done=found.step, total=steps)


def _see(model: Pretrained, layers: set[str]):
  """Compiles the model, with only the outputs that the figures need."""
  looks, kept = look(model), {PIXELS, LOGITS, *layers}
  return jax.jit(lambda variables, pixels: {k: x for k, x in looks(variables, pixels).items() if k in kept})


def _loss(looks, goals: Sequence[Goal], made: Parametrisation, transforms: Transforms, variation: float):
  """The loss of all pictures together. It is a sum of one term per picture, so no picture influences another."""

  def loss(fixed, parameters: jax.Array, key: jax.Array) -> jax.Array:
    variables, spread = fixed
    pixels = made.pixels(parameters)
    seen = looks(variables, transformed(key, pixels, transforms))
    gain = sum(goal.aim(seen)[i] / spread[i] for i, goal in enumerate(goals))
    return (variation * objectives.variation()({PIXELS: pixels}).sum() - gain) / len(goals)

  return loss


def _figures(goal: Goal, i: int, seen: Seen, noise: Seen) -> dict[str, Any]:
  """The figures of one picture."""
  figures = {'objective': float(goal.aim(seen)[i]), 'objective_of_noise': float(goal.aim(noise)[i])}
  if goal.index is not None:
    figures['probability'] = float(jax.nn.softmax(seen[LOGITS][i])[goal.index])
  return figures | {'variation': float(objectives.variation()(seen)[i])}


def _summary(each: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """The smallest probability, the means of the other figures, and how often the judge agrees."""
  rows = list(each.values())
  found = {'least_probability': min((row['probability'] for row in rows if 'probability' in row), default=None)}
  found |= {name: float(np.mean([row[name] for row in rows])) for name in ('objective', 'variation')}
  agrees = [row['judge_agrees'] for row in rows if 'judge_agrees' in row]
  found['judge_agrees'] = f'{sum(agrees)} of {len(agrees)}' if agrees else None
  return {name: value for name, value in found.items() if value is not None}


def judged_class(judge: Pretrained, model: Pretrained, index: int) -> int:
  """Finds the judge's number for one of the model's classes.

  It matches names; without names it takes the same number, if both models have equally many classes.

  Raises:
    UsageError: if the judge does not have that class.
  """
  name, counts = class_name(model, index), [m.module.head.num_classes for m in (model, judge)]
  if name in judge.class_names:
    return list(judge.class_names).index(name)
  if counts[0] != counts[1] or (judge.class_names and model.class_names):
    raise UsageError(f'the judge has no class {name!r}; choose a judge with the same classes')
  return index


def _verdicts(judge: Pretrained, model: Pretrained, goals: Sequence[Goal], shown: np.ndarray) -> list[dict[str, Any]]:
  """The judge's answer for each picture, at the judge's input size; {} for pictures that are not of a class."""
  side = max(judge.preprocess.shape)
  pixels = pictures.to_floats(np.stack([pictures.resized(picture, side, side) for picture in shown]))
  rows = np.asarray(jax.nn.softmax(_see(judge, set())(judge.variables, pixels)[LOGITS]))
  return [{} if goal.index is None else _verdict(judge, model, goal.index, row) for goal, row in zip(goals, rows)]


def _verdict(judge: Pretrained, model: Pretrained, index: int, row: np.ndarray) -> dict[str, Any]:
  own, top = judged_class(judge, model, index), int(row.argmax())
  return {
    'judge_probability': float(row[own]),
    'judge_rank': int((row > row[own]).sum()) + 1,  # 1 = the judge's first choice
    'judge_says': class_name(judge if judge.class_names else model, top),
    'judge_agrees': top == own,
  }


def _named(goals: Sequence[Goal], shown: np.ndarray) -> dict[str, np.ndarray]:
  """The pictures by the names of their files; for several pictures also a sheet of all."""
  named = {re.sub(r'[^\w.]+', '_', goal.name): picture for goal, picture in zip(goals, shown)}
  sheet = {'sheet': pictures.grid(list(shown), [goal.name for goal in goals], columns=5)} if len(goals) > 1 else {}
  return named | sheet
