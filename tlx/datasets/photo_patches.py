"""Few-shot crops of real photographs from the wheels of scikit-image and scikit-learn; it needs no network.

Each of the 18 photographs is a class. A checkerboard with gaps divides a photograph into regions: training crops come
from one colour, validation crops from the other, so no pixel is in both. Position, scale, quarter turns, mirroring,
exposure and white balance are drawn from (seed, split, index). Raw pixels then tell little about the class, and
features of a pretrained backbone tell a lot.

Measured validation accuracy of scikit-learn's LogisticRegression (better C of 0.01 and 1) for seeds 0, 1, 2: raw pixels
box-reduced to 32 x 32: 25 %, 25 %, 22 %; pooled features of EfficientNet-Lite0 (ImageNet) in PyTorch, standardised: at
96 px 92 %, 88 %, 90 %, at 224 px (bicubic) 93 %, 91 %, 92 %. `pytest tests/contracts/test_datasets.py -k raw_pixels`
repeats the raw-pixel part.
"""

import functools
import hashlib
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from tlx.data.split import Labelled
from tlx.types import Dataset, DatasetInfo, Example, TlxError, UsageError

SIZE = 96  # height and width of every crop, pixels
CELL = 110  # minimum height and width of a region with its gaps, pixels
GAP = 8  # unused pixels between two regions
SHOTS = {'train': 16, 'validation': 20}  # crops of each class
COLOURS = {'train': 0, 'validation': 1}  # the split's colour on the checkerboard

PHOTOGRAPHS = {
  'astronaut': 'skimage/data/astronaut.png',
  'brick': 'skimage/data/brick.png',
  'camera': 'skimage/data/camera.png',
  'chelsea': 'skimage/data/chelsea.png',
  'china': 'sklearn/datasets/images/china.jpg',
  'coffee': 'skimage/data/coffee.png',
  'coins': 'skimage/data/coins.png',
  'flower': 'sklearn/datasets/images/flower.jpg',
  'grass': 'skimage/data/grass.png',
  'gravel': 'skimage/data/gravel.png',
  'hubble': 'skimage/data/hubble_deep_field.jpg',
  'ihc': 'skimage/data/ihc.png',
  'moon': 'skimage/data/moon.png',
  'motorcycle': 'skimage/data/motorcycle_left.png',
  'page': 'skimage/data/page.png',
  'retina': 'skimage/data/retina.jpg',
  'rocket': 'skimage/data/rocket.jpg',
  'text': 'skimage/data/text.png',
}


class Crop(NamedTuple):
  """How to make one example from a photograph: crop a square, then rotate and mirror it, then change its exposure."""

  top: int
  left: int
  side: int  # pixels
  turns: int  # quarter turns
  mirror: bool
  gain: tuple[float, float, float]  # factors of red, green and blue
  offset: float  # added to all channels, grey levels


@functools.cache
def photograph(name: str) -> np.ndarray:
  """Loads a whole photograph, uint8 RGB [h, w, 3].

  Raises:
    UsageError: if the package is not installed.
    TlxError: if the installed package does not contain the file.
  """
  package, _, rest = PHOTOGRAPHS[name].partition('/')
  spec = importlib.util.find_spec(package)  # find_spec is faster than an import
  if spec is None:
    raise UsageError(f'photo_patches: {package} is not installed; run: pip install scikit-image scikit-learn')
  path = pathlib.Path(spec.origin).parent / rest
  if not path.is_file():
    raise TlxError(f'photo_patches: {package} has no {rest}; run: pip install -U scikit-image scikit-learn')
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


def regions(height: int, width: int, split: str) -> list[tuple[int, int, int, int]]:
  """Returns the rectangles (top, left, bottom, right) of a photograph for a split, pixels. Splits do not overlap.

  >>> regions(220, 220, 'train')
  [(4, 4, 106, 106), (114, 114, 216, 216)]
  >>> regions(220, 220, 'validation')
  [(4, 114, 106, 216), (114, 4, 216, 106)]
  """
  rows, columns = max(1, height // CELL), max(1, width // CELL)
  y, x = np.linspace(0, height, rows + 1).astype(int).tolist(), np.linspace(0, width, columns + 1).astype(int).tolist()
  half = GAP // 2
  return [
    (y[r] + half, x[c] + half, y[r + 1] - half, x[c + 1] - half)
    for r in range(rows)
    for c in range(columns)
    if (r + c) % 2 == COLOURS[split]
  ]


def draw(height: int, width: int, split: str, index: int, *, seed: int) -> Crop:
  """Draws the crop of (seed, split, index), inside one region of the split.

  Args:
    height: of the photograph, pixels.
    width: of the photograph, pixels.
    split: 'train' or 'validation'.
    index: position of the example in the split.
    seed: of the data set.

  Returns:
    The crop.
  """
  rng = np.random.default_rng((seed, COLOURS[split], index))
  boxes = regions(height, width, split)
  top, left, bottom, right = boxes[rng.integers(len(boxes))]
  limit = min(bottom - top, right - left)
  side = int(rng.integers(limit // 2, limit + 1))
  top, left = int(rng.integers(top, bottom - side + 1)), int(rng.integers(left, right - side + 1))
  gain = rng.uniform(0.6, 1.67) * rng.uniform(0.8, 1.2, 3)
  return Crop(
    top, left, side, int(rng.integers(4)), bool(rng.integers(2)), tuple(gain.tolist()), float(rng.uniform(-40, 40))
  )


def cut(image: np.ndarray, crop: Crop) -> np.ndarray:
  """Cuts a crop out of a photograph: uint8 [h, w, 3] -> uint8 [SIZE, SIZE, 3]."""
  patch = image[crop.top : crop.top + crop.side, crop.left : crop.left + crop.side]
  patch = np.rot90(patch, crop.turns)
  patch = patch[:, ::-1] if crop.mirror else patch
  patch = Image.fromarray(np.ascontiguousarray(patch)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
  return np.clip(np.rint(np.asarray(patch) * np.array(crop.gain) + crop.offset), 0, 255).astype(np.uint8)


class Patches(Labelled):
  """The crops of one split, class by class."""

  def __init__(self, names: Sequence[str], split: str, seed: int):
    self.names, self.split, self.seed = tuple(names), split, seed
    self.labels = np.repeat(np.arange(len(names), dtype=np.int32), SHOTS[split])

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Example:
    label, shot = divmod(range(len(self))[index], SHOTS[self.split])
    image = photograph(self.names[label])
    crop = draw(*image.shape[:2], self.split, label * SHOTS[self.split] + shot, seed=self.seed)
    return Example(cut(image, crop), label, f'{self.names[label]}/{shot}')

  def fingerprint(self) -> str:
    digest = hashlib.sha256(repr((self.names, self.split, self.seed)).encode())  # everything that `draw` depends on
    for name in self.names:
      digest.update(photograph(name).tobytes())
    return digest.hexdigest()


def load(argument: str, *, seed: int) -> Dataset:
  """Loads the splits 'train' (16 crops per class) and 'validation' (20 crops per class).

  Args:
    argument: must be empty.
    seed: of the crops.

  Returns:
    The data set.

  Raises:
    UsageError: if there is an argument, or a package is not installed.
  """
  if argument:
    raise UsageError(f"data set 'photo_patches' takes no argument, got {argument!r}; write --data photo_patches")
  names = sorted(PHOTOGRAPHS)
  for name in names:
    photograph(name)
  info = DatasetInfo(
    name='photo_patches',
    class_names=tuple(names),
    counts={split: (shots,) * len(names) for split, shots in SHOTS.items()},
    resolution=(SIZE, SIZE),
    source='photographs inside the wheels of scikit-image (skimage.data) and scikit-learn (load_sample_images)',
    license='public domain, CC0 or CC BY for each photograph: see the two packages',
  )
  return Dataset(info, {split: Patches(names, split, seed) for split in SHOTS})
