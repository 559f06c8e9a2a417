"""The commands of `tlx`: a dataclass each, whose fields are its arguments and whose call does the work."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tlx import words
from tlx.experiment import Experiment
from tlx.report import terminal
from tlx.report.folder import plain
from tlx.types import TlxError, UsageError

arg, Positional = tyro.conf.arg, tyro.conf.Positional
Json = Annotated[bool, arg(help='Print the result as JSON and nothing else on standard output.', help_behavior_hint='')]
Distributed = Annotated[
  bool,
  arg(
    help='Join a run of several processes. JAX finds the others under SLURM, Open MPI, Kubernetes and on TPUs.',
    help_behavior_hint='',
  ),
]
Scales = Annotated[
  str | None,
  arg(
    metavar='N,...',
    help='For masks: windows slide over the photograph at these factors of its own size, such as 1 or 0.75,1,1.25.',
    help_behavior_hint='(default: the whole photograph, resized)',
  ),
]
Run = Annotated[Positional[Path], arg(metavar='RUN', help='Folder of a finished run.')]


def groups(cls: type) -> dict[str, type]:
  """{group: a dataclass of its options}, from the metadata of the fields (`tlx.experiment.option`)."""
  found: dict[str, list] = {}
  for field in dataclasses.fields(cls):
    texts = field.metadata
    shown = arg(help=texts['help'], metavar=texts['metavar'], help_behavior_hint=_default(field))
    kind = texts['typed_as'] or field.type
    found.setdefault(texts['group'], []).append((field.name, Annotated[kind, shown], field.default))
  return {name: dataclasses.make_dataclass(name or 'general', fields, frozen=True) for name, fields in found.items()}


def _default(field: dataclasses.Field) -> str:
  """What `--help` says of an option that is not given."""
  if field.default is False:  # a switch
    return ''
  return f'(default: {field.metadata["default_text"] if field.default is None else field.default})'


def _boxes(cls: type) -> type:
  """A dataclass whose fields are the groups; `--help` draws a box around each that has a name."""
  place = lambda name: arg(name='') if not name else tyro.conf.OmitArgPrefixes  # --lr, not --optimisation.lr
  fields = [(kind.__name__, Annotated[kind, place(name)], kind()) for name, kind in groups(cls).items()]
  return dataclasses.make_dataclass('Options', fields, frozen=True)


@dataclasses.dataclass(frozen=True)
class Finetune(_boxes(Experiment)):
  """Fine-tune a pretrained backbone on your images. If --out holds an unfinished run, resume it."""

  distributed: Distributed = False
  json: Json = False

  def __call__(self) -> None:
    from tlx import processes
    from tlx.actions.finetune import run

    if self.distributed:
      processes.start()
    boxes = [value for value in vars(self).values() if dataclasses.is_dataclass(value)]
    result = run(Experiment(**{name: value for box in boxes for name, value in vars(box).items()}), quiet=self.json)
    if self.json:
      print_json({**result.metrics, 'run': str(result.folder), 'report': str(result.folder / 'report.html')})


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Evaluate a finished run on its own validation split, or on another data set with the same classes."""

  run: Run
  data: Annotated[str | None, arg(help_behavior_hint="(default: the run's own)")] = None
  """Data set with the same classes: folder:PATH, tfds:NAME, ..."""
  split: str = 'validation'
  """Split to evaluate: validation, train, or test if the data set has one."""
  batch_size: Annotated[int | None, arg(help_behavior_hint="(default: the run's own)")] = None
  """Images per step. It does not change the result."""
  scales: Scales = None
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.evaluate import evaluate

    scales = factors(self.scales)
    numbers = evaluate(self.run, data=self.data, split=self.split, batch_size=self.batch_size, scales=scales)
    if self.json:
      return print_json(numbers)
    show = terminal.Console()
    for name, value in numbers.items():
      show.line(f'{name:<18} {value:.4f}' if isinstance(value, float) else f'{name:<18} {value}')


@dataclasses.dataclass(frozen=True)
class Predict:
  """Predict what is in photographs: the top classes with their probabilities, or a mask of each image."""

  run: Annotated[
    Positional[str], arg(metavar='RUN', help='A run folder, or a pretrained model such as efficientnet_lite0.')
  ]
  images: Annotated[
    Positional[tuple[Path, ...]],
    arg(metavar='IMAGE...', help='Image files, or folders of image files.', help_behavior_hint='(required)'),
  ]
  top: int = 5
  """Number of classes to show for each image."""
  out: Annotated[Path | None, arg(metavar='DIR', help_behavior_hint='(default: predictions)')] = None
  """Folder for masks and overlays, if the task makes such pictures."""
  scales: Scales = None
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.predict import predict

    show, failed = terminal.Console(), 0
    out, scales = self.out or Path('predictions'), factors(self.scales)
    found = predict(self.run, self.images, top=self.top, out=out, scales=scales)
    if self.json:
      found = list(found)
      print_json(found)
    for prediction in found:
      failed += 'error' in prediction
      if self.json:
        continue
      if 'error' in prediction:
        show.warn(f'{prediction["image"]}: {prediction["error"]}; left out')
        continue
      show.line(prediction['image'])
      for item in prediction['classes']:
        show.line(f'  {item.get("probability", item.get("share")):7.2%}  {item["name"]}')
      for name in ('mask', 'overlay'):
        if name in prediction:
          show.line(f'  {name}: {prediction[name]}')
    if failed:
      raise TlxError(f'{failed} of the images could not be read')


@dataclasses.dataclass(frozen=True)
class Models:
  """List the models. For a single model, list its layers and what each of them costs."""

  pattern: Annotated[
    Positional[str], arg(metavar='[PATTERN]', help="A name, or a pattern such as 'resnet*'.", help_behavior_hint='')
  ] = '*'
  sort: Literal['name', 'parameters', 'gmacs', 'top1', 'size'] = 'name'
  """Order of the list. top1 puts the most accurate model first, the others put the smallest first."""
  max_parameters: Annotated[str | None, arg(metavar='N', help_behavior_hint='')] = None
  """Maximum number of parameters, such as 25M."""
  license: Annotated[str | None, arg(help_behavior_hint='')] = None
  """Licence of the weights, such as 'apache*'; none lists the models without published weights."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.models import model_table, with_layers

    most = None if self.max_parameters is None else quantity('--max-parameters', self.max_parameters)
    rows = model_table(self.pattern, sort=self.sort, max_parameters=most, license=self.license)
    if len(rows) == 1:
      row, layers = with_layers(rows[0])
      return print_json([{**row, 'layers': layers}]) if self.json else terminal.Console().model(row, layers)
    print_json(rows) if self.json else terminal.Console().models(rows)


def factors(text: str | None) -> tuple[float, ...]:
  """'0.75,1,1.25' -> (0.75, 1.0, 1.25). Raises UsageError for anything else."""
  try:
    return tuple(float(word) for word in text.split(',')) if text else ()
  except ValueError:
    raise UsageError(f'--scales {text}: give numbers separated by commas, such as 1 or 0.75,1,1.25') from None


def quantity(option: str, text: str) -> float:
  """'25M' -> 25e6; k, M and B stand for thousands, millions and billions."""
  factor = {'k': 1e3, 'm': 1e6, 'b': 1e9}.get(text[-1:].lower())
  try:
    return float(text[:-1] if factor else text) * (factor or 1)
  except ValueError:
    raise UsageError(f'{option} {text}: must be a number such as 5000000, 5M or 1.2B') from None


@dataclasses.dataclass(frozen=True)
class Cost:
  """Show what one training step of a strategy costs, as the compiler counts it. Nothing is trained."""

  model: str = 'efficientnet_lite0'
  """Model: a name from `tlx models`, or a folder with config.json."""
  strategy: str = 'lp_ft'
  """What learns: linear_probe, partial:K, layerwise_decay:D, full, lp_ft, gradual or scratch."""
  batch_size: int = 32
  """Images per step, over all devices."""
  image_size: Annotated[str | None, arg(help_behavior_hint="(default: the model's own)")] = None
  """Size of the model's input in pixels: one side such as 224, or HEIGHTxWIDTH such as 240x320."""
  task: Annotated[str | None, arg(help_behavior_hint="(default: the model's own)")] = None
  """Task: classification, multilabel or segmentation."""
  head: Annotated[str | None, arg(help_behavior_hint="(default: the model's own, or set by --task)")] = None
  """Head: linear, mlp, unet, deeplabv3plus, ..., with options as in 'unet(widths=(128,64,32,16))'."""
  num_classes: int = 1000
  """Number of classes, which is the number of outputs of the head."""
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  """Number format of the computation. Parameters stay float32."""
  micro_batches: int = 1
  """Parts of a batch that are computed one after another to save memory (gradient accumulation)."""
  remat: Annotated[bool, arg(help_behavior_hint='')] = False
  """Compute the inside of each layer again in the backward pass, to save memory. On a CPU, XLA undoes this."""
  optimizer: Literal['adamw', 'sgd'] = 'adamw'
  """Optimizer. sgd uses momentum."""
  devices: Annotated[int | None, arg(help_behavior_hint='(default: all that JAX sees)')] = None
  """Compile for this number of simulated CPU devices, to see how many bytes they exchange."""
  json: Json = False

  def __call__(self) -> None:
    from tlx import processes
    from tlx.actions.cost import certify

    if self.devices is not None:
      processes.pretend(self.devices)
    found = certify(
      self.model,
      self.strategy,
      batch_size=self.batch_size,
      image_size=self.image_size,
      num_classes=self.num_classes,
      dtype=self.dtype,
      micro_batches=self.micro_batches,
      remat=self.remat,
      optimizer_name=self.optimizer,
      task=self.task,
      head=self.head,
    )
    print_json(found) if self.json else terminal.Console().cost(found)


@dataclasses.dataclass(frozen=True)
class Export:
  """Write the model of a run for another library: model.safetensors with its names, and config.json."""

  run: Run
  format: Annotated[str | None, arg(help_behavior_hint="(default: the names of the weights' source, or timm's)")] = None
  """Library whose names are written: timm, or another one that the model supports (torchvision, transformers, smp)."""
  out: Annotated[Path | None, arg(help_behavior_hint='(default: RUN/export/FORMAT)')] = None
  """Folder to write."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.export import export

    folder = export(self.run, self.out or self.run / 'export' / (self.format or 'own'), self.format)
    print_json({'folder': str(folder)}) if self.json else terminal.Console().line(f'written: {folder}')


@dataclasses.dataclass(frozen=True)
class Report:
  """Write the report.html of a run again."""

  run: Run

  def __call__(self) -> None:
    from tlx.actions.runs import run_folder, task_of_run
    from tlx.report.page import write_report

    terminal.Console().line(f'report: {write_report(run_folder(self.run), task_of_run(self.run))}')


def positive(**given: float) -> None:
  """Raises UsageError that lists the options which are not above 0."""
  wrong = {name.replace('_', '-'): value for name, value in given.items() if value <= 0}
  words.refuse([f'--{name} {value}: must be above 0' for name, value in wrong.items()])


def print_json(value: Any) -> None:
  print(json.dumps(plain(value), indent=2))
