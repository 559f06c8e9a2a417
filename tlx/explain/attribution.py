"""How much each place of a photograph speaks for a class: Grad-CAM and integrated gradients.

Both are pure functions of a batch: (variables, pixels float32 [b, s, s, 3] in [0, 1], classes int [b]), one an image.
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
  """Grad-CAM float32 [b, h, w], 0 or more, of the layer's map (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

  Each channel weighs the mean over its places of the gradient of the class's logit (eq. 1); the heat is the positive
  part of the weighted sum of channels (eq. 2). Tokens are read as the map that they are, without those ahead of it.
  """
  looks, logits = look(model), rest(model, layer)

  def heat(variables: Variables, pixels: jax.Array, classes: jax.Array) -> jax.Array:
    values = looks(variables, pixels)[layer]
    slopes = jax.grad(lambda values: of_class(logits(variables, values), classes).sum())(values)
    maps, slopes = as_map(model.module, values), as_map(model.module, slopes)
    return jax.nn.relu((maps * slopes.mean(axis=(1, 2), keepdims=True)).sum(axis=-1))

  return heat


def gradcam_layer(model: Pretrained, name: str | None = None) -> str:
  """The layer itself, or else the last with more than one place where the logits depend on the map.

  A transformer whose head reads the class token is blind to the map that its last block returns: there it is the layer
  before. Found by the gradient at random features, so it is the same for every photograph.
  Raises UsageError for what is no layer, and for one that has no map.
  """
  seen = shapes(model)
  to_map = lambda values: as_map(model.module, values)
  places = lambda layer: math.prod(jax.eval_shape(to_map, seen[layer]).shape[1:3])
  if name is not None:
    if places(check_layer(model.module, name)) == 1:
      raise UsageError(f'layer {name!r} returns one vector an image, and no map; choose one before it')
    return name
  for layer in reversed(model.module.backbone.names):
    values = jax.random.normal(jax.random.key(0), seen[layer].shape)
    if places(layer) > 1 and to_map(_slope(model, layer)(values, model.variables)).any():
      return layer
  raise TlxError('no layer of the model has a map on which its logits depend')


def _slope(model: Pretrained, layer: str) -> Callable[[jax.Array, Variables], jax.Array]:
  logits = rest(model, layer)
  return jax.jit(jax.grad(lambda values, variables: jnp.square(logits(variables, values)).sum()))


def integrated_gradients(
  model: Pretrained, steps: int = 64, score: Callable[[jax.Array], Objective] = log_probability, baseline: float = 0.0
) -> Attribution:
  """Integrated gradients float32 [b, s, s, 3] (Sundararajan et al. 2017, Sec. 3, https://arxiv.org/abs/1703.01365).

  (x - x') times the mean gradient of `score(classes)` on the straight line from the baseline x', black unless told, to
  the photograph x. They add up to score(x) - score(x') (completeness), as nearly as `steps` midpoints integrate.
  They are midpoints in the root of the share of the way, so that most lie near the baseline, where gradients change the
  fastest: EfficientNet-Lite0 on scikit-image's cat, 64 steps, misses 1.6 % of the whole, and 11 % when evenly spread.
  baseline: float [] or [b, s, s, 3] in [0, 1].
  """
  looks = look(model)

  def attribution(variables: Variables, pixels: jax.Array, classes: jax.Array) -> jax.Array:
    slope = jax.grad(lambda pixels: score(classes)(looks(variables, pixels)).sum())
    way = pixels - baseline
    add = lambda total, root: (total + 2 * root * slope(baseline + root**2 * way), None)
    total, _ = jax.lax.scan(add, jnp.zeros_like(way), (jnp.arange(steps) + 0.5) / steps)
    return way * total / steps

  return attribution
