"""Changes one photograph until a model gives another answer, and draws it before, after, and the difference."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.explain import pictures
from tlx.explain.attack import Attack, Attacked, descend_to, perturb, shrunk, sizes, smallest
from tlx.explain.outputs import LOGITS, Explanation, check_head, class_name, look
from tlx.types import Pretrained, UsageError

TILE = 256  # height and width of each picture in the grid, pixels
TOP = 3  # classes listed below a picture


def by_attack(
  model: Pretrained, picture: np.ndarray, attack: Attack, epsilon: float, target: int | None = None, seed: int = 0
) -> Explanation:
  """Attacks within a ball of size epsilon (see `attack.perturb`).

  Args:
    model: with a head.
    picture: uint8 [s, s, 3], at the model's input size.
    attack: the method.
    epsilon: size of the ball, in the attack's norm, for pixels in [0, 1].
    target: class to reach; None = any class but the present answer.
    seed: of the random starts.

  Returns:
    The figures, and the pictures 'attack' (a grid), 'original', 'adversarial' and 'difference'.

  Raises:
    UsageError: if the model already answers the target, or has no classes.
  """
  pixels, label = _begin(model, picture, target)
  program = perturb(look(model), attack)
  found = program(model.variables, pixels, label, epsilon, jax.random.key(seed), jnp.zeros(1, int))
  return _told(model, picture, found, target, {'epsilon': epsilon, 'step_size': attack.share * epsilon})


def by_descent(
  model: Pretrained, picture: np.ndarray, target: int | None = None, *, steps: int = 500, rate: float = 0.002
) -> Explanation:
  """Follows the gradient until the answer changes, then finds the smallest share of that change that still suffices.

  Args:
    model: with a head.
    picture: uint8 [s, s, 3], at the model's input size.
    target: class to reach; None = any class but the present answer.
    steps: maximum gradient steps.
    rate: step size, for pixels in [0, 1].

  Returns:
    As `by_attack`.

  Raises:
    UsageError: as `by_attack`.
  """
  (pixels, label), looks = _begin(model, picture, target), look(model)
  reached = descend_to(looks, steps=steps, rate=rate, targeted=target is not None)(model.variables, pixels, label)
  scale = smallest(looks, targeted=target is not None)(model.variables, pixels, reached.pixels, label)
  before = {f'{name}_before_bisection': float(size[0]) for name, size in sizes(pixels, reached.pixels).items()}
  found = reached._replace(pixels=jnp.where(reached.success[0], shrunk(pixels, reached.pixels, scale), reached.pixels))
  return _told(model, picture, found, target, {'rate': rate, 'scale': float(scale[0]), **before})


def _begin(model: Pretrained, picture: np.ndarray, target: int | None) -> tuple[jax.Array, jax.Array]:
  """Pixels [1, s, s, 3], and the class [1] to reach or to leave."""
  check_head(model)
  pixels = jnp.asarray(pictures.to_floats(picture))[None]
  answer = int(_probabilities(model, pixels)[0].argmax())
  if target == answer:
    raise UsageError(f'target {class_name(model, target)!r} is what the model answers already; choose another class')
  return pixels, jnp.array([answer if target is None else target])


def _told(
  model: Pretrained, picture: np.ndarray, found: Attacked, target: int | None, given: Mapping[str, Any]
) -> Explanation:
  """Figures and pictures of the result.

  A PNG has 256 levels, so the figures also hold the model's answer for the rounded picture.
  """
  pixels, saved = pictures.to_floats(picture)[None], pictures.to_bytes(found.pixels[0])
  rows = _probabilities(model, np.concatenate([pixels, found.pixels, pictures.to_floats(saved)[None]]))
  answers = rows.argmax(1)
  reached = answers != answers[0] if target is None else answers == target
  change = np.asarray(found.pixels[0]) - pixels[0]
  times = max(1, int(0.5 / max(np.quantile(np.abs(change), 0.999), 1e-6)))
  difference = pictures.to_bytes(0.5 + times * change)
  figures = {
    'before': class_name(model, answers[0]),
    'before_probability': float(rows[0].max()),
    'after': class_name(model, answers[1]),
    'after_probability': float(rows[1].max()),
    'success': bool(reached[1]),
    'saved': class_name(model, answers[2]),
    'saved_probability': float(rows[2].max()),
    'saved_success': bool(reached[2]),  # whether the attack survives the rounding to 256 levels
    'steps': int(found.steps[0]),
    **{name: float(size[0]) for name, size in sizes(jnp.asarray(pixels), found.pixels).items()},
    **given,
    'difference_times': times,
    'top': {name: _top(model, row) for name, row in zip(('before', 'after', 'saved'), rows)},
  }
  if target is not None:
    figures |= {'target': class_name(model, target), 'target_probabilities': rows[:, target]}
  shown = {'original': picture, 'adversarial': saved, 'difference': difference}
  texts = [f'{name}\n{_lines(model, row)}' for name, row in zip(('original', 'adversarial'), rows)]
  texts[1] += f'\nsaved as PNG: {figures["saved_probability"]:.1%} {figures["saved"]}'
  size = f'L-infinity norm {figures["linf"] * 255:.2f} / 255\nL2 norm {figures["l2"]:.3f}'
  texts.append(f'difference, {times} times\n{size}')
  tiles = [pictures.resized(tile, TILE, TILE, smooth=False) for tile in shown.values()]
  return Explanation(figures, {'attack': pictures.grid(tiles, texts), **shown})


def _probabilities(model: Pretrained, pixels) -> np.ndarray:
  """float32 [b, k]."""
  rows = jax.jit(lambda variables, pixels: jax.nn.softmax(look(model)(variables, pixels)[LOGITS]))
  return np.asarray(rows(model.variables, pixels))


def _top(model: Pretrained, row: np.ndarray) -> list[dict[str, Any]]:
  order = np.argsort(-row, kind='stable')[:TOP]
  return [{'id': int(i), 'name': class_name(model, i), 'probability': float(row[i])} for i in order]


def _lines(model: Pretrained, row: np.ndarray) -> str:
  return '\n'.join(f'{item["probability"]:.1%} {item["name"]}' for item in _top(model, row))
