"""The noun of a run: every option that decides it. `tlx.finetune` runs one, the command line makes one from words."""

import dataclasses
from typing import Literal

import flax.linen as nn

from tlx.types import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything that decides a run. None is filled in from the data set (`tlx/actions/defaults.py`), and printed."""

  model: str = 'efficientnet_lite0'
  """A variant (`tlx models`), a folder with config.json and weights, or hf-hub:OWNER/NAME."""
  data: str = 'photo_patches'
  """photo_patches, digits, folder:PATH, masks:PATH, tags:PATH or tfds:NAME."""
  task: str | Task | None = None
  """classification, multilabel, segmentation, with options as in 'segmentation(loss=ce+dice)'."""
  head: str | nn.Module | None = None
  """linear, mlp, unet, deeplabv3plus, ..., with options as in 'unet(widths=(128,64,32,16))'."""
  strategy: str = 'lp_ft'
  """linear_probe, partial:K, layerwise_decay:D, full, lp_ft, gradual or scratch."""
  out: str | None = None
  """The run folder; runs/DATA-MODEL-STRATEGY by default. An unfinished run there is resumed."""
  weights: str | None = None
  """A file or URL to take the weights from, instead of the model's published ones."""
  epochs: float | None = None
  """Passes over the training split."""
  batch_size: int | None = None
  """Images a step, over all devices."""
  image_size: int | str | None = None
  """Pixels of what the model sees: a side, or HEIGHTxWIDTH."""
  seed: int = 0
  """Of everything random."""
  compile: Literal['jit', 'pmap'] = 'jit'
  """How the step is spread over devices; the numbers are the same."""
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  """Of the compute; parameters stay float32."""

  optimizer: Literal['adamw', 'sgd'] = 'adamw'
  """sgd has momentum."""
  lr: float | None = None
  """Peak learning rate of the head; a strategy scales each layer's."""
  schedule: str = 'cosine'
  """cosine, linear, constant, step, polynomial, one_cycle or rsqrt."""
  warmup: float = 0.1
  """Share of each phase's steps."""
  weight_decay: float | None = None
  """On kernels only, never on biases and norms."""
  momentum: float = 0.9
  """Of sgd."""
  clip_norm: float = 1.0
  """Largest norm of the trainable gradient; 0 = no clipping."""
  micro_batches: int | Literal['auto'] = 1
  """Parts a batch is computed in, one after the other (gradient accumulation); auto: the fewest that fit in memory."""
  remat: bool = False
  """Compute the inside of each layer again in the backward pass instead of keeping it; on a CPU, XLA undoes it."""
  ema: float = 0.0
  """Decay of the moving average of what learns; 0 = none."""
  label_smoothing: float | None = None
  """Share of each target that is spread over all classes."""
  dropout: float | None = None
  """Share of the head's inputs that training drops."""
  head_hidden: int | None = None
  """Units of the hidden layer of --head mlp."""
  head_dropout: float | None = None
  """The same as --dropout."""
  pool: str | None = None
  """avg, max or flatten: how --head linear and mlp make one vector of the last map."""
  drop_path: float | None = None
  """Stochastic depth of the last block, growing linearly from the first."""
  norm_statistics: str | None = None
  """frozen or batch: batch norms of the backbone normalise by their stored statistics, or by those of each batch."""
  class_weights: Literal['none', 'balanced'] = 'none'
  """balanced: the rarer the class, the heavier its loss."""
  sampling: Literal['shuffled', 'balanced'] = 'shuffled'
  """balanced: every class equally often."""
  focal_gamma: float = 0.0
  """Focal loss; 0 = cross-entropy."""

  augment: str | None = None
  """none, light, medium, strong or glyph."""
  mixup: float | None = None
  """Alpha of mixup; 0 = off. This and the three below are left to --augment unless given."""
  cutmix: float | None = None
  """Alpha of cutmix; 0 = off."""
  erasing: float | None = None
  """Probability of a random rectangle of noise."""
  randaugment: int | None = None
  """RandAugment's operations an image; 0 = off."""
  cache_views: int = 0
  """Augmented views of each image that the frozen layers see, once; what learns draws among them. 0 = fresh pixels."""

  workers: int | None = None
  """Threads that decode images."""
  cache: Literal['auto', 'off', 'memory', 'disk'] = 'auto'
  """Run the frozen layers once, where no augmentation needs fresh pixels; auto and disk keep it for later runs too."""
  log_every: int = 10
  """Steps between lines of metrics.jsonl."""
  eval_every: float = 0.1
  """Share of the run between evaluations on the validation split; at least an epoch."""
  save_every: int = 100
  """Steps between checkpoints."""
