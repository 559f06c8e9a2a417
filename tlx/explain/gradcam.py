"""Where a model looks: Grad-CAM and integrated gradients over a photograph."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tlx.explain import pictures
from tlx.explain.attribution import Attribution, gradcam, gradcam_layer, integrated_gradients
from tlx.explain.objectives import of_class
from tlx.explain.outputs import LOGITS, Explanation, check_head, class_name, look
from tlx.types import Pretrained

SHOWN = 0.99  # quantile of the single pixels that is drawn as the hottest: a few of them stand far above the others


def where(
  model: Pretrained, picture: np.ndarray, index: int | None = None, layer: str | None = None, steps: int = 64
) -> Explanation:
  """The photograph, and what speaks in it for a class by Grad-CAM and by integrated gradients of its log-probability.

  Args:
    picture: uint8 [s, s, 3], as the model sees it.
    index: of the class; the most probable by default.
    layer: of Grad-CAM; `gradcam_layer` by default.
    steps: of the integral. `completeness` in the figures is how far the attributions' sum is from the log-probability
      less that of a black picture, as a share of it.
  Raises UsageError for a model without classes, and for a layer that is none or has no map.
  """
  check_head(model)
  layer, pixels = gradcam_layer(model, layer), jnp.asarray(pictures.to_floats(picture))[None]
  logits = jax.jit(lambda variables, pixels: look(model)(variables, pixels)[LOGITS])
  rows = logits(model.variables, jnp.concatenate([pixels, jnp.zeros_like(pixels)]))
  index = int(rows[0].argmax()) if index is None else index
  classes, rows = jnp.array([index]), jax.nn.log_softmax(rows)
  heat = np.asarray(jax.jit(gradcam(model, layer))(model.variables, pixels, classes)[0])
  parts = np.asarray(jax.jit(integrated_gradients(model, steps))(model.variables, pixels, classes)[0])
  scores = of_class(rows, index)
  gain = float(scores[0] - scores[1])
  name, probability = class_name(model, index), float(jnp.exp(scores[0]))
  figures = {
    'class': name,
    'index': index,
    'probability': probability,
    'layer': layer,
    'heat': heat,
    'attribution_sum': float(parts.sum()),
    'log_probability_gain': gain,  # over a black picture
    'completeness': abs(float(parts.sum()) - gain) / max(abs(gain), 1e-12),
  }
  tiles = [picture, warm(picture, heat), warm(picture, fine(parts.sum(-1)))]
  texts = [f'{name} {probability:.1%}', f'Grad-CAM, {layer}', f'integrated gradients, {steps} steps']
  return Explanation(figures, {'gradcam': pictures.grid(tiles, texts)})


def overlays(
  model: Pretrained, images: Sequence[np.ndarray], classes: Sequence[int], batch_size: int = 8
) -> Iterator[np.ndarray]:
  """Grad-CAM of a class over each picture uint8 [s, s, 3]: one program for all, which sees `batch_size` at a time."""
  heats: Attribution = jax.jit(gradcam(model, gradcam_layer(model)))
  for start in range(0, len(images), batch_size):
    part = images[start : start + batch_size]
    fill = [(0, batch_size - len(part))]
    pixels = np.pad(pictures.to_floats(np.stack(part)), fill + [(0, 0)] * 3)
    of = np.pad(np.asarray(classes[start : start + batch_size], np.int32), fill)
    for picture, heat in zip(part, np.asarray(heats(model.variables, pixels, of))):
      yield warm(picture, heat)


def warm(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Heat of 0 or more over a photograph, the hottest place the lightest."""
  return pictures.overlay(picture, heat / max(heat.max(), 1e-12))


def fine(parts: np.ndarray) -> np.ndarray:
  """Attributions [s, s] of single pixels as heat: what speaks for the class, cut where a few pixels outshine all."""
  heat = np.maximum(parts, 0)
  return np.minimum(heat, np.quantile(heat, SHOWN))
