"""`tlx predict`: what a model sees in image files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tlx.actions.runs import load_any
from tlx.data import augment, decode, transforms
from tlx.types import TlxError, UsageError


def predict(run: str, images: Sequence[Path], *, top: int = 5, batch_size: int = 16) -> Iterator[dict[str, Any]]:
  """{'image', 'classes': [{'id', 'name', 'probability'}]} of each image, best first, or {'image', 'error'}."""
  if top < 1:
    raise UsageError(f'--top {top}: must be 1 or more')
  files = _files(images)
  model = load_any(run)
  names = model.class_names or [f'class {i}' for i in range(model.module.head.num_classes)]
  transform = transforms.evaluation(model.preprocess)

  @jax.jit
  def probabilities(variables, pixels):
    inputs = augment.normalise(augment.to_float(pixels), model.preprocess.mean, model.preprocess.std)
    return jax.nn.softmax(model.module.apply(variables, inputs))

  batch_size = min(batch_size, len(files))
  for start in range(0, len(files), batch_size):
    part = files[start : start + batch_size]
    decoded = [_decode(file, transform) for file in part]
    pixels = np.zeros((batch_size, model.preprocess.size, model.preprocess.size, 3), np.uint8)
    for i, image in enumerate(decoded):
      if not isinstance(image, str):
        pixels[i] = image
    rows = np.asarray(probabilities(model.variables, pixels))
    for file, image, row in zip(part, decoded, rows):
      yield (
        {'image': str(file), 'error': image}
        if isinstance(image, str)
        else {'image': str(file), 'classes': _top(row, names, top)}
      )


def _files(paths: Sequence[Path]) -> list[Path]:
  """The images named, and those in folders named."""
  if not paths:
    raise UsageError('no images: name files or folders')
  if missing := [str(path) for path in paths if not path.exists()]:
    raise UsageError(f'no such file: {", ".join(missing)}')
  files: list[Path] = []
  for path in paths:
    if path.is_dir():
      found = sorted(
        Path(root) / name
        for root, _, names in os.walk(path)
        for name in names
        if Path(name).suffix.lower() in decode.extensions()
      )
      if not found:
        raise UsageError(f'no images in {path}')
      files += found
    else:
      files.append(path)
  return files


def _decode(file: Path, transform) -> np.ndarray | str:
  """Pixels, or why there are none."""
  try:
    return transform(decode.picture(file.read_bytes()))
  except TlxError as error:
    return str(error)
  except OSError as error:
    return error.strerror or str(error)


def _top(row: np.ndarray, names: Sequence[str], top: int) -> list[dict[str, Any]]:
  order = np.argsort(-row, kind='stable')[:top]
  return [{'id': int(i), 'name': names[i], 'probability': float(row[i])} for i in order]
