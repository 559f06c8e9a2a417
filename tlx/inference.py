"""What a finished run, or a pretrained model, is used for: evaluate, predict, export; and what models there are."""

import difflib
import fnmatch
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx import catalog, pretrained, weights
from tlx.cost import flops
from tlx.data import augment, decode, pipeline, transforms
from tlx.evaluate import exact
from tlx.tasks.classification import Classification
from tlx.train import placement
from tlx.train.step import Recipe, eval_step
from tlx.types import Dataset, Preprocess, Pretrained, TlxError, UsageError


def run_folder(path: str | Path) -> Path:
  """The folder of a finished run. Raises UsageError for what is none, saying what it is instead."""
  path = Path(path)
  if not path.is_dir():
    near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, near, n=3)
    hint = f': did you mean {" or ".join(close)}?' if close else '; `tlx finetune` makes one below runs/'
    raise UsageError(f'no run folder {path}{hint}')
  if not (path / 'experiment.json').exists():
    raise UsageError(f'{path} is no run folder: it has no experiment.json; `tlx finetune --out {path}` would make one')
  if not (path / 'model' / 'config.json').exists():
    raise UsageError(f'{path} is not finished: run its `tlx finetune` command again to resume it')
  return path


def load_run(path: str | Path) -> Pretrained:
  """The trained model of a run, with its preprocessing and class names."""
  return pretrained.load(str((run_folder(path) / 'model').absolute()))


def first_at_hand(*names: str) -> str:
  """The first of these variants whose weights are on this machine; the last where none is."""
  known = [(name, catalog.variant(name).checkpoint) for name in names]
  return next((name for name, at in known if at and weights.at_hand(at.location, at.revision)), names[-1])


def load_any(name: str) -> Pretrained:
  """A run's model, or a pretrained one by its name, hub id or folder; a folder that has its own run record is a run."""
  folder = Path(name)
  if name in catalog.variants() or name.startswith('hf-hub:'):
    return pretrained.load(name)
  if (folder / 'config.json').is_file() and not (folder / 'experiment.json').exists():
    return pretrained.load(str(folder.absolute()))
  close = difflib.get_close_matches(name, catalog.list_models(), n=3, cutoff=0.8)
  if close and not folder.exists():
    raise UsageError(f'no run folder and no model {name!r}: did you mean {" or ".join(close)}?')
  return load_run(name)


def run_record(run: str | Path) -> dict[str, Any]:
  """The options of a finished run, none of them open."""
  return json.loads((run_folder(run) / 'experiment.json').read_text())['experiment']


def data_of(name: str | Path, data: str | None, split: str) -> Dataset:
  """The data set of that name, or of a run its own; raises UsageError where there is none, or no such split."""
  is_run = (Path(name) / 'experiment.json').exists()
  if data is None and not is_run:
    raise UsageError(f'{name} has no data set of its own: name one with --data')
  record = run_record(name) if is_run else {'seed': 0}
  found = catalog.dataset(data or record['data'], seed=record['seed'])
  if split not in found.splits:
    raise UsageError(f'{found.info.name} has no split {split!r}{catalog.suggest(split, found.splits)}')
  return found


def check_classes(data: Dataset, name: str | Path, model: Pretrained) -> None:
  """Raises UsageError where a data set's classes are not the model's, in the same order."""
  there, here = list(data.info.class_names), list(model.class_names)
  only = lambda a, b: ', '.join(sorted(set(a) - set(b))[:10]) or 'none'
  if there != here:
    raise UsageError(
      f'{data.info.name} has other classes than {name}: only there {only(there, here)}; only here {only(here, there)}'
    )


def evaluate(
  run: Path, *, data: str | None = None, split: str = 'validation', batch_size: int | None = None
) -> dict[str, Any]:
  """The numbers of result.json for a run on a split of its own data set or of another with the same classes."""
  if batch_size is not None and batch_size < 1:
    raise UsageError(f'--batch-size {batch_size}: must be above 0')
  model = load_run(run)
  found, record = data_of(run, data, split), run_record(run)
  check_classes(found, run, model)
  place = placement.make('jit')
  size = -(-(batch_size or record['batch_size']) // jax.device_count()) * jax.device_count()
  recipe = Recipe(
    model.module, Classification(len(model.class_names)), model.preprocess, dtype=jnp.dtype(record['dtype'])
  )
  batches = pipeline.eval_batches(
    found.splits[split], batch_size=size, transform=transforms.evaluation(model.preprocess)
  )
  step = place.evaluate(eval_step(recipe))
  done = exact.evaluate(step, place.put_state(model.variables), batches, place.put_batch, size=len(found.splits[split]))
  return done.numbers()


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


def export(run: Path, out: Path, layout: str | None = None) -> Path:
  """Writes the run's model to `out` in a layout of its family; by default its source's own, or else timm's."""
  known = {name for family in catalog.names('models') for name in catalog.find('models', family).LAYOUTS}
  if layout is not None and layout not in known:
    raise UsageError(f'no layout {layout!r}{catalog.suggest(layout, sorted(known))}')
  model = load_run(run)
  if blocked := next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None):
    raise UsageError(f'--out {out}: {blocked} is a file; choose a folder')
  return pretrained.export(out, model, layout)


def model_table(
  pattern: str = '*', *, sort: str = 'name', max_parameters: float | None = None, license: str | None = None
) -> list[dict[str, Any]]:
  """One row a model: what its family states of it, its licence, and where its weights come from; None = unknown.

  sort: a key of the rows; the most accurate comes first, else the smallest, and what is unknown last. license: a shell
  pattern, whatever the case. Raises UsageError where no model fits.
  """
  names = catalog.list_models(pattern)
  if not names:
    raise UsageError(f'no model fits {pattern!r}{catalog.suggest(pattern, catalog.list_models())}')
  rows = [_model_row(catalog.variant(name)) for name in names]
  if license:
    known = {row['license'] or 'none' for row in rows}
    rows = [row for row in rows if fnmatch.fnmatch((row['license'] or 'none').lower(), license.lower())]
    if not rows:
      raise UsageError(f'no model fits --license {license}{catalog.suggest(license, sorted(known))}')
  if max_parameters is not None:
    least = min(row['parameters'] or math.inf for row in rows)
    rows = [row for row in rows if (row['parameters'] or math.inf) <= max_parameters]
    if not rows:
      raise UsageError(f'no model fits --max-parameters {max_parameters:,.0f}; the smallest here has {least:,}')
  return sorted(rows, key=lambda row: _rank(row, sort))


def layer_table(name: str) -> list[dict[str, Any]]:
  """One row a layer of a model, in order, the head last: its output for one image of the native size, and its cost."""
  variant = catalog.variant(name)
  costs = flops.layers(pretrained.build(variant, 1000), _model_row(variant)['size'])
  return [
    {'layer': c.name, 'output': c.shape, 'parameters': c.parameters, 'gmacs': c.multiply_adds / 1e9} for c in costs
  ]


def _model_row(variant: catalog.Variant) -> dict[str, Any]:
  figures, checkpoint = getattr(variant.family, 'FIGURES', {}).get(variant.name), variant.checkpoint
  native = checkpoint.preprocess.size if checkpoint else Preprocess().size
  return {
    'name': variant.name,
    'parameters': figures and figures.parameters,
    'gmacs': figures and figures.gmacs,
    'size': figures.size if figures else getattr(variant.config, 'size', native),
    'top1': figures and figures.top1,
    'license': checkpoint and checkpoint.license,
    'source': checkpoint and checkpoint.location,
  }


def _rank(row: Mapping[str, Any], key: str) -> tuple:
  """Of a row among others: by the value, then by the name with its numbers read as numbers."""
  value = row[key] if key != 'name' else 0
  name = [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', row['name'])]
  return value is None, -(value or 0) if key == 'top1' else value or 0, name


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
