"""What an experiment leaves open, filled in from the data set's size and resolution; every choice says why."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from tlx.types import DatasetInfo, Phase, Preprocess


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the defaults depend on."""

  info: DatasetInfo
  preprocess: Preprocess
  phases: Sequence[Phase]
  pretrained: bool

  @property
  def examples(self) -> int:
    return sum(self.info.counts['train'])

  @property
  def probe(self) -> bool:
    """Only the head learns, in every phase."""
    return all(len(phase.rates) == 1 for phase in self.phases)


def resolve(experiment: Any, facts: Facts) -> tuple[Any, dict[str, str]]:
  """The experiment with nothing left open, and {option: 'value (why)'} for what was filled in."""
  filled, why = {}, {}
  for name, choose in CHOICES.items():
    if getattr(experiment, name) is None:
      filled[name], reason = choose(facts)
      why[name] = f'{filled[name]} ({reason})'
  return dataclasses.replace(experiment, **filled), why


def image_size(facts: Facts) -> tuple[int, str]:
  native, seen = facts.preprocess.size, max(facts.info.resolution)
  if 2 * seen > native:
    return native, "the checkpoint's own"
  size = min(native, max(64, -(-seen // 32) * 32))
  return size, f'the images have about {seen} pixels'


def batch_size(facts: Facts) -> tuple[int, str]:
  size = 8
  while size < 64 and 2 * size * 10 <= facts.examples:
    size *= 2
  return size, f'at least 10 steps an epoch on {facts.examples} images, at most 64'


def epochs(facts: Facts) -> tuple[int, str]:
  """Small sets want many passes; what starts from nothing wants more."""
  base = 30 if facts.examples < 1000 else 20 if facts.examples < 10_000 else 10
  if not facts.pretrained:
    return 2 * base, 'random weights take longer'
  return base, f'{facts.examples} training images'


def lr(facts: Facts) -> tuple[float, str]:
  if facts.probe:
    return 1e-2, 'a linear head on frozen features'
  return 3e-3, "of the head; the strategy scales each layer's"


def weight_decay(facts: Facts) -> tuple[float, str]:
  return (0.01, 'frozen features overfit slowly') if facts.probe else (0.05, 'usual for fine-tuning')


def label_smoothing(facts: Facts) -> tuple[float, str]:
  return (0.0, 'a probe is calibrated without') if facts.probe else (0.1, 'usual for fine-tuning')


def augmentation(facts: Facts) -> tuple[str, str]:
  if facts.info.augment != 'photo':
    return facts.info.augment, 'what suits this data set'
  if facts.probe:
    return 'none', 'a probe sees each image as evaluation does'
  return ('light', 'few images') if facts.examples < 10_000 else ('medium', 'many images')


def workers(facts: Facts) -> tuple[int, str]:
  return min(16, os.cpu_count() or 1), 'processor cores, at most 16'


CHOICES = {
  'image_size': image_size,
  'batch_size': batch_size,
  'epochs': epochs,
  'lr': lr,
  'weight_decay': weight_decay,
  'label_smoothing': label_smoothing,
  'augment': augmentation,
  'workers': workers,
}
