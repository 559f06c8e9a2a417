"""How much each position of an image contributes to a class: Grad-CAM and integrated gradients.

Both make pure functions of a batch: (variables, pixels float32 [b, s, s, 3] in [0, 1], classes int [b]).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tlx.explain.objectives import Objective, log_probability, of_class
from tlx.explain.outputs import as_map, check_layer, look, rest, shapes
from tlx.types import Pretrained, TlxError, UsageError, Variables

Attribution = Callable[[Variables, jax.Array, jax.Array], jax.Array]


def gradcam(model: Pretrained, layer: str) -> Attribution:
  """Grad-CAM of a layer's map (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

  The weight of a channel is the mean gradient of the class's logit over the channel's positions (Eq. 1). The heat is
  the positive part of the weighted sum of channels (Eq. 2). A transformer's tokens form their map, without the prefix
  tokens.

  Args:
    model: with a head.
    layer: a layer's name.

  Returns:
    A function (variables, pixels, classes) -> float32 [b, h, w], 0 or more.
  """
  looks, logits = look(model), rest(model, layer)

  def heat(variables: Variables, pixels: jax.Array, classes: jax.Array) -> jax.Array:
    values = looks(variables, pixels)[layer]
    slopes = jax.grad(lambda values: of_class(logits(variables, values), classes).sum())(values)
    maps, slopes = as_map(model.module, values), as_map(model.module, slopes)
    return jax.nn.relu((maps * slopes.mean(axis=(1, 2), keepdims=True)).sum(axis=-1))

  return heat


def gradcam_layer(model: Pretrained, name: str | None = None) -> str:
  """Chooses the layer for Grad-CAM.

  Without a name it takes the last layer that has more than one position and whose map influences the logits. If a
  transformer's head reads the class token, the map of the last block has no influence, so the layer before it is taken.
  The check uses the gradient at random features, so the layer is the same for every image.

  Args:
    model: with a head.
    name: a layer's name, or None.

  Returns:
    The layer's name.

  Raises:
    UsageError: if `name` is not a layer, or if that layer has no map.
    TlxError: if no layer has a map that influences the logits.
  """
  seen = shapes(model)
  to_map = lambda values: as_map(model.module, values)
  places = lambda layer: math.prod(jax.eval_shape(to_map, seen[layer]).shape[1:3])
  if name is not None:
    if places(check_layer(model.module, name)) == 1:
      raise UsageError(f'layer {name!r} returns one vector per image, not a map; choose a layer before it')
    return name
  for layer in reversed(model.module.backbone.names):
    values = jax.random.normal(jax.random.key(0), seen[layer].shape)
    if places(layer) > 1 and to_map(_slope(model, layer)(values, model.variables)).any():
      return layer
  raise TlxError('the logits do not depend on the map of any layer')


def _slope(model: Pretrained, layer: str) -> Callable[[jax.Array, Variables], jax.Array]:
  logits = rest(model, layer)
  return jax.jit(jax.grad(lambda values, variables: jnp.square(logits(variables, values)).sum()))


def integrated_gradients(
  model: Pretrained, steps: int = 64, score: Callable[[jax.Array], Objective] = log_probability, baseline: float = 0.0
) -> Attribution:
  """Integrated gradients (Sundararajan et al. 2017, Sec. 3, https://arxiv.org/abs/1703.01365).

  It multiplies (x - x') by the mean gradient of the score on the straight line from the baseline x' to the image x. The
  sum over all pixels approximates score(x) - score(x') (completeness). The gradient is evaluated at midpoints in the
  square root of the way, which are densest near the baseline, where gradients change fastest: for EfficientNet-Lite0,
  scikit-image's cat and 64 steps the sum misses 1.6 % of the difference, and 11 % with evenly spaced points.

  Args:
    model: with a head.
    steps: number of points on the line.
    score: classes -> the objective to explain.
    baseline: float [] or [b, s, s, 3] in [0, 1]; 0 is black.

  Returns:
    A function (variables, pixels, classes) -> float32 [b, s, s, 3].
  """
  looks = look(model)

  def attribution(variables: Variables, pixels: jax.Array, classes: jax.Array) -> jax.Array:
    slope = jax.grad(lambda pixels: score(classes)(looks(variables, pixels)).sum())
    way = pixels - baseline
    add = lambda total, root: (total + 2 * root * slope(baseline + root**2 * way), None)
    total, _ = jax.lax.scan(add, jnp.zeros_like(way), (jnp.arange(steps) + 0.5) / steps)
    return way * total / steps

  return attribution
