"""TensorFlow Datasets without TensorFlow: tfds:NAME[/CONFIG][:SPLITS] reads data that was prepared as array_record.

SPLITS is TRAIN,VALIDATION[,TEST] in tfds's slicing language, such as `tfds:cifar10:train[:90%],train[90%:],test`. By
default it is train and validation; without validation it is train and test; without both, a seeded part of train is
held back. The data lie in TFDS_DATA_DIR (default ~/tensorflow_datasets). Preparing a data set needs no TensorFlow if
its builder yields encoded images, but most builders of the catalogue need it.
"""

import pathlib
import re
from typing import Any

import numpy as np

from tlx import words
from tlx.data.split import Labelled, Subset, class_counts, holdout
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, Example, TlxError, UsageError

CHUNK = 1000  # records to read at once
SHARE = 0.2  # share of train that is held back, if train is the only split
KEYS = ('image', 'label')
GLYPHS = frozenset(
  {'mnist', 'emnist', 'kmnist', 'svhn_cropped', 'omniglot', 'cmaterdb'}
)  # a mirrored image has another meaning
PREPARE = 'pip install "tlx[tfds-prepare]"'


class TfdsSource(Labelled):
  """One split. Labels are read once at the start; a worker decodes an image when it is needed."""

  def __init__(self, records: Any, name: str, folder: pathlib.Path):
    self.records, self.name, self.folder = records, name, folder
    chunks = (range(i, min(i + CHUNK, len(records))) for i in range(0, len(records), CHUNK))
    labels = (record['label'] for chunk in chunks for record in records.__getitems__(list(chunk)))
    self.labels = np.fromiter(labels, np.int32, len(records))

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Example:
    return Example(self.records[index]['image'], int(self.labels[index]), f'{self.name}/{index}')

  def fingerprint(self) -> str | None:
    found = fingerprint(self.folder, sorted(path for path in self.folder.rglob('*') if path.is_file()))
    return found and f'{self.name} {found}'


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if there is one.

  Args:
    argument: NAME[/CONFIG][:SPLITS].
    seed: of the split, if examples are held back.

  Returns:
    The data set.

  Raises:
    UsageError: if the data set is unknown, is not prepared, lacks the features 'image' and 'label', or lacks a split.
  """
  name, _, spec = argument.partition(':')
  if not name:
    raise UsageError("data set 'tfds' needs a name; write --data tfds:NAME, such as tfds:cifar10")
  builder = _builder(name)
  names = _features(builder, name)
  splits = {}
  for split, part in _parts(spec, builder, name).items():
    splits[split] = TfdsSource(_read(builder, part, name), f'{name}/{part}', pathlib.Path(builder.data_dir))
  if 'validation' not in splits:
    kept, held = holdout(splits['train'].labels, share=SHARE, seed=seed)
    splits = {'train': Subset(splits['train'], kept), 'validation': Subset(splits['train'], held)}
  info = DatasetInfo(
    name=name,
    class_names=names,
    counts={split: class_counts(source.labels, len(names)) for split, source in splits.items()},
    resolution=_resolution(splits['train']),
    source=f'tensorflow_datasets {builder.info.full_name}',
    license=getattr(builder.info.redistribution_info, 'license', '') or 'unknown',
    augment='glyph' if builder.name in GLYPHS else 'photo',
  )
  return Dataset(info, splits)


def _builder(name: str) -> Any:
  try:
    import importlib_resources  # noqa: F401 - tfds 4.9.10 needs it and does not declare it
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UsageError(f'data set \'tfds\' needs {error.name}; run: pip install "tlx[tfds]"') from error
  try:
    builder = tfds.builder(name)
  except tfds.core.DatasetNotFoundError as error:
    known = re.findall(r'^\s*- (\w+)$', str(error), re.MULTILINE)  # tfds.list_builders() would import TensorFlow
    close = words.near(name, known)
    hint = f'did you mean {" or ".join(close)}?' if close else 'see https://www.tensorflow.org/datasets/catalog'
    raise UsageError(f'no tfds data set {name!r}; {hint}') from error
  except (ImportError, ValueError) as error:
    raise UsageError(f'tfds cannot open {name!r}: {_one_line(error)}; preparing needs TensorFlow: {PREPARE}') from error
  if not builder.info.splits:
    raise UsageError(
      f'tfds data set {name!r} is not prepared in {builder.data_dir}; preparing needs TensorFlow, reading does not; '
      f'run: {PREPARE} and then: tfds build {name} --file_format=array_record, or set TFDS_DATA_DIR to its folder'
    )
  return builder


def _features(builder: Any, name: str) -> tuple[str, ...]:
  features = builder.info.features
  if missing := [key for key in KEYS if key not in features]:
    raise UsageError(
      f'tfds data set {name!r} has no feature {" and ".join(missing)}; its features: {", ".join(features)}'
    )
  if not hasattr(features['label'], 'names'):
    raise UsageError(f"feature 'label' of tfds data set {name!r} is not a ClassLabel but {features['label']!r}")
  return tuple(features['label'].names)


def _parts(spec: str, builder: Any, name: str) -> dict[str, str]:
  available = tuple(builder.info.splits)
  if not spec:
    if 'train' not in available:
      have = ', '.join(available)
      raise UsageError(f'tfds data set {name!r} has no split train, only {have}; write tfds:{name}:TRAIN,VALIDATION')
    validation = next((s for s in ('validation', 'test') if s in available), None)
    test = 'test' if validation == 'validation' and 'test' in available else None
    parts = {'train': 'train', 'validation': validation, 'test': test}
    return {split: part for split, part in parts.items() if part}
  parts = [part.strip() for part in spec.split(',')]
  if not 2 <= len(parts) <= 3 or not all(parts):
    raise UsageError(f'splits {spec!r} of tfds data set {name!r}: write TRAIN,VALIDATION or TRAIN,VALIDATION,TEST')
  unknown = [part for part in parts if part.partition('[')[0] not in available]
  if unknown:
    raise UsageError(f'tfds data set {name!r} has no split {" or ".join(unknown)}; available: {", ".join(available)}')
  return dict(zip(('train', 'validation', 'test'), parts, strict=False))


def _read(builder: Any, part: str, name: str) -> Any:
  import tensorflow_datasets as tfds

  try:
    return builder.as_data_source(split=part, decoders={'image': tfds.decode.SkipDecoding()})
  except NotImplementedError as error:  # the data are tfrecord files, which have no random access
    raise UsageError(
      f'tfds data set {name!r} is prepared as {builder.info.file_format.value} in {builder.data_dir}, '
      f'which has no random access; run: {PREPARE} and then: '
      f'tfds convert_format --root_data_dir={builder.data_dir} --out_file_format=array_record'
    ) from error
  except (ValueError, OSError) as error:
    raise UsageError(f'split {part!r} of tfds data set {name!r}: {_one_line(error)}') from error


def _resolution(source: Any, sample: int = 50) -> tuple[int, int]:
  from tlx.data import decode

  shapes = []
  for index in np.linspace(0, len(source) - 1, min(sample, len(source))).astype(int).tolist():
    try:
      shapes.append(decode.decode(source[index].image).shape[:2])
    except TlxError:
      continue
  return tuple(np.median(shapes, axis=0).astype(int).tolist()) if shapes else (0, 0)


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]
