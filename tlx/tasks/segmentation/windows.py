"""Segments photographs of any size with a model of one input size, by sliding windows at several scales."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from tlx.data import geometry as positions
from tlx.types import Geometry

OVERLAP = 0.5  # of two neighbouring windows, as a share of their side
BATCH = 8  # windows per step
Run = Callable[[np.ndarray], np.ndarray]  # uint8 [n, h, w, 3] -> logits float [n, h', w', k]


def probabilities(run: Run, photograph: np.ndarray, shape: tuple[int, int], scales: Sequence[float]) -> np.ndarray:
  """Computes class probabilities of each pixel, averaged over the scales.

  At each scale the photograph is resized; a scale that is too small for one window is raised. Windows of the model's
  shape cover it and overlap by half or more. Where windows overlap, their probabilities are averaged.

  Args:
    run: the model, called on `BATCH` windows.
    photograph: uint8 [h, w, 3].
    shape: height and width of the model's input, pixels.
    scales: factors of the photograph's size, above 0.

  Returns:
    float32 [h, w, k].
  """
  height, width = photograph.shape[:2]
  total: np.ndarray | None = None
  for scale in scales:
    factor = max(scale, shape[0] / height, shape[1] / width)
    size = max(shape[0], round(height * factor)), max(shape[1], round(width * factor))
    seen = _at_one_scale(run, _resized(photograph, size), shape)
    back = positions.back(seen, Geometry(height, width, 0, 0, height, width), (0, height))
    total = back if total is None else total + back
  return (total / len(scales)).astype(np.float32)


def starts(length: int, window: int) -> list[int]:
  """First pixels of windows along one axis. The windows are evenly spread, cover the axis and overlap by half or more.

  >>> starts(10, 4)
  [0, 2, 4, 6]
  """
  count = 1 + -(-(length - window) // max(1, round(window * (1 - OVERLAP)))) if length > window else 1
  return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def _at_one_scale(run: Run, image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  corners = [(top, left) for top in starts(image.shape[0], shape[0]) for left in starts(image.shape[1], shape[1])]
  total, count = None, np.zeros((*image.shape[:2], 1), np.float32)
  for i in range(0, len(corners), BATCH):
    part = corners[i : i + BATCH]
    pixels = np.zeros((BATCH, *shape, 3), np.uint8)
    for row, (top, left) in enumerate(part):
      pixels[row] = image[top : top + shape[0], left : left + shape[1]]
    for (top, left), logits in zip(part, run(pixels)):
      window = positions.back(_softmax(logits), Geometry(*shape, 0, 0, *shape), (0, shape[0]))
      total = np.zeros((*image.shape[:2], window.shape[-1]), np.float32) if total is None else total
      total[top : top + shape[0], left : left + shape[1]] += window
      count[top : top + shape[0], left : left + shape[1]] += 1
  return total / count


def _resized(photograph: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  if photograph.shape[:2] == size:
    return photograph
  return np.asarray(Image.fromarray(photograph).resize(size[::-1], Image.Resampling.BILINEAR))


def _softmax(logits: np.ndarray) -> np.ndarray:
  shifted = np.exp(np.asarray(logits, np.float32) - np.max(logits, axis=-1, keepdims=True))
  return shifted / shifted.sum(axis=-1, keepdims=True)
