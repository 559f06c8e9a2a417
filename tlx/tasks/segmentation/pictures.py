"""Draws masks over photographs, and the worst images of a split for the report."""

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tlx.data import decode, transforms
from tlx.data.masks import IGNORE
from tlx.nn.model import forward_of
from tlx.report import folder, thumbnail
from tlx.types import DataSource, Pretrained

if TYPE_CHECKING:
  from tlx.tasks.segmentation.task import Task

WORST = 12  # number of images in the report
SIDE = 320  # pixels of the longer side of a picture in the report
OPACITY = 0.5  # of the colours over a photograph


def palette(classes: int = 256) -> np.ndarray:
  """Colours of classes, RGB uint8 [classes, 3]. Golden-ratio steps of hue keep neighbouring ids apart."""
  hues = np.arange(classes) * (np.sqrt(5) - 1) / 2 % 1
  values = 1 - 0.35 * (np.arange(classes) // 6 % 2)
  return np.array([np.round(255 * np.array(colorsys.hsv_to_rgb(h, 0.8, v))) for h, v in zip(hues, values)], np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Draws a mask over a photograph.

  Args:
    image: uint8 [h, w, 3].
    mask: uint8 [h, w], class ids; pixels with IGNORE do not change.

  Returns:
    uint8 [h, w, 3].
  """
  colours = palette()[mask]
  mixed = (OPACITY * colours + (1 - OPACITY) * image).round().astype(np.uint8)
  return np.where((mask == IGNORE)[..., None], image, mixed)


def write(
  task: 'Task', out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained
) -> None:
  """Writes the images with the lowest IoU: OUT/mistakes.json and OUT/mistakes/NN{,-truth,-prediction}.jpg.

  Args:
    task: decodes the outputs.
    out: the run folder.
    records: of the evaluation.
    source: the split.
    model: predicts the images again.
  """
  found, transform = [], transforms.evaluation(model.preprocess)
  forward = forward_of(model)
  for rank, row in enumerate(np.argsort(records['iou'], kind='stable')[:WORST]):
    example = source[int(records['index'][row])]
    image = example.image
    photograph = decode.decode(image, scale=transform.grey) if isinstance(image, bytes) else image
    outputs = np.asarray(forward(transform(photograph)[None]))[0]
    prediction = task.decode(outputs, transform.geometry(*photograph.shape[:2]))
    shown = {'': photograph, '-truth': overlay(photograph, example.annotation),
             '-prediction': overlay(photograph, prediction['mask'])}  # fmt: skip
    files = {name: f'mistakes/{rank:02d}{name}.jpg' for name in shown}
    for name, picture in shown.items():
      folder.write_bytes(out / files[name], thumbnail.of(picture, SIDE))
    found.append(
      {
        'file': files[''],
        'truth': files['-truth'],
        'seen': files['-prediction'],
        'name': example.name,
        'iou': float(records['iou'][row]),
        'pixel_accuracy': float(records['pixel_accuracy'][row]),
      }
    )
  folder.write_json(out / 'mistakes.json', found)
