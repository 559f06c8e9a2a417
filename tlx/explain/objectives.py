"""What a picture is to bring about: an objective is a pure function of what the backbone sees, one number an image.

They name layers, never models, and add up: `total((1, logit(285)), (-0.1, variation()))`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from tlx.explain.outputs import LOGITS, PIXELS, Seen

Objective = Callable[[Seen], jax.Array]  # -> float32 [b]


def logit(index: int | jax.Array) -> Objective:
  """Score of a class; index may be int [b], a class an image."""
  return lambda seen: of_class(seen[LOGITS], index)


def log_probability(index: int | jax.Array) -> Objective:
  """Logarithm of the probability of a class; index as there."""
  return lambda seen: of_class(jax.nn.log_softmax(seen[LOGITS]), index)


def channel(layer: str, number: int) -> Objective:
  """Mean of one channel of a layer over the places of its map, or over its tokens."""
  return lambda seen: places(seen[layer])[..., number].mean(axis=1)


def direction(layer: str, vector: jax.Array) -> Objective:
  """Mean over the places of a layer's projection on a direction float [d], of unit length or not."""
  return lambda seen: (places(seen[layer]) @ vector).mean(axis=1)


def variation() -> Objective:
  """Total variation of the pixels: the mean absolute difference of neighbours, in both directions together."""

  def of(seen: Seen) -> jax.Array:
    down, right = (jnp.abs(jnp.diff(seen[PIXELS], axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
    return down + right

  return of


def content(layer: str, target: jax.Array) -> Objective:
  """Squared difference of a layer from a target float [1, ...], as a share of the target's mean square.

  Gatys et al. 2016 (CVPR; preprint https://arxiv.org/abs/1508.06576), made relative: one weight then fits every
  backbone, whatever the scale of its layers.
  """

  def of(seen: Seen) -> jax.Array:
    difference, scale = places(seen[layer]) - places(target), jnp.square(places(target)).mean()
    return jnp.square(difference).mean(axis=(1, 2)) / scale

  return of


def style(grams: Mapping[str, jax.Array]) -> Objective:
  """Squared distance of each layer's Gram matrix from float [1, d, d], as a share of its square; mean over the layers.

  As in the same paper, with equal weights, and made relative for the same reason.
  """

  def of(seen: Seen) -> jax.Array:
    parts = [jnp.square(gram(seen[n]) - a).sum(axis=(1, 2)) / jnp.square(a).sum() for n, a in grams.items()]
    return sum(parts) / len(parts)

  return of


def gram(values: jax.Array) -> jax.Array:
  """Of a layer's output [b, ..., d]: products of its channels, the mean over the places, float32 [b, d, d]."""
  values = places(values)
  return jnp.einsum('bnd,bne->bde', values, values) / values.shape[1]


def total(*parts: tuple[float, Objective]) -> Objective:
  """Weighted sum."""
  return lambda seen: sum(weight * objective(seen) for weight, objective in parts)


def of_class(rows: jax.Array, index: int | jax.Array) -> jax.Array:
  """[b, k] -> [b]: of each row the value at `index`, int [] or [b]."""
  return jnp.take_along_axis(rows, jnp.broadcast_to(jnp.asarray(index), len(rows))[:, None], axis=1)[:, 0]


def places(values: jax.Array) -> jax.Array:
  """[b, ..., d] -> float32 [b, n, d]: the places of a map, or the tokens."""
  return values.reshape(len(values), -1, values.shape[-1]).astype(jnp.promote_types(values.dtype, jnp.float32))
