"""Reads images for the tools of `tlx/explain`, and writes their results as PNG, HTML and JSON files."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tlx.data import decode, pipeline, transforms
from tlx.data.split import sample
from tlx.explain import pictures
from tlx.explain.outputs import Explanation
from tlx.report import folder
from tlx.report.terminal import Console
from tlx.types import Batch, DataSource, GreyScale, Preprocess, TlxError, UsageError

BATCH = 32  # images per step


def photograph(path: Path, preprocess: Preprocess) -> np.ndarray:
  """Reads an image file and preprocesses it as in evaluation.

  Args:
    path: of the file.
    preprocess: the model's.

  Returns:
    uint8 [s, s, 3].

  Raises:
    UsageError: if the file is not an image.
  """
  return transforms.evaluation(preprocess)(picture(path, preprocess.grey))


def picture(path: Path, scale: GreyScale | None = None) -> np.ndarray:
  """Reads an image file at its own size: uint8 [h, w, 3].

  Raises:
    UsageError: if the file is not an image.
  """
  if path.is_dir() or not path.exists():
    raise UsageError(f'{path} is a folder; choose one image' if path.is_dir() else f'no such file: {path}')
  try:
    return decode.decode(decode.read(path), scale=scale)
  except TlxError as error:
    raise UsageError(f'{path}: {error}') from None


def batches(source: DataSource, preprocess: Preprocess, most: int, seed: int) -> tuple[Iterator[Batch], int]:
  """Makes evaluation batches of a split, or of a random sample of it.

  Args:
    source: the split.
    preprocess: the model's.
    most: maximum number of images.
    seed: of the sample.

  Returns:
    The batches, and how many there are. `index` in a batch is the position in the whole split; -1 marks padding.
  """
  chosen = sample(source, most, seed)
  size = min(BATCH, len(chosen))
  found = pipeline.eval_batches(chosen, batch_size=size, transform=transforms.evaluation(preprocess))
  padded = np.append(chosen.indices, -1).astype(np.int32)  # the padding's index -1 selects this last entry
  return ({**batch, 'index': padded[batch['index']]} for batch in found), -(-len(chosen) // size)


def place(out: Path | None, model: str, tool: str, *subjects: str) -> Path:
  """Chooses the output folder: `out` itself, or RUN/explain/NAME, or explained/MODEL-NAME for a pretrained model.

  Args:
    out: the user's choice, or None.
    model: a run folder, or a pretrained model's name.
    tool: name of the tool.
    subjects: words that distinguish this result from others of the tool.

  Returns:
    A path that is a folder or does not exist.

  Raises:
    UsageError: if a file is in the way.
  """
  name = '-'.join([tool, *(re.sub(r'[^\w.]+', '_', subject) for subject in subjects)])
  if out is None:
    is_run = (Path(model) / 'experiment.json').is_file()
    out = Path(model) / 'explain' / name if is_run else Path('explained') / f'{Path(model).name}-{name}'
  if blocked := next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None):
    raise UsageError(f'--out {out}: {blocked} is a file; choose a folder')
  return out


def save(out: Path, found: Explanation) -> list[Path]:
  """Writes OUT/NAME.png for each picture, OUT/NAME.html for each page, and OUT/figures.json.

  Returns:
    The paths of the files.
  """
  drawn = {name: picture() if callable(picture) else picture for name, picture in found.pictures.items()}
  contents = {f'{name}.png': pictures.png(picture) for name, picture in drawn.items()}
  contents |= {f'{name}.html': page.encode() for name, page in found.pages.items()}
  for name, content in contents.items():
    folder.write_bytes(out / name, content)
  folder.write_json(out / 'figures.json', found.figures)
  return [out / name for name in (*contents, 'figures.json')]


def follow(what: str, work: Iterable[Explanation], show: Console) -> Explanation:
  """Runs a tool to its end and shows its progress.

  Args:
    what: label of the progress bar.
    work: yields results.
    show: the console.

  Returns:
    The last result; after Ctrl-C, the best so far.

  Raises:
    KeyboardInterrupt: if the user presses Ctrl-C before the first result.
  """
  found = None
  with show.work(what) as update:
    try:
      for found in work:
        numbers = {key: value for key, value in found.figures.items() if isinstance(value, float)}
        update(found.done, found.total, numbers)
    except KeyboardInterrupt:
      if found is None:
        raise
      show.warn(f'interrupted after {found.done} of {found.total}; the result so far is kept')
  return found
