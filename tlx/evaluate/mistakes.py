"""The most confident mistakes of a split, with their pictures, for a person to look at."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tlx.data import decode
from tlx.report import folder
from tlx.types import DataSource


def write(
  out: Path, records: Mapping[str, np.ndarray], source: DataSource, names: Sequence[str], *, most: int = 24
) -> None:
  """Writes OUT/mistakes.json, most confident first, and a thumbnail of each in OUT/mistakes/."""
  wrong = np.flatnonzero(records['prediction'] != records['label'])
  chosen = wrong[np.argsort(-records['confidence'][wrong], kind='stable')][:most]
  found = []
  for rank, i in enumerate(chosen):
    example = source[int(records['index'][i])]
    file = f'mistakes/{rank:02d}.jpg'
    folder.write_bytes(out / file, thumbnail(example.image))
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


def thumbnail(image: np.ndarray | bytes, side: int = 192) -> bytes:
  """A JPEG of at most `side` pixels."""
  pixels = decode.decode(image) if isinstance(image, bytes) else image
  picture = Image.fromarray(pixels)
  picture.thumbnail((side, side))
  encoded = io.BytesIO()
  picture.save(encoded, 'JPEG', quality=85)
  return encoded.getvalue()
