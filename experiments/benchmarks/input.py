"""Images per second of the input pipeline, part by part, compared with PyTorch's DataLoader and with the training step.

  python experiments/benchmarks/input.py [--data WxH|folder:PATH ...] [--image-size 224] [--steps ...]

All parts of a table run in one process and take turns; a figure is the median over the rounds. By default the pictures
are JPEGs made from scikit-image's photographs. `canvas` is the input of training (augmentation follows on the device);
`evaluation` is the input of a probe. PyTorch's transforms crop and mirror on the host; timm's also change colours.

Measured under a load of 6 to 9 on 2 shared CPU cores, jax 0.10.2, Pillow 13, PyTorch 2.13.0, timm 1.0.31, 2026-11-21,
with `--rounds 3 --seconds 0.4` (steps 0.3) and some parts at a time (`--only workers`). Images per second of processor
time without workers, which depends least on the load; two free cores give up to twice that by the clock:

  at 224 px    canvas  torchvision  timm     evaluation  timm
  500x375         301          550   384            299   320    no reduced scale: it is less than 2 canvases high
  2000x1500        86           75    71             43    41    canvas decoded at 1/2

By the clock, as ratios within the run on 500x375: 2 workers make 2.1 times the pictures of no worker; 1 worker makes as
many as none. The step on the same scale: EfficientNet-Lite0's probe 316 at 96 px and 84 at 224 px, its full fine-tuning
13 at 224 px. So the step is by far the bottleneck of full fine-tuning (the pipeline takes 4 % of its processor time, 15
% for 2000 x 1500), and of a probe at 224 px on 500 x 375. The pipeline is the bottleneck of a probe on 2000 x 1500
without cached features.

Whole runs on 400 photographs of 224 x 224, default options: share of the training time in which the device waited for
data (`Prefetch.after`), and in which the loop waited (`next`): full 0.3 and 0.8 %; linear_probe without cached features
0.7 and 5 %, with --workers 0 0.2 and 6 %; a source that sleeps 50 ms per image, one worker, 80 %.
"""

import argparse
import contextlib
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import contestants
import jax
import numpy as np
from PIL import Image

from tlx import catalog
from tlx.data import augment, decode, pipeline, transforms
from tlx.prefix.phase_inputs import CANVAS
from tlx.train import sharding
from tlx.types import DataSource, Preprocess

with contextlib.suppress(ImportError):  # at module level, so that the processes of a DataLoader import it too
  import torchvision_operators  # noqa: F401  operators that torchvision needs with a CPU build of PyTorch

STEPS = [f'{model}:{regime}' for model in ('efficientnet_lite0@96', 'efficientnet_lite0@224', 'resnet50@224')
         for regime in ('probe', 'full')]  # fmt: skip
SUBJECTS = ('astronaut', 'chelsea', 'coffee', 'rocket', 'immunohistochemistry', 'retina')
TILE = 400  # maximum height and width of a piece, pixels
STOCK = 8  # batches that a turn skips before its time begins, because they were made in advance


class Turn(NamedTuple):
  """Images per second, by the clock and by the processor time of this process."""

  rate: float
  cpu_rate: float


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', nargs='*', default=['500x375', '2000x1500'], metavar='WxH|folder:PATH')
  parser.add_argument('--image-size', type=int, default=224)
  parser.add_argument('--batch-size', type=int, default=16)
  parser.add_argument('--steps', nargs='*', default=STEPS, metavar='MODEL@PIXELS:REGIME')
  parser.add_argument('--only', default='', help='run only the parts whose name contains this')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=0.5, help='minimum time of one turn')
  parser.add_argument('--json', action='store_true')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    for name in options.data:
      source = catalog.dataset(name if ':' in name else photographs(Path(folder, name), name), seed=0).splits['train']
      found = parts(source, options.image_size, options.batch_size) | torch_parts(source, options)
      table(f'{name}, {options.image_size} px', found, options)
    table('training steps', {name: step(name, options.batch_size) for name in options.steps}, options)


def table(title: str, works: dict[str, Callable[[float], Turn]], options: argparse.Namespace) -> None:
  works = {name: turn for name, turn in works.items() if options.only in name}
  turns = {name: [] for name in works}
  for _ in range(options.rounds):
    for name, turn in works.items():
      turns[name].append(turn(options.seconds))
  medians = {name: Turn(*map(statistics.median, zip(*each))) for name, each in turns.items()}
  if options.json:
    return print(json.dumps({'of': title, **{name: each._asdict() for name, each in medians.items()}}), flush=True)
  print(f'{title}: images per second, images per second of processor time, ratio to the first row of its kind')
  first = {}
  for name, each in medians.items():
    against = first.setdefault(name.split(':')[0], each)
    print(f'  {name:36} {each.rate:8,.0f} {each.cpu_rate:8,.0f} {each.rate / against.rate:8.2f}', flush=True)


def photographs(folder: Path, size: str, count: int = 32) -> str:
  """Makes a `folder:` of JPEGs of that size from pieces of scikit-image's photographs, at their own sharpness."""
  from skimage import data

  width, height = map(int, size.split('x'))
  subjects = [Image.fromarray(getattr(data, name)()) for name in SUBJECTS]
  rng = np.random.default_rng(0)
  for index in range(count):
    whole = Image.new('RGB', (width, height))
    for x, y in itertools.product(range(0, width, TILE), range(0, height, TILE)):
      subject = subjects[rng.integers(len(subjects))]
      left, top = (int(rng.integers(max(1, side - TILE))) for side in subject.size)
      piece = subject.crop((left, top, min(left + TILE, subject.width), min(top + TILE, subject.height)))
      whole.paste(piece.resize((TILE, TILE), Image.Resampling.BICUBIC), (x, y))
    file = folder / 'train' / f'class{index % 2}' / f'{index}.jpg'
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.save(file, quality=90)
  return f'folder:{folder}'


def parts(source: DataSource, size: int, batch_size: int) -> dict[str, Callable[[float], Turn]]:
  """The parts of tlx between the file and the step."""
  exact, canvas = transforms.evaluation(Preprocess(size=size)), transforms.canvas(round(size * CANVAS))
  files = [source[i].image for i in range(min(len(source), 32))]
  reduced = partial(decode.picture, min_size=canvas.min_size)
  place = sharding.make('jit')
  made = lambda transform, workers: pipeline.train_batches(
    source, batch_size=batch_size, seed=0, transform=transform, workers=workers
  )
  batch = next(made(canvas, 0))
  whole = {
    f'{name}: workers {said}': partial(fetched, lambda t=transform, w=workers: pipeline.Prefetch(made(t, w), put))
    for name, transform in (('canvas', canvas), ('evaluation', exact))
    for said, workers in (('auto', pipeline.cores()), (0, 0), (1, 1), (2, 2))
  }
  put = place.put_batch
  return {
    'read': each(source.__getitem__, range(len(files))),
    'decode: whole': each(decode.picture, files),
    'decode: reduced': each(reduced, files),
    'resize and crop': each(exact, [decode.picture(file) for file in files]),
    'resize to the canvas': each(canvas, [reduced(file) for file in files]),
    'put on the device': repeated(lambda: len(jax.block_until_ready(put(batch))['mask'])),
    **{f'augment: {name}': augmented(preset, put(batch), size) for name, preset in augment.PRESETS.items()},
    **whole,
  }


def repeated(work: Callable[[], int]) -> Callable[[float], Turn]:
  """Makes a turn of `work`, which does a little and returns the number of images it processed."""
  work()
  return partial(timed, work)


def timed(work: Callable[[], int], seconds: float) -> Turn:
  images, wall, spent = 0, time.perf_counter(), time.process_time()
  while not images or time.perf_counter() - wall < seconds:
    images += work()
  return Turn(images / (time.perf_counter() - wall), images / (time.process_time() - spent))


def each(run: Callable, values) -> Callable[[float], Turn]:
  values = itertools.cycle(values)
  return repeated(lambda: (run(next(values)), 1)[1])


def fetched(open_: Callable[[], pipeline.Prefetch], seconds: float) -> Turn:
  with open_() as batches:
    return drawn(batches, seconds)


def drawn(batches: Iterator, seconds: float) -> Turn:
  for _ in range(STOCK):
    next(batches)
  turn = timed(lambda: len(jax.block_until_ready(next(batches))['image']), seconds)
  time.sleep(seconds)  # batches in progress finish outside of any turn
  return turn


def augmented(preset: augment.Augment, batch: dict, size: int) -> Callable[[float], Turn]:
  aspect = batch['geometry'][:, 1] / batch['geometry'][:, 0]

  @jax.jit
  def run(key):
    images, _ = augment.augment_batch(key, batch['image'], aspect, preset, (size, size))
    return augment.mix_batch(key, images, preset)[0] if preset.mixup or preset.cutmix else images

  return repeated(lambda: len(jax.block_until_ready(run(jax.random.key(0)))))


class Files:
  """A map-style data set of PyTorch over the same files."""

  def __init__(self, source: DataSource, transform: Callable):
    self.source, self.transform = source, transform

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict:
    example = self.source[index]
    with Image.open(io.BytesIO(example.image)) as image:
      return {'image': self.transform(image.convert('RGB')), 'label': example.annotation}


def torch_parts(source: DataSource, options: argparse.Namespace) -> dict[str, Callable[[float], Turn]]:
  """DataLoaders; {} if PyTorch, torchvision or timm is missing."""
  try:
    import torch
    from timm.data import create_transform
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision import transforms as vision
  except (ImportError, RuntimeError):
    return {}
  size, found = options.image_size, {}
  crop = vision.Compose([vision.RandomResizedCrop(size), vision.RandomHorizontalFlip(), vision.PILToTensor()])
  kinds = {'canvas': {'torchvision': crop, 'timm': create_transform(size, is_training=True)},
           'evaluation': {'timm': create_transform(size, interpolation='bicubic')}}  # fmt: skip
  for kind, choices in kinds.items():
    for (name, transform), workers in itertools.product(choices.items(), (0, 2)):
      files = Files(source, transform)
      sampler = RandomSampler(files, replacement=True, num_samples=10**9)
      spawned = {'multiprocessing_context': 'spawn', 'persistent_workers': True} if workers else {}
      loader = DataLoader(files, options.batch_size, sampler=sampler, num_workers=workers, **spawned)
      found[f'{kind}: {name}, workers {workers}'] = partial(drawn, map(as_arrays, loader))
  torch.set_num_threads(1)  # in this process; its transforms are not parallel
  return found


def as_arrays(batch: dict) -> dict[str, np.ndarray]:
  return {name: tensor.numpy() for name, tensor in batch.items()}


def step(name: str, batch_size: int) -> Callable[[float], Turn]:
  model, _, rest = name.partition('@')
  size, _, regime = rest.partition(':')
  one = contestants.tlx(contestants.Work(model, regime, batch_size, int(size)))
  return repeated(lambda: (one(), batch_size)[1])


if __name__ == '__main__':
  main()
