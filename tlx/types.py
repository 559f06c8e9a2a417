"""The nouns every other file speaks of; no logic lives here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

Params = Mapping[str, Any]  # nested dict of arrays; leaves are named 'backbone/stem/conv/kernel'
Variables = Mapping[str, Params]  # {'params': ..., 'batch_stats': ...}
# image uint8 [b, h, w, 3] (or features {layer: array}), mask bool [b]: False = padding, geometry float32 [b, 6]: the
# fields of a Geometry, target: what the task makes of the annotations
Batch = Mapping[str, Any]
Target = Mapping[str, Any]  # arrays of fixed shapes, [b, ...] in a batch
Size = int | tuple[int, int]  # pixels: the side of a square, or height and width


class TlxError(Exception):
  """A problem the user can mend: one clear line, shown without a traceback."""


class UsageError(TlxError, ValueError):
  """The command or its options are wrong; the command line exits with 2."""


class Preprocess(NamedTuple):
  """What a checkpoint expects of its input, as timm's `pretrained_cfg` records it."""

  size: Size = 224  # pixels
  crop: float = 0.875  # share of the resized image that the centre crop keeps
  interpolation: str = 'bicubic'  # nearest, bilinear, bicubic or lanczos (Pillow's, antialiased)
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  mode: str = 'center'  # 'center' keeps the aspect and crops the centre; 'squash' resizes both sides

  @property
  def shape(self) -> tuple[int, int]:
    """Height and width, pixels."""
    return shape_of(self.size)

  def normalise(self, pixels: Any) -> Any:
    """The input that the checkpoint was trained on, from NumPy's or JAX's pixels of RGB.

    Args:
      pixels: [..., 3], uint8 in [0, 255] or float in [0, 1].

    Returns:
      float [..., 3], of the dtype of `pixels`, or float32 for uint8.

    Examples:
      >>> Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).normalise(np.uint8([0, 255, 51])).tolist()
      [-1.0, 1.0, -0.6000000238418579]
    """
    shares = pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels
    return (shares - np.asarray(self.mean, shares.dtype)) / np.asarray(self.std, shares.dtype)


def shape_of(size: Size) -> tuple[int, int]:
  """224 -> (224, 224); (240, 320) stays."""
  return (size, size) if isinstance(size, int) else (size[0], size[1])


class Geometry(NamedTuple):
  """Which part of a photograph an array shows; all in the photograph's pixels."""

  height: float  # of the photograph
  width: float
  top: float  # edges of the part that the array shows, which may lie outside the photograph
  left: float
  bottom: float
  right: float


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


class Level(NamedTuple):
  """A layer, or a tap inside one ('stem/conv'), whose output is a map [b, h / stride, w / stride, channels]."""

  layer: str
  stride: int
  channels: int
  prefix: int = 0  # tokens ahead of those of the map


class WholeLayout(NamedTuple):
  """How another library names a backbone and a head in one file: an entry of LAYOUTS in a file of `tlx/heads`."""

  backbone: str  # key of the LAYOUTS of the backbone's family
  prefix: str  # ahead of the backbone's names, such as 'encoder.'
  head: Callable[[Any], Iterable[Any]]  # the head's module -> its rules (weights.rules.Rule), targets below 'head/'
  rename: Callable[[str], str] = str  # the backbone's names in that layout -> theirs, behind the prefix


class WholeModel(NamedTuple):
  """A backbone with a head that were trained together: an entry of MODELS in a file of `tlx/heads`."""

  backbone: str  # a variant
  num_classes: int
  task: str = 'segmentation'
  options: Mapping[str, Any] = {}  # of the head: its fields
  backbone_options: Mapping[str, Any] = {}  # fields of the backbone's config, such as {'output_stride': 8}
  checkpoint: Checkpoint | None = None  # None: no published weights that we know of
  class_names: tuple[str, ...] = ()


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
  task: str = 'classification'  # what its head is for: a file of `tlx/tasks`, perhaps with options


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


class Strategy(Protocol):
  """What learns, and when: base of the dataclass `Strategy` in each file of `tlx/strategies`.

  The fields of a strategy are its options.
  """

  pretrained: bool = True  # False: the run starts from random weights

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    """The phases of a run, for a backbone with these layers from input to output."""


class Example(NamedTuple):
  """One record of a data set, before any transform."""

  image: np.ndarray | bytes  # uint8 RGB [h, w, 3], or the encoded file
  annotation: Any  # what the data set's task reads: a class id, a row of tags, a mask
  name: str  # what a message or a report calls it: a path, or 'chelsea/3'


class DataSource(Protocol):
  """Base of every split: random access to examples, and to their annotations without reading a single image."""

  labels: np.ndarray | None = None  # int32 [n]: the class of each image; None: an image has not exactly one

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Example: ...
  def annotation(self, index: int) -> Any: ...

  def size(self, index: int) -> tuple[int, int]:
    """Height and width of an image in pixels, without reading it. Only dense tasks ask."""
    raise TypeError(f'{type(self).__name__} has no size()')

  def fingerprint(self) -> str | None:
    """A text that changes whenever an image, an annotation or the order may have changed; None: it cannot tell.

    tlx keeps what it computes from a source for later runs only if the source has a fingerprint.
    """
    return None


class DatasetInfo(NamedTuple):
  """What is known of a data set before training on it."""

  name: str
  class_names: tuple[str, ...]
  counts: Mapping[str, tuple[int, ...]]  # split -> examples (in masks: pixels) of each class
  resolution: tuple[int, int]  # median height and width, pixels
  source: str = ''
  license: str = 'unknown'
  rejected: tuple[tuple[str, str], ...] = ()  # (file, why it was left out)
  augment: str = 'photo'  # which augmentation fits: 'photo', or 'glyph' where a mirror image means something else
  task: str = 'classification'  # the file of `tlx/tasks` that reads the annotations
  images: Mapping[str, int] = {}  # split -> images, where `counts` does not add up to them

  def examples(self, split: str) -> int:
    """Images of a split."""
    return self.images[split] if split in self.images else sum(self.counts[split])


class Dataset(NamedTuple):
  """Splits by name: 'train' and 'validation' always, 'test' where there is one."""

  info: DatasetInfo
  splits: Mapping[str, DataSource]


class Section(NamedTuple):
  """A part of the report that a task writes."""

  name: str  # of the anchor and in the table of contents: 'Mistakes'
  html: str  # escaped already
  title: str = ''  # the heading, where it is longer: 'Most confident mistakes'


class Card(NamedTuple):
  """A number at the top of the report."""

  title: str
  value: str
  notes: tuple[str, ...] = ()


class Task(Protocol):
  """What a run does with annotations: one file, or one folder, of `tlx/tasks`, with a class `Task`.

  A frozen dataclass, hashable, whose fields are its options; `class_names` comes from the data by `bind`. Nothing
  outside the task knows what a target or an output is.
  """

  primary: ClassVar[str]  # the metric that selects and is shown first: 'accuracy', 'miou'
  metrics: ClassVar[tuple[str, ...]]  # what `summary` gives, in the order in which it is shown
  percents: ClassVar[tuple[str, ...]]  # those of them that are shares
  dense: ClassVar[bool]  # the target has places in the picture, so that the whole picture counts and moves it
  default_head: ClassVar[str]  # the file of `tlx/heads`
  class_names: tuple[str, ...]

  def bind(self, info: DatasetInfo) -> 'Task':
    """The task with what it takes from a data set. Raises UsageError where the two do not fit."""

  # On the host, with NumPy.
  def encode(self, annotation: Any, geometry: Geometry, shape: tuple[int, int]) -> Target:
    """One annotation as arrays for a picture of that shape that shows that part of the photograph."""

  def blank(self, shape: tuple[int, int]) -> Target:
    """The same of nothing: padding, and the shapes for compilation and cost."""

  def summary(self, sums: Any, records: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Numbers, and tables under other names, of one pass over a split; sums and records are on the host."""

  def arrays(self, sums: Any, records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `evaluation.npz` keeps of the pass for the report."""

  def decode(self, outputs: np.ndarray, geometry: Geometry, top: int) -> Mapping[str, Any]:
    """The outputs of one picture as a prediction in the photograph's own pixels.

    What JSON can hold, and arrays uint8 [h, w] or [h, w, 3], which `tlx predict` writes as PNG files under their names.
    """

  # A dense task may have `whole(run, photograph, shape, scales) -> outputs` of every pixel of a photograph, by windows.

  def draw(self, image: np.ndarray, prediction: Mapping[str, Any]) -> np.ndarray | None:
    """uint8 [h, w, 3]: the photograph with its prediction; None where words say all."""

  def pictures(self, out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained) -> None:
    """Writes into the run folder what a person should look at, the worst first."""

  def cards(self, result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]: ...
  def sections(self, run: Mapping[str, Any]) -> list[Section]: ...

  # On the device; pure.
  def warp(self, target: Target, warp: Any) -> Target:
    """The target moved as the pixels of the batch were: `warp` is a `data.geometry.Warp`."""

  def mix(self, target: Target, share: Any) -> Target | None:
    """The target of pictures mixed with their neighbour's by `share` float [b]; None where a task cannot be mixed."""

  def loss(self, outputs: Any, target: Target, mask: Any) -> tuple[Any, Any]:
    """(sum, weight), float32 []: divided once, over all micro-batches and devices. Padding counts for nothing."""

  def hits(self, outputs: Any, target: Target, mask: Any) -> dict[str, Any]:
    """Sums that are logged while training, divided by the weight of the loss."""

  def evaluate(self, outputs: Any, target: Target, mask: Any) -> tuple[Any, dict[str, Any]]:
    """(sums that merge by +, a small row an image)."""
