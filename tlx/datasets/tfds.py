"""TensorFlow Datasets without TensorFlow: tfds:NAME[/CONFIG][@FEATURE][:SPLITS] reads prepared array_record files.

FEATURE is what the model learns to predict: a ClassLabel, or a segmentation mask (an image of class numbers), such as
`tfds:oxford_iiit_pet@segmentation_mask`. The default is the feature `label`. In a data set without `label`, the default
is the only image besides `image`.

SPLITS is TRAIN,VALIDATION[,TEST] in tfds's slicing language, such as `tfds:cifar10:train[:90%],train[90%:],test`. The
default is the splits train, validation and test. Without validation, 'test' is used for validation. Without both, a
random 20 % of train are held back for validation.

The data are in the folder TFDS_DATA_DIR (default ~/tensorflow_datasets). Preparing a data set needs no TensorFlow if
its builder yields encoded images, but most builders of the catalogue need it.
"""

import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tlx import words
from tlx.data import dense_split, mask_classes, masks
from tlx.data.mask_classes import Legend
from tlx.data.split import Labelled, Subset, class_counts, holdout
from tlx.files import fingerprint
from tlx.types import Dataset, DatasetInfo, DataSource, Example, TlxError, UsageError

CHUNK = 1000  # number of records to read at once
IMAGE, LABEL = 'image', 'label'
SHOWN = 20  # maximum number of problems in a message
# {data set: {class: value}}, for builders that do not name the classes of their masks
MASK_CLASSES = {'oxford_iiit_pet': {'pet': 1, 'background': 2, 'border': 3}}
GLYPHS = frozenset(
  {'mnist', 'emnist', 'kmnist', 'svhn_cropped', 'omniglot', 'cmaterdb'}
)  # a mirrored image has another meaning
PREPARE = words.install('tfds-prepare')


class TfdsSource(Labelled):
  """One split with class labels. It reads all labels at the start, and an encoded image when an example is needed."""

  def __init__(self, records: Any, feature: str, name: str, folder: pathlib.Path):
    self.records, self.name, self.folder = records, name, folder
    self.labels = np.fromiter(_every(records, feature), np.int32, len(records))

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Example:
    return Example(self.records[index][IMAGE], int(self.labels[index]), f'{self.name}/{index}')

  def fingerprint(self) -> str | None:
    return _fingerprint(self.folder, self.name)


class TfdsMasks(DataSource):
  """One split with masks. It counts their pixels at the start, and reads an example when it is needed."""

  def __init__(self, records: Any, feature: str, name: str, folder: pathlib.Path):
    self.records, self.feature, self.name, self.folder = records, feature, name, folder
    self.found = [masks.look(io.BytesIO(encoded)) for encoded in _every(records, feature)]
    self.legend = Legend((), {})  # `load` sets it after it has counted all splits

  def __len__(self) -> int:
    return len(self.found)

  def __getitem__(self, index: int) -> Example:
    return Example(self.records[index][IMAGE], self.annotation(index), f'{self.name}/{index}')

  def annotation(self, index: int) -> np.ndarray:
    """Reads the mask uint8 [h, w]: class indices, or IGNORE. Raises TlxError for a value without a class."""
    return self.legend.decode(self.records[index][self.feature])

  def size(self, index: int) -> tuple[int, int]:
    """Height and width of the mask, pixels."""
    return self.found[index].size

  def fingerprint(self) -> str | None:
    return _fingerprint(self.folder, f'{self.name} {self.feature} {self.legend}')


def _every(records: Any, feature: str) -> Iterator[Any]:
  """Yields one feature of every record, in order."""
  for start in range(0, len(records), CHUNK):
    for record in records.__getitems__(list(range(start, min(start + CHUNK, len(records))))):
      yield record[feature]


def _fingerprint(folder: pathlib.Path, text: str) -> str | None:
  """The text and a hash of the names, sizes and times of a prepared data set's files; None if they are not readable."""
  found = fingerprint(folder, sorted(path for path in folder.rglob('*') if path.is_file()))
  return found and f'{text} {found}'


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' and 'validation', and 'test' if there is one.

  Args:
    argument: NAME[/CONFIG][@FEATURE][:SPLITS], see the top of this file.
    seed: random seed of the split, if examples are held back.

  Returns:
    The data set.

  Raises:
    UsageError: if tensorflow_datasets is not installed, if the data set is unknown or not prepared, if it lacks the
      feature or a split, and for masks that cannot be read or contain values without a class.
  """
  named, _, spec = argument.partition(':')
  name, _, feature = named.partition('@')
  if not name:
    raise UsageError("data set 'tfds' needs a name; write --data tfds:NAME, such as tfds:cifar10")
  builder = _builder(name)
  feature = _feature(builder, name, feature)
  dense = feature not in _labels(builder)
  splits = {}
  for split, part in _parts(spec, builder, name).items():
    records = _read(builder, part, name, (IMAGE, feature) if dense else (IMAGE,))
    made = TfdsMasks if dense else TfdsSource
    splits[split] = made(records, feature, f'{name}/{part}', pathlib.Path(builder.data_dir))
  names, splits, counts = (_with_masks if dense else _with_labels)(builder, feature, splits, seed)
  info = DatasetInfo(
    name=name,
    class_names=names,
    counts=counts,
    task='segmentation' if dense else 'classification',
    images={split: len(source) for split, source in splits.items()} if dense else {},
    resolution=_resolution(splits['train']),
    source=f'tensorflow_datasets {builder.info.full_name}',
    license=getattr(builder.info.redistribution_info, 'license', '') or 'unknown',
    augment='glyph' if builder.name in GLYPHS else 'photo',
  )
  return Dataset(info, splits)


def _builder(name: str) -> Any:
  """The builder of a prepared data set. Raises UsageError if there is none."""
  try:
    import importlib_resources  # noqa: F401 - tfds 4.9.10 needs it and does not declare it
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise UsageError(f"data set 'tfds' needs {error.name}; run: {words.install('tfds')}") from error
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


def _labels(builder: Any) -> list[str]:
  """Names of the features that are class labels."""
  features = builder.info.features
  return [key for key in features if hasattr(features[key], 'names') and not _is_image(features[key])]


def _is_image(feature: Any) -> bool:
  """Whether a feature is an encoded image [h, w, c]."""
  return hasattr(feature, 'encoding_format') and len(feature.shape) == 3


def _feature(builder: Any, name: str, asked: str) -> str:
  """The feature to predict: the one asked for, or `label`, or the only image besides `image`. Raises UsageError."""
  features = builder.info.features
  others = [key for key in features if key != IMAGE and _is_image(features[key])]
  chosen = asked or (others[0] if LABEL not in features and len(others) == 1 else LABEL)
  if missing := [key for key in (IMAGE, chosen) if key not in features]:
    raise UsageError(
      f'tfds data set {name!r} has no feature {" and ".join(missing)}; its features: {", ".join(features)}'
    )
  if chosen not in _labels(builder) + others:
    able = ', '.join(f'tfds:{name}@{key}' for key in _labels(builder) + others)
    raise UsageError(
      f'feature {chosen!r} of tfds data set {name!r} is neither a ClassLabel nor an image of class numbers but '
      f'{features[chosen]!r}' + (f'; write {able}' if able else '')
    )
  return chosen


def _with_labels(builder: Any, feature: str, splits: dict, seed: int) -> tuple[tuple[str, ...], dict, dict]:
  """The class names, the splits with validation, and the number of examples of each class."""
  names = tuple(builder.info.features[feature].names)
  if 'validation' not in splits:
    kept, held = holdout(splits['train'].labels, share=dense_split.SHARE, seed=seed)
    splits = {'train': Subset(splits['train'], kept), 'validation': Subset(splits['train'], held)}
  return names, splits, {split: class_counts(source.labels, len(names)) for split, source in splits.items()}


def _with_masks(builder: Any, feature: str, splits: dict, seed: int) -> tuple[tuple[str, ...], dict, dict]:
  """The class names, the splits with validation, and the number of pixels of each class."""
  held = {f'{s.name}/{i}': found for s in splits.values() for i, found in enumerate(s.found)}
  problems = [f'mask {name}: {found.reason}' for name, found in held.items() if found.reason]
  legend = _legend(builder, feature, held)
  problems += [f'{line} in {", ".join(legend.class_names)}' for line in masks.unknown(held, legend.known())]
  if problems:
    raise UsageError('\n'.join(problems[:SHOWN]))
  for source in splits.values():
    source.legend = legend
  counts = {split: legend.counts(source.found) for split, source in splits.items()}
  if 'validation' not in splits:
    parts = dict(zip(('train', 'validation'), dense_split.holdout(counts['train'], share=dense_split.SHARE, seed=seed)))
    splits = {split: Subset(splits['train'], part) for split, part in parts.items()}
    counts = {split: counts['train'][part] for split, part in parts.items()}
  return legend.class_names, splits, {split: tuple(found.sum(axis=0).tolist()) for split, found in counts.items()}


def _legend(builder: Any, feature: str, held: Mapping[str, masks.Found]) -> Legend:
  """The classes of the masks: from `MASK_CLASSES`, or else from their values and the names that the builder knows."""
  classes = MASK_CLASSES.get(builder.name)
  if classes:
    return Legend(tuple(classes), {value: i for i, value in enumerate(classes.values())})
  names = getattr(builder.info.features[feature], 'names', None) or ()
  return mask_classes.of_values(masks.pixels(held.values()), names)


def _parts(spec: str, builder: Any, name: str) -> dict[str, str]:
  """{our split: its part in tfds's slicing language}. Raises UsageError for a split that the data set lacks."""
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


def _read(builder: Any, part: str, name: str, encoded: Sequence[str]) -> Any:
  """The records of a part; the features `encoded` stay encoded files. Raises UsageError."""
  import tensorflow_datasets as tfds

  try:
    return builder.as_data_source(split=part, decoders={key: tfds.decode.SkipDecoding() for key in encoded})
  except NotImplementedError as error:  # the data are tfrecord files, which have no random access
    raise UsageError(
      f'tfds data set {name!r} is prepared as {builder.info.file_format.value} in {builder.data_dir}, '
      f'which has no random access; run: {PREPARE} and then: '
      f'tfds convert_format --root_data_dir={builder.data_dir} --out_file_format=array_record'
    ) from error
  except (ValueError, OSError) as error:
    raise UsageError(f'split {part!r} of tfds data set {name!r}: {_one_line(error)}') from error


def _resolution(source: Any, sample: int = 50) -> tuple[int, int]:
  """Median height and width of a sample of the images, pixels; (0, 0) if none can be decoded."""
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
