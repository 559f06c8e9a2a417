"""Checks the options of an experiment, and chooses those left open from the data, with a reason for each."""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import numpy as np

from tlx import schedules, words
from tlx.actions import tasks
from tlx.data import augment, pipeline
from tlx.experiment import Experiment
from tlx.types import DatasetInfo, Phase, Preprocess, Task, UsageError

# With fewer training images, batch norms keep their stored statistics. On sets of 201 and 244 images, fine-tuning from
# the same probe reached accuracies of 0.959 and 0.928 with stored statistics, 0.939 and 0.882 with batch statistics.
FEW = 2000
STATISTICS = ('frozen', 'batch')
OF_TASK = ('label_smoothing',)  # options that only some tasks have
LONGEST_SIDE = 2**14  # pixels; a float image of this side has 3 GB
LONGEST = 512  # pixels; default maximum of the longer side for dense tasks
WHOLE = ('seed', 'batch_size', 'head_hidden', 'workers', 'log_every', 'save_every', 'cache_views', 'randaugment')
LARGEST = {  # values above which an option cannot work, or asks for hours of compilation
  'seed': 2**63 - 1,  # JAX's random keys
  'randaugment': 10,  # each operation is compiled; RandAugment's authors use 1 to 3
  'micro_batches': 2**20,
  'cache_views': 2**20,
  'workers': 1024,  # threads
  'head_hidden': 2**20,
  'batch_size': 2**20,
  'epochs': 10**9,
  'log_every': 2**31 - 1,
  'save_every': 2**31 - 1,
  'mixup': 10**6,
  'cutmix': 10**6,
}


@dataclasses.dataclass(frozen=True)
class Facts:
  """The facts that the defaults depend on."""

  info: DatasetInfo
  preprocess: Preprocess
  phases: Sequence[Phase]
  pretrained: bool  # False: random weights
  task: Task
  head: str | nn.Module | None = None  # None = one linear layer
  square: bool = False  # whether the model takes only square pictures

  @property
  def examples(self) -> int:
    """Number of training images."""
    return self.info.examples('train')

  @property
  def linear(self) -> bool:
    """Whether the head is a linear layer on the pooled features."""
    return self.head is None

  @property
  def probe(self) -> bool:
    """Whether only the head learns, in every phase."""
    return all(len(phase.rates) == 1 for phase in self.phases)


def resolve(experiment: Experiment, facts: Facts) -> tuple[Experiment, dict[str, str]]:
  """Fills in the options that are None.

  Args:
    experiment: the user's options.
    facts: about data, model and strategy.

  Returns:
    The complete experiment, and {option: 'value (reason)'} for each option filled in.
  """
  filled, why = {}, {}
  for name, choose in CHOICES.items():
    if getattr(experiment, name) is None and (name not in OF_TASK or hasattr(facts.task, name)):
      filled[name], reason = choose(facts)
      why[name] = f'{filled[name]} ({reason})'
  return dataclasses.replace(experiment, **filled), why


# Each function returns (value, reason); CHOICES lists them.
def image_size(facts: Facts) -> tuple[int | str, str]:
  """The checkpoint's size, or less if the images are at most half as large."""
  if facts.task.dense:
    return _whole_picture(facts)
  native, seen = facts.preprocess.size, max(facts.info.resolution)
  if 2 * seen > native:
    return native, "the checkpoint's own"
  size = min(native, max(64, -(-seen // 32) * 32))
  return size, f'the images have about {seen} pixels'


def _whole_picture(facts: Facts) -> tuple[int | str, str]:
  """The pictures' own shape in steps of 32 pixels, reduced to a longer side of at most LONGEST."""
  height, width = facts.info.resolution
  shrink = min(1, LONGEST / max(height, width))
  rows, columns = (max(32, round(side * shrink / 32) * 32) for side in (height, width))
  if facts.square:  # its position table is square
    rows = columns = max(rows, columns)
  reason = f'pictures of {height} x {width}, in steps of 32 pixels, the longer side at most {LONGEST}'
  return (rows if rows == columns else f'{rows}x{columns}'), reason


def shape(image_size: int | str | Sequence[int]) -> tuple[int, int]:
  """Height and width of an image size.

  Args:
    image_size: 224, '224', '240x320' or (240, 320).

  Returns:
    (height, width) in pixels.

  Raises:
    UsageError: for any other form, and for sides below 1.

  Examples:
    >>> shape('240x320'), shape(224)
    ((240, 320), (224, 224))
  """
  if isinstance(image_size, str):
    sides = image_size.lower().split('x')
    if not all(side.isdecimal() and len(side) < 10 for side in sides):
      raise UsageError(f'--image-size {image_size}: give a side such as 224, or HEIGHTxWIDTH such as 240x320')
    image_size = [int(side) for side in sides]
  sides = [image_size] if isinstance(image_size, int | float) else list(image_size)
  if len(sides) not in (1, 2) or min(sides) < 1 or not all(isinstance(side, int) for side in sides):
    raise UsageError(f'--image-size {image_size}: give one or two sides above 0, such as 224 or 240x320')
  if max(sides) > LONGEST_SIDE:
    raise UsageError(f'--image-size {image_size}: give sides of at most {LONGEST_SIDE:,} pixels')
  return sides[0], sides[-1]


def batch_size(facts: Facts) -> tuple[int, str]:
  """A power of two from 8 to 64 with at least 10 steps per epoch; 8 for dense tasks."""
  if facts.task.dense:
    return 8, 'every picture has thousands of labels'
  size = 8
  while size < 64 and 2 * size * 10 <= facts.examples:
    size *= 2
  return size, f'at least 10 steps an epoch on {facts.examples} images, at most 64'


def epochs(facts: Facts) -> tuple[int, str]:
  """More epochs for small data sets and for a probe, four times as many for random weights."""
  base = 30 if facts.probe else 24
  if facts.examples >= 10_000:
    base //= 3
  if not facts.pretrained:
    return 4 * base, 'random weights take longer'
  return base, f'{"a linear head" if facts.probe else "fine-tuning"} on {facts.examples} images'


def lr(facts: Facts) -> tuple[float, str]:
  """The peak learning rate of the head."""
  return 3e-3, "of the head; the strategy scales each layer's"


def weight_decay(facts: Facts) -> tuple[float, str]:
  """Less for a probe than for fine-tuning."""
  return (0.01, 'frozen features overfit slowly') if facts.probe else (0.05, 'usual for fine-tuning')


def label_smoothing(facts: Facts) -> tuple[float, str]:
  """None for a probe, 0.1 for fine-tuning."""
  return (0.0, 'a probe is calibrated without') if facts.probe else (0.1, 'usual for fine-tuning')


def dropout(facts: Facts) -> tuple[float | None, str]:
  """Dropout of the linear head; other heads keep their own."""
  if not facts.linear:
    return None, "the head's own"
  return (0.0, 'a probe needs none') if facts.probe else (0.2, 'usual for fine-tuning')


def drop_path(facts: Facts) -> tuple[float, str]:
  """Stochastic depth; none for a probe."""
  return (0.0, 'no block learns') if facts.probe else (0.1, 'usual for fine-tuning')


def norm_statistics(facts: Facts) -> tuple[str, str]:
  """Stored statistics of batch norms for pretrained weights and fewer than FEW images."""
  if not facts.pretrained:
    return 'batch', 'random weights have no statistics worth keeping'
  if facts.examples < FEW:
    return 'frozen', f'{facts.examples} images are too few to estimate new ones'
  return 'batch', f'{facts.examples} images are enough to estimate new ones'


def augmentation(facts: Facts) -> tuple[str, str]:
  """The augmentation preset that suits the task and the data set."""
  if facts.task.dense:
    return 'light', 'crops and mirror images move the labels along'
  if facts.info.augment != 'photo':
    return facts.info.augment, 'what suits this data set'
  if facts.probe and facts.linear:
    return 'none', 'a probe sees each image as evaluation does'
  return 'medium', 'the backbone learns'


def workers(facts: Facts) -> tuple[int, str]:
  """Threads that decode images."""
  return pipeline.cores(), 'processor cores that this process may use, at most 16'


CHOICES = {
  'image_size': image_size,
  'batch_size': batch_size,
  'epochs': epochs,
  'lr': lr,
  'weight_decay': weight_decay,
  'label_smoothing': label_smoothing,
  'dropout': dropout,
  'drop_path': drop_path,
  'norm_statistics': norm_statistics,
  'augment': augmentation,
  'workers': workers,
}


def check(e: Experiment) -> None:
  """Checks the values of all options, without loading anything. Raises UsageError with one line per problem."""
  positive = ('epochs', 'batch_size', 'lr', 'head_hidden', 'micro_batches', 'log_every', 'eval_every', 'save_every')
  shares = ('warmup', 'ema', 'label_smoothing', 'dropout', 'head_dropout', 'drop_path', 'erasing')
  atleast0 = ('weight_decay', 'momentum', 'clip_norm', 'focal_gamma', 'mixup', 'cutmix', 'randaugment')
  atleast0 += ('workers', 'seed', 'cache_views')
  given = {name: value for name, value in vars(e).items() if isinstance(value, float | int)}
  option = lambda name: f'--{name.replace("_", "-")} {given[name]}'
  problems = problems_of_size(e.image_size)
  inexact = {name: value for name, value in given.items() if isinstance(value, float)}
  problems += [f'{option(n)}: must be finite' for n, value in inexact.items() if not math.isfinite(value)]
  problems += [f'{option(n)}: must be a whole number' for n in WHOLE if n in inexact]
  problems += [f'{option(n)}: must be above 0' for n in positive if n in given and not given[n] > 0]
  problems += [f'{option(n)}: must lie in [0, 1)' for n in shares if n in given and not 0 <= given[n] < 1]
  problems += [f'{option(n)}: must be 0 or more' for n in atleast0 if n in given and not given[n] >= 0]
  problems += [f'{option(n)}: must be at most {most:,}' for n, most in LARGEST.items() if given.get(n, 0) > most]
  if e.schedule not in schedules.SCHEDULES:
    problems.append(f'no schedule {e.schedule!r}{words.suggest(e.schedule, schedules.SCHEDULES)}')
  if e.augment is not None and e.augment not in augment.PRESETS:
    problems.append(f'no augmentation {e.augment!r}{words.suggest(e.augment, augment.PRESETS)}')
  if e.norm_statistics not in (None, *STATISTICS):
    problems.append(f'no norm statistics {e.norm_statistics!r}{words.suggest(e.norm_statistics, STATISTICS)}')
  words.refuse(problems)


def problems_of_size(image_size: int | str | None) -> list[str]:
  """Problems of an image size, one line each; None has none."""
  try:
    shape(1 if image_size is None else image_size)
  except UsageError as error:
    return [str(error)]
  return []


def check_task(e: Experiment, task: Task, chosen: augment.Augment | None, lacking: Sequence[str] = ()) -> None:
  """Checks the options that depend on the task.

  Args:
    e: the experiment.
    task: of the experiment.
    chosen: its augmentation.
    lacking: lines of other problems, to report first.

  Raises:
    UsageError: if the task cannot do what an option asks for, or `lacking` is not empty.
  """
  called, problems = tasks.name_of(task), list(lacking)
  mixing = [f'--{n} {getattr(chosen, n):g}' for n in ('mixup', 'cutmix') if chosen and getattr(chosen, n)]
  two = {option: np.stack([x, x]) for option, x in task.blank((32, 32)).items()}
  if mixing and task.mix(two, np.ones(2)) is None:
    why = f'targets of {called} cannot be mixed; leave it out, or choose --augment light'
    problems += [f'{option}: {why}' for option in mixing]
  if task.dense and chosen and chosen.randaugment_layers:
    why = f'it moves pixels and leaves the labels of {called} where they were; give 0'
    problems.append(f'--randaugment {chosen.randaugment_layers}: {why}')
  if task.dense and e.cache_views:
    why = f'the labels of {called} would not move with the views; leave it out'
    problems.append(f'--cache-views {e.cache_views}: {why}')
  words.refuse(problems)


def check_views(e: Experiment, chosen: augment.Augment | None) -> None:
  """Checks --cache-views.

  Args:
    e: the experiment.
    chosen: its augmentation.

  Raises:
    UsageError: if --cache-views does not fit the augmentation or --cache.
  """
  if not e.cache_views:
    return
  option, mixing = f'--cache-views {e.cache_views}', [n for n in ('mixup', 'cutmix') if chosen and getattr(chosen, n)]
  problems = [f'{option}: without augmentation all views are the same; add --augment light'] if chosen is None else []
  if mixing:
    problems.append(f'{option}: no fresh pixels to mix; add {" ".join(f"--{n} 0" for n in mixing)}')
  if e.cache == 'off':
    problems.append(f'{option}: --cache off keeps none; leave it out')
  words.refuse(problems)


def least_micro_batches(e: Experiment) -> int:
  """The number of micro-batches that the user gave; 1 for 'auto', where the search for a number that fits begins."""
  return 1 if e.micro_batches == 'auto' else e.micro_batches


def check_batch(e: Experiment, devices: int) -> None:
  """Checks the batch size.

  Args:
    e: the experiment, with a batch size.
    devices: over all processes.

  Raises:
    UsageError: unless the batch size divides by devices x micro-batches.
  """
  micro_batches = least_micro_batches(e)
  parts = devices * micro_batches
  if e.batch_size % parts:
    near = max(1, round(e.batch_size / parts)) * parts
    shares = f'{devices} devices x {micro_batches} micro-batches'
    raise UsageError(f'--batch-size {e.batch_size} does not divide into {shares}; {near} does')
