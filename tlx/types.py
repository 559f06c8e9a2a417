"""The types that all other files share. It contains no algorithms."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:  # `tlx --help` does not wait for JAX
  import jax

Params = Mapping[str, Any]  # nested dict of arrays; leaves are named 'backbone/stem/conv/kernel'
Variables = Mapping[str, Params]  # {'params': ..., 'batch_stats': ...}
# image: uint8 [b, h, w, 3], or features {layer: array}; mask: bool [b], False = padding; geometry: float32 [b, 6], the
# fields of a Geometry; target: the task's arrays, see `Task.encode`
Batch = Mapping[str, Any]
Target = Mapping[str, Any]  # arrays of fixed shapes, [b, ...] in a batch
Size = int | tuple[int, int]  # pixels: the side of a square, or height and width


class TlxError(Exception):
  """A problem that the user can solve. The command line prints the message without a traceback."""


class UsageError(TlxError, ValueError):
  """A wrong command or option. The command line exits with status 2."""


class GreyScale(NamedTuple):
  """The values that are black and white in grey of more than 8 bits, for each kind of pixel."""

  uint16: tuple[float, float] = (0.0, 65535.0)
  int32: tuple[float, float] = (0.0, 65535.0)
  float32: tuple[float, float] = (0.0, 1.0)


class Preprocess(NamedTuple):
  """How to prepare images for a checkpoint. The fields are those of timm's `pretrained_cfg`, and `grey`."""

  size: Size = 224  # pixels
  crop: float = 0.875  # share of the resized image that the centre crop keeps
  interpolation: str = 'bicubic'  # nearest, bilinear, bicubic or lanczos (Pillow's, antialiased)
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
  std: tuple[float, ...] = (0.229, 0.224, 0.225)
  mode: str = 'center'  # 'center' keeps the aspect and crops the centre; 'squash' resizes both sides
  grey: GreyScale | None = None  # of the data set that the model learned; None: the default scale

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
  """Height and width of a size.

  >>> shape_of(224), shape_of((240, 320))
  ((224, 224), (240, 320))
  """
  return (size, size) if isinstance(size, int) else (size[0], size[1])


class Geometry(NamedTuple):
  """The part of a photograph that an array shows, in pixels of the photograph."""

  height: float  # of the photograph
  width: float
  top: float  # edges of the part; they may lie outside the photograph
  left: float
  bottom: float
  right: float


class Warp(Protocol):
  """How augmentation moved the pictures of a batch; `data.geometry.Warp` is the implementation."""

  def images(self, canvases: 'jax.Array') -> 'jax.Array': ...
  def labels(self, labels: 'jax.Array', fill: int) -> 'jax.Array': ...


class Checkpoint(NamedTuple):
  """A pretrained model with a name: where its weights are, its preprocessing and its licence."""

  variant: str  # the variant that the weights fit; it may differ from the name that the user gave
  location: str  # 'package:MODULE/FILE', 'hf-hub:OWNER/NAME', a URL or a path; '' = tlx cannot read them
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
  """Another library's names for a backbone and a head in one file: an entry of LAYOUTS in a file of `tlx/heads`."""

  backbone: str  # key of the LAYOUTS of the backbone's family
  prefix: str  # before the backbone's names, such as 'encoder.'
  head: Callable[[Any], Iterable[Any]]  # the head's module -> its weights.rules.Rule's, with targets below 'head/'
  rename: Callable[[str], str] = str  # name in the backbone's layout -> name after the prefix


class WholeModel(NamedTuple):
  """A backbone and a head that were trained together: an entry of MODELS in a file of `tlx/heads`."""

  backbone: str  # name of a variant
  num_classes: int
  task: str = 'segmentation'
  options: Mapping[str, Any] = {}  # fields of the head
  backbone_options: Mapping[str, Any] = {}  # fields of the backbone's config, such as {'output_stride': 8}
  checkpoint: Checkpoint | None = None  # None: no published weights that we know of
  class_names: tuple[str, ...] = ()


class Figures(NamedTuple):
  """Figures of a variant, known without building it."""

  parameters: int  # with the published head
  gmacs: float  # 1e9 multiply-adds of one forward pass at `size`
  size: int  # native input, pixels, height = width
  top1: float | None = None  # ImageNet-1k accuracy of the named checkpoint at `size`, percent, as its source states it


class Source(NamedTuple):
  """Where weights came from, and what `tlx.save` needs to write them back."""

  variant: str
  layout: str = 'timm'  # key of LAYOUTS: how the file names its tensors
  location: str = 'random'
  license: str = 'unknown'
  config: Mapping[str, Any] = {}  # the source's own config.json
  processor: Mapping[str, Any] = {}  # its preprocessor_config.json; {} if it has none
  dropped: Mapping[str, np.ndarray] = {}  # tensors that the model does not use, kept for export
  dtypes: Mapping[str, str] = {}  # tensors that were not float32: name -> dtype
  task: str = 'classification'  # of the head: a file of `tlx/tasks`, with options if any


class Pretrained(NamedTuple):
  """A model with its weights, as `tlx.load` returns it."""

  module: Any  # TransferModel
  variables: Variables
  preprocess: Preprocess
  class_names: Sequence[str]  # of the outputs; () if unknown
  source: Source


class Phase(NamedTuple):
  """A part of training in which the same layers learn.

  `rates` maps a layer's name to its share of the peak learning rate. Layers that it does not contain are frozen.
  """

  name: str
  share: float  # of all steps
  rates: Mapping[str, float]


class Strategy(Protocol):
  """Decides which layers learn, and when. Base of the dataclass `Strategy` in each file of `tlx/strategies`.

  The fields of a strategy are its options.
  """

  pretrained: bool = True  # False: the run starts from random weights

  def phases(self, layers: Sequence[str]) -> tuple[Phase, ...]:
    """The phases of a run. `layers` names the backbone's layers, from input to output."""


class Example(NamedTuple):
  """One record of a data set, before any transform."""

  image: np.ndarray | bytes  # uint8 RGB [h, w, 3], or the encoded file
  annotation: Any  # in the form that the task reads: a class id, ids of tags, or a mask
  name: str  # for messages and reports: a path, or 'chelsea/3'


class DataSource(Protocol):
  """A split: random access to examples, and to their annotations without reading images."""

  labels: np.ndarray | None = None  # int32 [n], the class of each image; None if images do not have exactly one class

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Example: ...
  def annotation(self, index: int) -> Any:
    """The annotation of an example, without reading its image."""

  def size(self, index: int) -> tuple[int, int]:
    """Height and width of an image in pixels, without reading it. Only dense tasks need it."""
    raise TypeError(f'{type(self).__name__} has no size()')

  def fingerprint(self) -> str | None:
    """A text that changes if an image, an annotation or the order may have changed; None if the source has none.

    tlx stores features for later runs only if the source has a fingerprint.
    """
    return None


class DatasetInfo(NamedTuple):
  """Facts about a data set."""

  name: str
  class_names: tuple[str, ...]
  counts: Mapping[str, tuple[int, ...]]  # split -> examples (in masks: pixels) of each class
  resolution: tuple[int, int]  # median height and width, pixels
  source: str = ''
  license: str = 'unknown'
  rejected: tuple[tuple[str, str], ...] = ()  # (file, why it was left out)
  notes: tuple[str, ...] = ()  # how a folder was read, what was not read, and images that two splits share
  augment: str = 'photo'  # suitable augmentation: 'photo', or 'glyph' if mirroring changes the meaning
  task: str = 'classification'  # the file of `tlx/tasks` that reads the annotations
  images: Mapping[str, int] = {}  # split -> images, if `counts` does not add up to them
  grey: GreyScale | None = None  # of the images with more than 8 bits; None if there are none

  def examples(self, split: str) -> int:
    """Number of images of a split."""
    return self.images[split] if split in self.images else sum(self.counts[split])


class Dataset(NamedTuple):
  """A data set. `splits` always has 'train' and 'validation', and 'test' if there is one."""

  info: DatasetInfo
  splits: Mapping[str, DataSource]


class Section(NamedTuple):
  """A part of the report that a task writes."""

  name: str  # in the anchor and the table of contents: 'Mistakes'
  html: str  # escaped already
  title: str = ''  # the heading, if it differs from the name: 'Most confident mistakes'


class Card(NamedTuple):
  """A number at the top of the report, with notes below it."""

  title: str
  value: str
  notes: tuple[str, ...] = ()


class Task(Protocol):
  """Defines targets, loss, metrics and predictions: the class `Task` of a file or folder in `tlx/tasks`.

  A task is a frozen, hashable dataclass. Its fields are its options; `bind` sets `class_names`. No code outside the
  task depends on the contents of targets and outputs.
  """

  primary: ClassVar[str]  # the main metric, shown first: 'accuracy', 'miou'
  metrics: ClassVar[tuple[str, ...]]  # names of numbers in `summary`, in the order of display
  percents: ClassVar[tuple[str, ...]]  # those metrics that are shares in [0, 1]
  dense: ClassVar[bool]  # labels belong to pixels: the whole picture counts, and warps move the labels
  default_head: ClassVar[str]  # a file of `tlx/heads`
  class_names: tuple[str, ...]

  def bind(self, info: DatasetInfo) -> 'Task':
    """The task with the classes of a data set. Raises UsageError if the two do not fit."""

  # These methods run on the host, with NumPy.
  def encode(self, annotation: Any, geometry: Geometry, shape: tuple[int, int]) -> Target:
    """Converts an annotation to arrays.

    Args:
      annotation: of one example.
      geometry: the part of the photograph that the picture shows.
      shape: height and width of the picture, pixels.

    Returns:
      {name: array}, with the same shapes for every example.
    """

  def blank(self, shape: tuple[int, int]) -> Target:
    """A target for padding. It also gives the shapes and dtypes of targets."""

  def summary(self, sums: Any, records: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The metrics and tables of one pass over a split. Sums and records are on the host."""

  def arrays(self, sums: Any, records: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of the pass to write to `evaluation.npz`, which the report reads."""

  def decode(self, outputs: np.ndarray, geometry: Geometry, top: int) -> Mapping[str, Any]:
    """Converts the outputs of one picture to a prediction, in pixels of the photograph.

    Args:
      outputs: of the model, without the batch axis.
      geometry: the part of the photograph that the picture shows.
      top: maximum number of classes to list.

    Returns:
      JSON values, and arrays uint8 [h, w] or [h, w, 3], which `tlx predict` writes as PNG files under their names.
    """

  # A dense task may have `whole(run, photograph, shape, scales)`: outputs for each pixel of a photograph, by windows.

  def draw(self, image: np.ndarray, prediction: Mapping[str, Any]) -> np.ndarray | None:
    """Draws a prediction over the photograph: uint8 [h, w, 3]; None for tasks that do not draw."""

  def pictures(self, out: Path, records: Mapping[str, np.ndarray], source: DataSource, model: Pretrained) -> None:
    """Writes pictures of the worst mistakes into the run folder."""

  def cards(self, result: Mapping[str, Any], evaluation: Mapping[str, np.ndarray]) -> list[Card]:
    """The numbers at the top of the report, from result.json and evaluation.npz."""

  def sections(self, run: Mapping[str, Any]) -> list[Section]:
    """The task's parts of the report, from the content of the run folder (`report.read.load`)."""

  # These methods run on the device and are pure.
  def warp(self, target: Target, warp: 'Warp') -> Target:
    """Moves a batch of targets as the augmentation moved the pixels."""

  def mix(self, target: Target, share: 'jax.Array') -> Target | None:
    """The targets of pictures mixed with a partner. `share` float [b] is the own part. None if they cannot be mixed."""

  def loss(self, outputs: Any, target: Target, mask: Any) -> tuple[Any, Any]:
    """(sum of losses, sum of weights), both float32 []. The step divides their totals once. Padding does not count."""

  def hits(self, outputs: Any, target: Target, mask: Any) -> dict[str, Any]:
    """Sums to log during training. The step divides them by the weight of the loss."""

  def evaluate(self, outputs: Any, target: Target, mask: Any) -> tuple[Any, dict[str, Any]]:
    """(sums, records): sums of several batches are added; records have one row per image."""
