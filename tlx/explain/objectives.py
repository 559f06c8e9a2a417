"""Objectives for pictures: pure functions from a model's outputs to one number per image.

They address layers by name and add up: `total((1, logit(285)), (-0.1, variation()))`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tlx.explain.outputs import LOGITS, PIXELS, Seen

Objective = Callable[[Seen], jax.Array]  # -> float32 [b]


def logit(index: int | jax.Array) -> Objective:
  """The logit of a class. `index` is an int, or int [b] with one class per image."""
  return lambda seen: of_class(seen[LOGITS], index)


def log_probability(index: int | jax.Array) -> Objective:
  """The log-probability of a class. `index` is an int, or int [b] with one class per image."""
  return lambda seen: of_class(jax.nn.log_softmax(seen[LOGITS]), index)


def channel(layer: str, number: int) -> Objective:
  """The mean of one channel of a layer, over the positions of its map or over its tokens."""
  return lambda seen: places(seen[layer])[..., number].mean(axis=1)


def direction(layer: str, vector: jax.Array) -> Objective:
  """The mean over a layer's positions of the dot product with a vector float [d] of any length."""
  return lambda seen: (places(seen[layer]) @ vector).mean(axis=1)


def variation() -> Objective:
  """Total variation: the mean absolute difference of vertical neighbours plus that of horizontal ones."""

  def of(seen: Seen) -> jax.Array:
    down, right = (jnp.abs(jnp.diff(seen[PIXELS], axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
    return down + right

  return of


def content(layer: str, target: jax.Array) -> Objective:
  """Squared difference between a layer and a target float [1, ...], divided by the target's mean square.

  (Gatys et al. 2016, CVPR; preprint https://arxiv.org/abs/1508.06576.) The division makes one weight fit every
  backbone, whatever the scale of its layers.
  """

  def of(seen: Seen) -> jax.Array:
    difference, scale = places(seen[layer]) - places(target), jnp.square(places(target)).mean()
    return jnp.square(difference).mean(axis=(1, 2)) / scale

  return of


def style(grams: Mapping[str, jax.Array]) -> Objective:
  """Squared distance between a layer's Gram matrix and a target float [1, d, d], divided by the target's square.

  It is averaged over the layers with equal weights (Gatys et al. 2016). The division makes one weight fit every
  backbone.

  Args:
    grams: layer's name -> target.
  """

  def of(seen: Seen) -> jax.Array:
    parts = [jnp.square(gram(seen[n]) - a).sum(axis=(1, 2)) / jnp.square(a).sum() for n, a in grams.items()]
    return sum(parts) / len(parts)

  return of


def gram(values: jax.Array) -> jax.Array:
  """The Gram matrix of a layer [b, ..., d]: products of channels, averaged over positions, float32 [b, d, d]."""
  values = places(values)
  return jnp.einsum('bnd,bne->bde', values, values) / values.shape[1]


def total(*parts: tuple[float, Objective]) -> Objective:
  """Weighted sum of objectives."""
  return lambda seen: sum(weight * objective(seen) for weight, objective in parts)


def of_class(rows: jax.Array, index: int | jax.Array) -> jax.Array:
  """Picks the value at `index`, int [] or [b], of each row: [b, k] -> [b].

  >>> print(of_class(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0, 1])))
  [1. 4.]
  """
  return jnp.take_along_axis(rows, jnp.broadcast_to(jnp.asarray(index), len(rows))[:, None], axis=1)[:, 0]


def places(values: jax.Array) -> jax.Array:
  """Flattens a map, or tokens, to its positions: [b, ..., d] -> float32 [b, n, d]."""
  return values.reshape(len(values), -1, values.shape[-1]).astype(jnp.promote_types(values.dtype, jnp.float32))
