"""Between the tools of `tlx/explain` and a person's files: photographs in, PNGs and a JSON of the figures out."""

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
from tlx.types import Batch, DataSource, Preprocess, TlxError, UsageError

BATCH = 32  # images


def photograph(path: Path, preprocess: Preprocess) -> np.ndarray:
  """An image file as the model sees it, uint8 [s, s, 3]. Raises UsageError for what is none."""
  return transforms.evaluation(preprocess)(picture(path))


def picture(path: Path) -> np.ndarray:
  """All of an image file, uint8 [h, w, 3]. Raises UsageError for what is none."""
  if not path.is_file():
    raise UsageError(f'{path} is a folder; name one image' if path.is_dir() else f'no such file: {path}')
  try:
    return np.asarray(decode.picture(path.read_bytes()))
  except TlxError as error:
    raise UsageError(f'{path}: {error}') from None


def batches(source: DataSource, preprocess: Preprocess, most: int, seed: int) -> tuple[Iterator[Batch], int]:
  """Batches of a split, or of so many of its examples drawn at random, as the model sees them; and their number.

  `index` is an example's position in the split all the same.
  """
  chosen = sample(source, most, seed)
  size = min(BATCH, len(chosen))
  found = pipeline.eval_batches(chosen, batch_size=size, transform=transforms.evaluation(preprocess))
  padded = np.append(chosen.indices, -1).astype(np.int32)  # where -1 leads
  return ({**batch, 'index': padded[batch['index']]} for batch in found), -(-len(chosen) // size)


def place(out: Path | None, model: str, tool: str, *subjects: str) -> Path:
  """Where the files go unless told: below the run, or below explained/ for a pretrained model."""
  name = '-'.join([tool, *(re.sub(r'[^\w.]+', '_', subject) for subject in subjects)])
  if out is None:
    is_run = (Path(model) / 'experiment.json').is_file()
    out = Path(model) / 'explain' / name if is_run else Path('explained') / f'{Path(model).name}-{name}'
  if blocked := next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None):
    raise UsageError(f'--out {out}: {blocked} is a file; choose a folder')
  return out


def save(out: Path, found: Explanation) -> list[Path]:
  """Writes OUT/NAME.png of each picture, OUT/NAME.html of each page and OUT/figures.json; returns their paths."""
  drawn = {name: picture() if callable(picture) else picture for name, picture in found.pictures.items()}
  contents = {f'{name}.png': pictures.png(picture) for name, picture in drawn.items()}
  contents |= {f'{name}.html': page.encode() for name, page in found.pages.items()}
  for name, content in contents.items():
    folder.write_bytes(out / name, content)
  folder.write_json(out / 'figures.json', found.figures)
  return [out / name for name in (*contents, 'figures.json')]


def follow(what: str, work: Iterable[Explanation], show: Console) -> Explanation:
  """The last of what a tool yields, or what it had when the user pressed Ctrl-C; before the first there is nothing."""
  found = None
  with show.work(what) as update:
    try:
      for found in work:
        numbers = {key: value for key, value in found.figures.items() if isinstance(value, float)}
        update(found.done, found.total, numbers)
    except KeyboardInterrupt:
      if found is None:
        raise
      show.warn(f'interrupted after {found.done} of {found.total}; what was found so far is kept')
  return found
