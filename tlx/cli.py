"""`tlx`: the command line.

Usage errors exit with 2, other failures with 1, a run stopped by a signal with 128 + its number.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tlx import catalog, console
from tlx.experiment import Experiment
from tlx.report.folder import plain
from tlx.types import TlxError, UsageError

Json = Annotated[bool, tyro.conf.arg(help='print the result as JSON, and nothing else on standard output')]
Run = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar='RUN', help='the folder of a finished run')]


@dataclasses.dataclass(frozen=True)
class Finetune:
  """Fine-tune a pretrained backbone on your images; resumes the run that lies in --out."""

  experiment: Annotated[Experiment, tyro.conf.arg(name='')] = Experiment()
  json: Json = False

  def __call__(self) -> None:
    from tlx.experiment import run

    result = run(self.experiment, quiet=self.json)
    if self.json:
      _print({**result.metrics, 'run': str(result.folder), 'report': str(result.folder / 'report.html')})


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Evaluate a finished run, on its own validation split or on another data set of the same classes."""

  run: Run
  data: str | None = None
  """folder:PATH, tfds:NAME, ...; the run's own by default."""
  split: str = 'validation'
  batch_size: int | None = None
  json: Json = False

  def __call__(self) -> None:
    from tlx.inference import evaluate

    numbers = evaluate(self.run, data=self.data, split=self.split, batch_size=self.batch_size)
    if self.json:
      return _print(numbers)
    show = console.Console()
    for name, value in numbers.items():
      show.line(f'{name:<18} {value:.4f}' if isinstance(value, float) else f'{name:<18} {value}')


@dataclasses.dataclass(frozen=True)
class Predict:
  """Name what is in photographs: the top classes with their probabilities."""

  run: Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(metavar='RUN', help='a run folder, or a pretrained model such as efficientnet_lite0'),
  ]
  images: Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar='IMAGE...', help='files, or folders of them')
  ]
  top: int = 5
  """Classes shown for each image."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.inference import predict

    show, failed = console.Console(), 0
    found = predict(self.run, self.images, top=self.top)
    if self.json:
      found = list(found)
      _print(found)
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
  """List the models, by a pattern such as 'resnet*'."""

  pattern: tyro.conf.Positional[str] = '*'
  json: Json = False

  def __call__(self) -> None:
    from tlx.inference import model_table

    rows = model_table(self.pattern)
    if self.json:
      return _print(rows)
    console.Console().rows('models', rows)


@dataclasses.dataclass(frozen=True)
class Export:
  """Write a run's model for other tools: timm's names, with config.json."""

  run: Run
  format: Literal['timm'] = 'timm'
  out: Path | None = None
  """The folder to write; RUN/export/FORMAT by default."""
  json: Json = False

  def __call__(self) -> None:
    from tlx.inference import export

    folder = export(self.run, self.out or self.run / 'export' / self.format)
    _print({'folder': str(folder)}) if self.json else console.Console().line(f'written: {folder}')


@dataclasses.dataclass(frozen=True)
class Report:
  """Write a run's report.html again."""

  run: Run

  def __call__(self) -> None:
    from tlx.inference import run_folder
    from tlx.report.page import write_report

    console.Console().line(f'report: {write_report(run_folder(self.run))}')


COMMANDS = (Finetune, Evaluate, Predict, Models, Export, Report)


def main(arguments: list[str] | None = None) -> None:
  """Runs one command; every problem a user can mend is one clear line on standard error, without a traceback."""
  sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
  """The exit code of one command."""
  from tlx.train.loop import Stopped

  try:
    _known(arguments)
    _parse(arguments)()
    return 0
  except SystemExit as done:  # of the parser: 0 after --help, 2 for a wrong option, which it has explained
    return int(done.code or 0)
  except UsageError as error:
    return _fail(error, 2)
  except TlxError as error:
    return _fail(error, 1)
  except Stopped as stop:
    print(f'stopped: {stop}; run the same command again to go on', file=sys.stderr)
    return 128 + stop.signum
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:  # the reader, `head` say, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as error:
    return _fail(f'{error.filename or "the operating system"}: {error.strerror or error}', 1)


def _known(arguments: list[str]) -> None:
  """Refuses a misspelt command, with the nearest."""
  names = [command.__name__.lower() for command in COMMANDS]
  if arguments and not arguments[0].startswith('-') and arguments[0] not in names:
    raise UsageError(f'no command {arguments[0]!r}{catalog.suggest(arguments[0], names)}')


def _parse(arguments: list[str]) -> Any:
  from functools import reduce
  from operator import or_

  commands = [Annotated[c, tyro.conf.subcommand(c.__name__.lower(), description=c.__doc__)] for c in COMMANDS]
  return tyro.cli(
    reduce(or_, commands), args=arguments, prog='tlx', description='Transfer learning in computer vision with JAX.',
    config=(tyro.conf.FlagCreatePairsOff,),
  )  # fmt: skip


def _print(value: Any) -> None:
  print(json.dumps(plain(value), indent=2))


def _fail(error: Any, code: int) -> int:
  print(f'error: {error}', file=sys.stderr)
  return code
