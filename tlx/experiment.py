"""The noun of a run: every option that decides it. `tlx.finetune` runs one, the command line makes one from words."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # `tlx --help` does not wait for flax
  import flax.linen as nn

  from tlx.types import Strategy, Task


def option(
  default: Any,
  *,
  help: str,
  group: str = '',
  metavar: str | None = None,
  default_text: str | None = None,
  typed_as: Any = None,
) -> Any:
  """A field of `Experiment` with the texts that `tlx finetune --help` shows.

  Args:
    default: the value where nothing is given; None leaves the choice to `tlx/actions/defaults.py`.
    help: one or two sentences in plain words.
    group: the title of the box of options that this one is in; '' is the untitled first box.
    metavar: what `--help` prints for the value, such as 'DIR'; None prints the type.
    default_text: what `--help` prints for a default of None.
    typed_as: the type of the words on the command line, for a field that takes objects in Python.
  """
  about = {'help': help, 'group': group, 'metavar': metavar, 'default_text': default_text or 'automatic'}
  return dataclasses.field(default=default, metadata={**about, 'typed_as': typed_as})


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Every option of a run. tlx chooses the value of an option that is None, from the data set, and prints it."""

  model: str = option(
    'efficientnet_lite0',
    metavar='NAME',
    help='Pretrained model: a name from `tlx models`, a folder with config.json and weights, or hf-hub:OWNER/NAME.',
  )
  data: str = option(
    'photo_patches',
    metavar='DATA',
    help='Data set: photo_patches, digits, folder:PATH, masks:PATH, coco_masks:PATH, tags:PATH or tfds:NAME.',
  )
  strategy: 'str | Strategy' = option(
    'lp_ft',
    metavar='STRATEGY',
    typed_as=str,
    help='What learns: linear_probe, partial:K, layerwise_decay:D, full, lp_ft, gradual or scratch.',
  )
  out: str | None = option(
    None,
    metavar='DIR',
    default_text='runs/DATA-MODEL-STRATEGY',
    help='Run folder. tlx resumes an unfinished run that it finds there.',
  )
  weights: str | None = option(
    None,
    metavar='FILE',
    default_text="the model's published weights",
    help='File or URL of the pretrained weights; FILE:KEY takes those under KEY in the file.',
  )
  task: 'str | Task | None' = option(
    None,
    metavar='TASK',
    default_text='set by --data',
    typed_as=str | None,
    help="Task: classification, multilabel or segmentation, with options as in 'segmentation(losses=ce+lovasz)'.",
  )
  head: 'str | nn.Module | None' = option(
    None,
    metavar='HEAD',
    default_text="the model's own, or set by --task",
    typed_as=str | None,
    help="Head: linear, mlp, unet, deeplabv3plus, ..., with options as in 'unet(widths=(128,64,32,16))'.",
  )
  epochs: float | None = option(None, help='Passes over the training split.')
  batch_size: int | None = option(None, help='Images per step, over all devices.')
  image_size: int | str | None = option(
    None, metavar='SIZE', help="Size of the model's input in pixels: one side, or HEIGHTxWIDTH."
  )
  seed: int = option(0, help='Random seed.')
  compile: Literal['jit', 'pmap'] = option(
    'jit', help='JAX transformation that spreads a step over the devices. Both give the same numbers.'
  )
  dtype: Literal['float32', 'bfloat16'] = option(
    'float32', help='Number format of the computation. Parameters stay float32.'
  )

  optimizer: Literal['adamw', 'sgd'] = option('adamw', group='optimisation', help='Optimizer. sgd uses momentum.')
  lr: float | None = option(
    None, group='optimisation', help='Peak learning rate of the head. The strategy scales it for each layer.'
  )
  schedule: str = option(
    'cosine',
    group='optimisation',
    help='Learning-rate schedule: cosine, linear, constant, step, polynomial, one_cycle or rsqrt.',
  )
  warmup: float = option(0.1, group='optimisation', help="Length of the warmup, as a share of each phase's steps.")
  weight_decay: float | None = option(
    None, group='optimisation', help='Weight decay of kernels. Biases and norms do not decay.'
  )
  momentum: float = option(0.9, group='optimisation', help='Momentum of sgd.')
  clip_norm: float = option(
    1.0, group='optimisation', help='Maximum norm of the gradient of what learns; 0 turns clipping off.'
  )
  micro_batches: int | Literal['auto'] = option(
    1,
    group='optimisation',
    help='Parts of a batch that are computed one after another to save memory (gradient accumulation). '
    'auto finds the smallest number that fits in memory. Batch norms that train see one part at a time.',
  )
  remat: bool = option(
    False,
    group='optimisation',
    help='Compute the inside of each layer again in the backward pass, to save memory. On a CPU, XLA undoes this.',
  )
  ema: float = option(0.0, group='optimisation', help='Decay of the moving average of what learns; 0 turns it off.')
  label_smoothing: float | None = option(
    None, group='optimisation', help='Share of each target that is spread over all classes.'
  )
  dropout: float | None = option(None, group='optimisation', help='Dropout rate of the inputs of the head.')
  head_hidden: int | None = option(
    None, group='optimisation', default_text="the head's own", help='Units of the hidden layer of the head mlp.'
  )
  head_dropout: float | None = option(
    None, group='optimisation', default_text='set by --dropout', help='The same as --dropout.'
  )
  pool: str | None = option(
    None,
    group='optimisation',
    default_text="the head's own",
    help='How the heads linear and mlp turn the last map into one vector: avg, max or flatten.',
  )
  drop_path: float | None = option(
    None, group='optimisation', help='Stochastic-depth rate of the last block. It grows linearly from 0 at the first.'
  )
  norm_statistics: str | None = option(
    None,
    group='optimisation',
    metavar='{frozen,batch}',
    help='Statistics that the batch norms of the backbone use in training: frozen uses the stored ones, batch those of '
    'each batch.',
  )
  class_weights: Literal['none', 'balanced'] = option(
    'none', group='optimisation', help='Class weights in the loss. balanced gives rare classes larger weights.'
  )
  sampling: Literal['shuffled', 'balanced'] = option(
    'shuffled', group='optimisation', help='Order of the training images. balanced draws every class equally often.'
  )
  focal_gamma: float = option(0.0, group='optimisation', help='Exponent of the focal loss; 0 is cross-entropy.')

  augment: str | None = option(
    None, group='augmentation', help='Augmentation of the training images: none, light, medium, strong or glyph.'
  )
  mixup: float | None = option(
    None, group='augmentation', default_text='set by --augment', help='Alpha of mixup; 0 turns it off.'
  )
  cutmix: float | None = option(
    None, group='augmentation', default_text='set by --augment', help='Alpha of cutmix; 0 turns it off.'
  )
  erasing: float | None = option(
    None,
    group='augmentation',
    default_text='set by --augment',
    help='Probability that noise replaces a random rectangle of an image.',
  )
  randaugment: int | None = option(
    None,
    group='augmentation',
    default_text='set by --augment',
    help='RandAugment operations per image; 0 turns it off.',
  )
  cache_views: int = option(
    0,
    group='augmentation',
    help='Augmented versions of each image that the frozen layers see once. Each step picks one of them. '
    '0 augments the images anew in each step.',
  )

  workers: int | None = option(None, group='running', help='Threads that decode images.')
  cache: Literal['auto', 'off', 'memory', 'disk'] = option(
    'auto',
    group='running',
    help='Where to keep the features of the frozen layers, which then run only once. auto and disk keep them for later '
    'runs too. Augmentation that needs fresh pixels rules this out.',
  )
  log_every: int = option(10, group='running', help='Steps between two lines of metrics.jsonl.')
  eval_every: float = option(
    0.1,
    group='running',
    help='Share of the run between two evaluations on the validation split. They are at least one epoch apart.',
  )
  save_every: int = option(100, group='running', help='Steps between two checkpoints.')
