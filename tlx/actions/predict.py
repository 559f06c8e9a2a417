"""`tlx predict`: predicts the classes, tags or masks of image files."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tlx import words
from tlx.actions import runs, tasks
from tlx.data import decode, left_out, listing, transforms
from tlx.nn.model import forward_of
from tlx.report import folder, terminal
from tlx.types import Geometry, Pretrained, Task, TlxError, UsageError


def predict(
  run: str,
  images: Sequence[Path],
  *,
  top: int = 5,
  batch_size: int = 16,
  out: Path | None = None,
  scales: Sequence[float] = (),
) -> Iterator[dict[str, Any]]:
  """Predicts image files.

  Args:
    run: a run folder, or a model's name, hub id or folder.
    images: files, and folders to search for images.
    top: number of classes that a classifier names.
    batch_size: images per step.
    out: folder for the pictures of tasks that draw; None writes none.
    scales: for segmentation: photographs are resized by these factors, and windows of the model's input size slide over
      them. () resizes the whole photograph to the model's input instead.

  Yields:
    One dict per image: 'image' and the task's prediction, such as 'classes', with paths in place of pictures; or
    'image' and 'error'.

  Raises:
    UsageError: if there is no such run, model or file, and for wrong options.
  """
  if top < 1:
    raise UsageError(f'--top {top}: must be 1 or more')
  files = _files(images)
  model = runs.load_any(run)
  task, transform = runs.task_of(model), transforms.evaluation(model.preprocess)
  forward = forward_of(model)
  if scales:
    yield from _by_windows(model, forward, files, top, out, scales)
    return
  batch_size = min(batch_size, len(files))
  for start in range(0, len(files), batch_size):
    part = files[start : start + batch_size]
    decoded = [_decode(file, transform) for file in part]
    pixels = np.zeros((batch_size, *model.preprocess.shape, 3), np.uint8)
    for i, found in enumerate(decoded):
      if not isinstance(found, str):
        pixels[i] = found[1]
    rows = np.asarray(forward(pixels))
    for file, found, row in zip(part, decoded, rows):
      if isinstance(found, str):
        yield {'image': str(file), 'error': found}
      else:
        photograph, _, geometry = found
        yield {'image': str(file), **_written(task, photograph, task.decode(row, geometry, top), file, out)}


def _by_windows(
  model: Pretrained, forward: Callable, files: Sequence[Path], top: int, out: Path | None, scales: Sequence[float]
) -> Iterator[dict[str, Any]]:
  task, transform = runs.task_of(model), transforms.evaluation(model.preprocess)
  check_windows(task, scales)
  for file in files:
    found = _decode(file, transform)
    if isinstance(found, str):
      yield {'image': str(file), 'error': found}
      continue
    photograph = found[0]
    whole = task.whole(lambda x: np.asarray(forward(x)), photograph, model.preprocess.shape, scales)
    height, width = photograph.shape[:2]
    prediction = task.decode(whole, Geometry(height, width, 0, 0, height, width), top)
    yield {'image': str(file), **_written(task, photograph, prediction, file, out)}


def check_windows(task: Task, scales: Sequence[float]) -> None:
  """Checks the scales of sliding windows.

  Args:
    task: of the model.
    scales: factors of the photograph's size.

  Raises:
    UsageError: for scales that are not above 0, and for a task without windows.
  """
  problems = [f'--scales {scale:g}: must be above 0' for scale in scales if not scale > 0]
  if not hasattr(task, 'whole'):
    problems.append(f'--scales: {tasks.name_of(task)} judges the whole picture at once; leave it out')
  words.refuse(problems)


def _written(task, photograph: np.ndarray, prediction: dict[str, Any], file: Path, out: Path | None) -> dict[str, Any]:
  """Writes the pictures of a prediction, and replaces them by their paths. Without `out` it drops them."""
  pictures = {name: value for name, value in prediction.items() if isinstance(value, np.ndarray)}
  plain = {name: value for name, value in prediction.items() if name not in pictures}
  if out is None:
    return plain
  if (drawn := task.draw(photograph, prediction)) is not None:
    pictures['overlay'] = drawn
  for name, picture in pictures.items():
    plain[name] = str(out / f'{file.stem}-{name}.png')
    folder.write_bytes(plain[name], _png(picture))
  return plain


def _png(picture: np.ndarray) -> bytes:
  encoded = io.BytesIO()
  Image.fromarray(picture).save(encoded, 'PNG')
  return encoded.getvalue()


def _files(paths: Sequence[Path]) -> list[Path]:
  """The given files, and the images in the given folders; warns of files in these that are not read."""
  if not paths:
    raise UsageError('no images: name files or folders')
  if missing := [str(path) for path in paths if not path.exists()]:
    raise UsageError(f'no such file: {", ".join(missing)}')
  files: list[Path] = []
  for path in paths:
    if not path.is_dir():
      files.append(path)
      continue
    found = listing.look(path)
    unread = [f'{path}: {line}' for line in left_out.unread(found.left_out)]
    if not (images := found.images(str(path))):
      raise UsageError('\n'.join([f'no images in {path}', *unread]))
    files += map(Path, sorted(images))
    terminal.Console().warn(*unread)
  return files


def _decode(file: Path, transform: transforms.Evaluation) -> tuple[np.ndarray, np.ndarray, Geometry] | str:
  """(photograph, input of the model, geometry), or the reason if the file cannot be read."""
  try:
    picture = decode.picture(decode.read(file), scale=transform.grey)
    return np.asarray(picture), transform(picture), transform.geometry(picture.height, picture.width)
  except TlxError as error:
    return str(error)
  except OSError as error:
    return error.strerror or str(error)
