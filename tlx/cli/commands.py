"""The commands of `tlx`: a dataclass each, whose fields are its arguments and whose call does the work."""

import ast
import dataclasses
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tlx.actions import defaults
from tlx.experiment import Experiment
from tlx.report import terminal
from tlx.report.folder import plain
from tlx.types import TlxError, UsageError

arg, Positional = tyro.conf.arg, tyro.conf.Positional
Json = Annotated[
  bool, arg(help='Print the result as JSON, and nothing else on standard output.', help_behavior_hint='')
]
Distributed = Annotated[
  bool,
  arg(
    help='One of several processes that share the run; JAX finds them under SLURM, Open MPI, Kubernetes, on TPUs.',
    help_behavior_hint='',
  ),
]
Run = Annotated[Positional[Path], arg(metavar='RUN', help='The folder of a finished run.')]


def _groups(cls: type, firsts: dict[str, str]) -> dict[str, type]:
  """{group: a dataclass of its options}: the fields of `cls` with their texts, cut before each of `firsts`."""
  body = ast.parse(inspect.getsource(cls)).body[0].body
  texts = {a.target.id: b.value.value for a, b in pairwise(body) if isinstance(b, ast.Expr) and hasattr(a, 'target')}
  found: dict[str, list] = {}
  for field in dataclasses.fields(cls):
    group = firsts[field.name] if field.name in firsts else list(found)[-1]
    option = arg(help=texts.get(field.name), help_behavior_hint=_default(field, group))
    kind = str | None if field.name in ('task', 'head') else field.type  # objects are for Python
    found.setdefault(group, []).append((field.name, Annotated[kind, option], field.default))
  return {name: dataclasses.make_dataclass(name, fields, frozen=True) for name, fields in found.items()}


def _default(field: dataclasses.Field, group: str) -> str:
  """What `--help` says of an option that is not given."""
  if field.default is False:  # a switch
    return ''
  if field.default is not None:
    return f'(default: {field.default})'
  if field.name in defaults.CHOICES:
    return '(default: automatic)'
  return '(default: set by --augment)' if group == 'augmentation' else ''


# The first option of each group of `tlx finetune --help`, and what the group is called.
GROUPS = {'model': '', 'optimizer': 'optimisation', 'augment': 'augmentation', 'workers': 'running'}
GENERAL, OPTIMISATION, AUGMENTATION, RUNNING = _groups(Experiment, GROUPS).values()
Bare = tyro.conf.OmitArgPrefixes  # --lr, not --optimisation.lr


@dataclasses.dataclass(frozen=True)
class Finetune:
  """Fine-tune a pretrained backbone on your images; resumes the run that lies in --out."""

  general: Annotated[GENERAL, arg(name='')] = GENERAL()
  optimisation: Bare[OPTIMISATION] = OPTIMISATION()
  augmentation: Bare[AUGMENTATION] = AUGMENTATION()
  running: Bare[RUNNING] = RUNNING()
  distributed: Distributed = False
  json: Json = False

  def __call__(self) -> None:
    from tlx import processes
    from tlx.actions.finetune import run

    if self.distributed:
      processes.start()
    given = vars(self.general) | vars(self.optimisation) | vars(self.augmentation) | vars(self.running)
    result = run(Experiment(**given), quiet=self.json)
    if self.json:
      print_json({**result.metrics, 'run': str(result.folder), 'report': str(result.folder / 'report.html')})


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Evaluate a finished run, on its own validation split or on another data set of the same classes."""

  run: Run
  data: Annotated[str | None, arg(help_behavior_hint="(default: the run's own)")] = None
  """folder:PATH, tfds:NAME, ... of the same classes."""
  split: str = 'validation'
  """validation, train, or test where there is one."""
  batch_size: Annotated[int | None, arg(help_behavior_hint="(default: the run's own)")] = None
  """Images a step; the numbers are the same."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.evaluate import evaluate

    numbers = evaluate(self.run, data=self.data, split=self.split, batch_size=self.batch_size)
    if self.json:
      return print_json(numbers)
    show = terminal.Console()
    for name, value in numbers.items():
      show.line(f'{name:<18} {value:.4f}' if isinstance(value, float) else f'{name:<18} {value}')


@dataclasses.dataclass(frozen=True)
class Predict:
  """Name what is in photographs: the top classes with their probabilities."""

  run: Annotated[
    Positional[str], arg(metavar='RUN', help='A run folder, or a pretrained model such as efficientnet_lite0.')
  ]
  images: Annotated[
    Positional[tuple[Path, ...]],
    arg(metavar='IMAGE...', help='Files, or folders of them.', help_behavior_hint='(required)'),
  ]
  top: int = 5
  """Classes shown for each image."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.predict import predict

    show, failed = terminal.Console(), 0
    found = predict(self.run, self.images, top=self.top)
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
        show.line(f'  {item["probability"]:7.2%}  {item["name"]}')
    if failed:
      raise TlxError(f'{failed} of the images could not be read')


@dataclasses.dataclass(frozen=True)
class Models:
  """List the models; of a single one, say what each of its layers costs."""

  pattern: Annotated[
    Positional[str], arg(metavar='[PATTERN]', help="A name, or a pattern such as 'resnet*'.", help_behavior_hint='')
  ] = '*'
  sort: Literal['name', 'parameters', 'gmacs', 'top1', 'size'] = 'name'
  """top1 lists the most accurate first, the others the smallest."""
  max_parameters: Annotated[str | None, arg(metavar='N', help_behavior_hint='')] = None
  """Only models of at most so many, such as 25M."""
  license: Annotated[str | None, arg(help_behavior_hint='')] = None
  """Only models whose weights have this licence, such as 'apache*'; none: without published weights."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.models import layer_table, model_table

    most = None if self.max_parameters is None else quantity('--max-parameters', self.max_parameters)
    rows = model_table(self.pattern, sort=self.sort, max_parameters=most, license=self.license)
    layers = layer_table(rows[0]['name']) if len(rows) == 1 else []
    if self.json:
      return print_json([{**rows[0], 'layers': layers}] if layers else rows)
    show = terminal.Console()
    show.model(rows[0], layers) if layers else show.models(rows)


def quantity(option: str, text: str) -> float:
  """'25M' -> 25e6; k, M and B stand for thousands, millions and billions."""
  factor = {'k': 1e3, 'm': 1e6, 'b': 1e9}.get(text[-1:].lower())
  try:
    return float(text[:-1] if factor else text) * (factor or 1)
  except ValueError:
    raise UsageError(f'{option} {text}: must be a number such as 5000000, 5M or 1.2B') from None


@dataclasses.dataclass(frozen=True)
class Cost:
  """Say what a step of a strategy would cost, by the compiler's count; nothing is trained."""

  model: str = 'efficientnet_lite0'
  """A variant (`tlx models`), or a folder with config.json."""
  strategy: str = 'lp_ft'
  """linear_probe, partial:K, layerwise_decay:D, full, lp_ft, gradual or scratch."""
  batch_size: int = 32
  """Images a step, over all devices."""
  image_size: Annotated[int | None, arg(help_behavior_hint="(default: the model's own)")] = None
  """Height and width in pixels of what the model sees."""
  num_classes: int = 1000
  """Outputs of the head."""
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  """Of the compute; parameters stay float32."""
  micro_batches: int = 1
  """Parts a batch is computed in, one after the other (gradient accumulation)."""
  remat: Annotated[bool, arg(help_behavior_hint='')] = False
  """Compute the inside of each layer again in the backward pass instead of keeping it; on a CPU, XLA undoes it."""
  optimizer: Literal['adamw', 'sgd'] = 'adamw'
  """sgd has momentum."""
  devices: Annotated[int | None, arg(help_behavior_hint='(default: all that JAX sees)')] = None
  """Compile for so many processors that are only pretended, to see what they would exchange."""
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
    )
    print_json(found) if self.json else terminal.Console().cost(found)


@dataclasses.dataclass(frozen=True)
class Export:
  """Write a run's model for other tools: model.safetensors under their names, with config.json."""

  run: Run
  format: str = 'timm'
  """Whose names: timm, or another that the model's family has (torchvision, transformers, ...)."""
  out: Annotated[Path | None, arg(help_behavior_hint='(default: RUN/export/FORMAT)')] = None
  """The folder to write."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.actions.export import export

    folder = export(self.run, self.out or self.run / 'export' / self.format, self.format)
    print_json({'folder': str(folder)}) if self.json else terminal.Console().line(f'written: {folder}')


@dataclasses.dataclass(frozen=True)
class Report:
  """Write a run's report.html again."""

  run: Run

  def __call__(self) -> None:
    from tlx.actions.runs import load_run, run_folder, task_of
    from tlx.report.page import write_report

    task = task_of(load_run(self.run))
    terminal.Console().line(f'report: {write_report(run_folder(self.run), task)}')


def positive(**given: float) -> None:
  """Raises UsageError that lists the options which are not above 0."""
  wrong = {name.replace('_', '-'): value for name, value in given.items() if value <= 0}
  if problems := [f'--{name} {value}: must be above 0' for name, value in wrong.items()]:
    raise UsageError('\n'.join(problems))


def print_json(value: Any) -> None:
  print(json.dumps(plain(value), indent=2))
