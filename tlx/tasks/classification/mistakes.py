"""Writes the most confident mistakes of a split, with pictures, for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlx.data import decode, transforms
from tlx.explain import gradcam
from tlx.report import folder, thumbnail
from tlx.types import DataSource, GreyScale, Pretrained


def write(
  out: Path, records: Mapping[str, np.ndarray], source: DataSource, names: Sequence[str], *, most: int = 24
) -> None:
  """Writes OUT/mistakes.json, the most confident first, and a thumbnail of each to OUT/mistakes/.

  Args:
    out: the run folder.
    records: of the evaluation.
    source: the split.
    names: of the classes.
    most: maximum number of mistakes.
  """
  found = []
  for rank, i in enumerate(_chosen(records, most)):
    example = source[int(records['index'][i])]
    file = f'mistakes/{rank:02d}.jpg'
    folder.write_bytes(out / file, thumbnail.of(example.image))
    found.append(
      {
        'file': file,
        'name': example.name,
        'label': names[records['label'][i]],
        'prediction': names[records['prediction'][i]],
        'confidence': float(records['confidence'][i]),
        'probability_of_label': float(records['probability_of_label'][i]),
      }
    )
  folder.write_json(out / 'mistakes.json', found)


def add_heat(
  out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained, *, most: int = 24
) -> None:
  """Adds Grad-CAM of the predicted class to each mistake: OUT/mistakes/NN-heat.jpg, called 'heat' in mistakes.json.

  Args:
    out: the run folder, after `write`.
    records: of the evaluation.
    source: the split.
    model: its variables are on the host or on a device of this process, because other processes do not take part.
    most: maximum number of mistakes, as in `write`.
  """
  chosen, transform = _chosen(records, most), transforms.evaluation(model.preprocess)
  images = [transform(_decoded(source[int(records['index'][i])].image, transform.grey)) for i in chosen]
  found = folder.read_json(out / 'mistakes.json')
  for rank, heat in enumerate(gradcam.overlays(model, images, records['prediction'][chosen])):
    found[rank]['heat'] = f'mistakes/{rank:02d}-heat.jpg'
    folder.write_bytes(out / found[rank]['heat'], thumbnail.of(heat))
  folder.write_json(out / 'mistakes.json', found)


def _chosen(records: Mapping[str, np.ndarray], most: int) -> np.ndarray:
  """Rows of wrong predictions, the most confident first."""
  wrong = np.flatnonzero(records['prediction'] != records['label'])
  return wrong[np.argsort(-records['confidence'][wrong], kind='stable')][:most]


def _decoded(image: np.ndarray | bytes, scale: GreyScale | None) -> np.ndarray:
  return decode.decode(image, scale=scale) if isinstance(image, bytes) else image
