"""The nouns every other file speaks of; no logic lives here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

Params = Mapping[str, Any]  # nested dict of arrays; leaves are named 'backbone/stem/conv/kernel'
Variables = Mapping[str, Params]  # {'params': ..., 'batch_stats': ...}
# image uint8 [b, h, w, 3], label int32 [b], mask bool [b]: False = padding, aspect float32 [b]: width / height
Batch = Mapping[str, Any]


class TlxError(Exception):
  """A problem the user can mend: one clear line, shown without a traceback."""


class UsageError(TlxError, ValueError):
  """The command or its options are wrong; the command line exits with 2."""


class Preprocess(NamedTuple):
  """What a checkpoint expects of its input, as timm's `pretrained_cfg` records it."""

  size: int = 224  # pixels, height = width
  crop: float = 0.875  # share of the resized image that the centre crop keeps
  interpolation: str = 'bicubic'  # nearest, bilinear, bicubic or lanczos (Pillow's, antialiased)
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  mode: str = 'center'  # 'center' keeps the aspect and crops the centre; 'squash' resizes both sides


class Checkpoint(NamedTuple):
  """A named pretrained artefact: where it is, what it expects, and on which terms."""

  variant: str  # the variant that it fits, which may differ from the name a user asks for
  location: str  # 'package:MODULE/FILE', 'hf-hub:OWNER/NAME', a URL or a path; '' = in no form that tlx reads
  layout: str  # key of the family's LAYOUTS
  preprocess: Preprocess = Preprocess()
  license: str = 'unknown'
  source: str = ''  # paper or repository
  revision: str | None = None  # pinned hub commit
  sha256: str | None = None  # of the weights file


class WholeLayout(NamedTuple):
  """How another library names a backbone and a head in one file: an entry of LAYOUTS in a file of `tlx/heads`."""

  backbone: str  # key of the LAYOUTS of the backbone's family
  prefix: str  # ahead of the backbone's names, such as 'encoder.'
  head: Callable[[Any], Iterable[Any]]  # the head's module -> its rules (weights.rules.Rule), targets below 'head/'
  strip: str = ''  # what the backbone's names lose, where they begin with it, before they get the prefix
  rename: Callable[[str], str] = str  # the backbone's names in that layout -> theirs, without the prefix


class WholeModel(NamedTuple):
  """A backbone with a head that were trained together: an entry of MODELS in a file of `tlx/heads`."""

  backbone: str  # a variant
  num_classes: int
  task: str = 'segmentation'
  options: Mapping[str, Any] = {}  # of the head: its fields
  backbone_options: Mapping[str, Any] = {}  # fields of the backbone's config, such as {'output_stride': 8}
  checkpoint: Checkpoint | None = None  # None: no published weights that we know of


class Figures(NamedTuple):
  """What is known of a variant without building it."""

  parameters: int  # with the published head
  gmacs: float  # 1e9 multiply-adds of one forward pass at `size`
  size: int  # native input, pixels, height = width
  top1: float | None = None  # ImageNet-1k accuracy of the named checkpoint at `size`, percent, as its source states it


class Source(NamedTuple):
  """Where loaded weights came from, and what writing them back needs."""

  variant: str
  layout: str = 'timm'
  location: str = 'random'
  license: str = 'unknown'
  config: Mapping[str, Any] = {}  # the source's own config.json
  processor: Mapping[str, Any] = {}  # its preprocessor_config.json, where it has one
  dropped: Mapping[str, np.ndarray] = {}  # tensors that the model has no use for, kept for export
  dtypes: Mapping[str, str] = {}  # of the tensors that are not float32


class Pretrained(NamedTuple):
  """What `tlx.load` returns."""

  module: Any  # TransferModel
  variables: Variables
  preprocess: Preprocess
  class_names: Sequence[str]
  source: Source


class Phase(NamedTuple):
  """A stretch of training with one answer to the question what learns.

  rates maps a layer's name to its learning rate relative to the peak; a layer that it leaves out is frozen.
  """

  name: str
  share: float  # of all steps
  rates: Mapping[str, float]


class Example(NamedTuple):
  """One record of a data set, before any transform."""

  image: np.ndarray | bytes  # uint8 RGB [h, w, 3], or the encoded file
  label: int
  name: str  # what a message or a report calls it: a path, or 'chelsea/3'


class DataSource(Protocol):
  """One split: random access to examples, and their labels without reading a single image.

  It may also have `fingerprint() -> str | None`: another value wherever an image or the order may be another. What is
  computed from a source without one is kept for one run alone.
  """

  labels: np.ndarray  # int32 [n]

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Example: ...


class DatasetInfo(NamedTuple):
  """What is known of a data set before training on it."""

  name: str
  class_names: tuple[str, ...]
  counts: Mapping[str, tuple[int, ...]]  # split -> examples of each class
  resolution: tuple[int, int]  # median height and width, pixels
  source: str = ''
  license: str = 'unknown'
  rejected: tuple[tuple[str, str], ...] = ()  # (file, why it was left out)
  augment: str = 'photo'  # which augmentation fits: 'photo', or 'glyph' where a mirror image means something else


class Dataset(NamedTuple):
  """Splits by name: 'train' and 'validation' always, 'test' where there is one."""

  info: DatasetInfo
  splits: Mapping[str, DataSource]
