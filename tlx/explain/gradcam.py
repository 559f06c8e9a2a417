"""Where a model looks: Grad-CAM and integrated gradients over an image."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tlx.explain import pictures
from tlx.explain.attribution import Attribution, gradcam, gradcam_layer, integrated_gradients
from tlx.explain.objectives import of_class
from tlx.explain.outputs import LOGITS, Explanation, check_head, class_name, look
from tlx.types import Pretrained

SHOWN = 0.99  # pixels above this quantile are drawn alike, because a few would otherwise outshine all others


def where(
  model: Pretrained, picture: np.ndarray, index: int | None = None, layer: str | None = None, steps: int = 64
) -> Explanation:
  """Draws an image with the heat of Grad-CAM and of integrated gradients of a class's log-probability.

  The figure `completeness` is the error of the attributions' sum: its distance from the difference of log-probability
  between the image and a black one, as a share of that difference.

  Args:
    model: with a head.
    picture: uint8 [s, s, 3], at the model's input size.
    index: a class; the most probable by default.
    layer: of Grad-CAM; `gradcam_layer` chooses by default.
    steps: of integrated gradients.

  Returns:
    The figures, and the picture 'gradcam'.

  Raises:
    UsageError: if the model has no classes, or `layer` is not a layer with a map.
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
    'log_probability_gain': gain,  # compared with a black picture
    'completeness': abs(float(parts.sum()) - gain) / max(abs(gain), 1e-12),
  }
  tiles = [picture, warm(picture, heat), warm(picture, fine(parts.sum(-1)))]
  texts = [f'{name} {probability:.1%}', f'Grad-CAM, {layer}', f'integrated gradients, {steps} steps']
  return Explanation(figures, {'gradcam': pictures.grid(tiles, texts)})


def overlays(
  model: Pretrained, images: Sequence[np.ndarray], classes: Sequence[int], batch_size: int = 8
) -> Iterator[np.ndarray]:
  """Draws Grad-CAM of a class over each picture uint8 [s, s, 3]. One compiled program serves all batches.

  Args:
    model: with a head.
    images: pictures at the model's input size.
    classes: one class per picture.
    batch_size: pictures per step.

  Yields:
    One picture uint8 [s, s, 3] for each image, in order.
  """
  heats: Attribution = jax.jit(gradcam(model, gradcam_layer(model)))
  for start in range(0, len(images), batch_size):
    part = images[start : start + batch_size]
    fill = [(0, batch_size - len(part))]
    pixels = np.pad(pictures.to_floats(np.stack(part)), fill + [(0, 0)] * 3)
    of = np.pad(np.asarray(classes[start : start + batch_size], np.int32), fill)
    for picture, heat in zip(part, np.asarray(heats(model.variables, pixels, of))):
      yield warm(picture, heat)


def warm(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Draws heat (0 or more) over a picture; the hottest position is the lightest."""
  return pictures.overlay(picture, heat / max(heat.max(), 1e-12))


def fine(parts: np.ndarray) -> np.ndarray:
  """Turns attributions [s, s] of pixels into heat: the positive part, cut off at the quantile SHOWN."""
  heat = np.maximum(parts, 0)
  return np.minimum(heat, np.quantile(heat, SHOWN))
