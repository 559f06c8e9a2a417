"""The commands of `tlx explain`: as in `commands`, a dataclass each; every one writes pictures and figures.json."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from tlx import commands, console
from tlx.explain.seen import Explanation
from tlx.types import UsageError

arg, Positional = tyro.conf.arg, tyro.conf.Positional
Model = Annotated[
  Positional[str], arg(metavar='MODEL', help='A pretrained model such as efficientnet_lite0, or the folder of a run.')
]
Photo = Annotated[Positional[Path], arg(metavar='IMAGE', help='A photograph.')]
Out = Annotated[
  Path | None, arg(help='The folder to write.', help_behavior_hint='(default: RUN/explain/..., or explained/...)')
]


@dataclasses.dataclass(frozen=True)
class Features:
  """What each channel of the named layers answers to a photograph, the most active first."""

  model: Model
  image: Photo
  layer: Annotated[str | None, arg(help_behavior_hint='(default: every layer)')] = None
  """A layer by name (`tlx models NAME` lists them)."""
  most: int = 16
  """Channels shown of each layer."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx import explaining
    from tlx.explain.features import feature_maps
    from tlx.inference import load_any

    commands.positive(most=self.most)
    model, out = load_any(self.model), explaining.place(self.out, self.model, 'features', self.image.stem)
    photo = explaining.photograph(self.image, model.preprocess)
    _finish(self, out, [feature_maps(model, photo, [self.layer] if self.layer else [], self.most)])


EPSILONS = {'linf': '8/255', 'l2': '3'}
CURVES = {'linf': '0,0.5/255,1/255,2/255,4/255,8/255', 'l2': '0,0.1,0.25,0.5,1,3'}


@dataclasses.dataclass(frozen=True)
class Attack:
  """Change a photograph as little as it takes for the model to call it something else."""

  model: Model
  image: Photo
  target: Annotated[str | None, arg(help_behavior_hint='(default: any other class)')] = None
  """The class that it is to be taken for, by name or number."""
  method: Literal['pgd', 'fgsm', 'descent'] = 'pgd'
  """pgd: projected gradient descent; fgsm: one step; descent: plain gradient descent, then the smallest such change."""
  norm: Annotated[Literal['linf', 'l2'] | None, arg(help_behavior_hint='(default: linf)')] = None
  """Size of the change: the greatest of one value, or the length of all."""
  epsilon: Annotated[str | None, arg(help_behavior_hint='(default: 8/255, or 3 for l2)')] = None
  """Greatest size of the change, for pixels in [0, 1]."""
  steps: Annotated[int | None, arg(help_behavior_hint='(default: 20 for pgd, 500 for descent)')] = None
  """At most."""
  step_size: Annotated[str | None, arg(help_behavior_hint='(default: 2.5 epsilon / steps; descent 0.002)')] = None
  """Length of a step in the unit of epsilon; for descent what the gradient is multiplied by."""
  momentum: Annotated[float | None, arg(help_behavior_hint='(default: 0)')] = None
  """Share of the direction that a step of pgd keeps."""
  restarts: Annotated[int | None, arg(help_behavior_hint='(default: 1)')] = None
  """Random starts of pgd; the best is kept."""
  seed: int = 0
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx import explaining
    from tlx.explain import adversarial, attack
    from tlx.explain.seen import class_index
    from tlx.inference import load_any

    self._check()
    norm, targeted, fast = self.norm or 'linf', self.target is not None, self.method == 'fgsm'
    epsilon = fraction('--epsilon', self.epsilon or EPSILONS[norm])
    step = None if self.step_size is None else fraction('--step-size', self.step_size, least=1e-9)
    words = (self.image.stem, self.method, *([self.target] if targeted else []))
    model, out = load_any(self.model), explaining.place(self.out, self.model, 'attack', *words)
    photo = explaining.photograph(self.image, model.preprocess)
    target = class_index(model, self.target) if targeted else None
    if self.method == 'descent':
      found = adversarial.by_descent(model, photo, target, steps=self.steps or 500, rate=step or 0.002)
    else:
      steps, share = 1 if fast else self.steps or 20, step and step / max(epsilon, 1e-9)
      way = attack.Attack(norm, steps, share, targeted, self.momentum or 0.0, not fast, self.restarts or 1)
      found = adversarial.by_attack(model, photo, way, epsilon, target, self.seed)
    _finish(self, out, [found])

  def _check(self) -> None:
    """Raises UsageError for options that the method does not have, and for counts below 1."""
    none = {'pgd': (), 'fgsm': ('steps', 'step_size', 'momentum', 'restarts')}
    none['descent'] = ('norm', 'epsilon', 'momentum', 'restarts')
    if wrong := [name.replace('_', '-') for name in none[self.method] if getattr(self, name) is not None]:
      raise UsageError('\n'.join(f'--{name}: --method {self.method} has none' for name in wrong))
    commands.positive(**_given(steps=self.steps, restarts=self.restarts))


@dataclasses.dataclass(frozen=True)
class Robustness:
  """Attack every photograph of a split, with changes of several sizes: the accuracy that is left, as a curve."""

  model: Model
  data: Annotated[str | None, arg(help_behavior_hint="(default: the run's own)")] = None
  """folder:PATH, tfds:NAME, ... of the same classes."""
  split: str = 'validation'
  """validation, train, or test where there is one."""
  epsilons: Annotated[str | None, arg(help_behavior_hint='(default: 0,0.5/255,1/255,2/255,4/255,8/255)')] = None
  """Sizes of the change, for pixels in [0, 1], with commas between them; for l2 0,0.1,0.25,0.5,1,3 by default."""
  norm: Literal['linf', 'l2'] = 'linf'
  """Size of a change: the greatest of one value, or the length of all."""
  steps: int = 20
  """Of projected gradient descent, at most."""
  momentum: float = 0.0
  """Share of the direction that a step keeps."""
  restarts: int = 1
  """Random starts, for the photographs that withstood those before."""
  count: Annotated[int | None, arg(help_behavior_hint='(default: all)')] = None
  """Only so many photographs, drawn by the seed."""
  batch_size: int = 32
  """Images at once."""
  seed: int = 0
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    import numpy as np

    from tlx import explaining
    from tlx.data.split import Subset
    from tlx.explain.attack import Attack
    from tlx.explain.robustness import robustness
    from tlx.inference import check_classes, data_of, load_any

    commands.positive(steps=self.steps, restarts=self.restarts, batch_size=self.batch_size, **_given(count=self.count))
    sizes = {text: fraction('--epsilons', text) for text in (self.epsilons or CURVES[self.norm]).split(',')}
    way = Attack(self.norm, self.steps, None, False, self.momentum, True, self.restarts, stop=True)
    model, out = load_any(self.model), explaining.place(self.out, self.model, 'robustness', self.norm)
    data = data_of(self.model, self.data, self.split)
    check_classes(data, self.model, model)
    source = data.splits[self.split]
    if self.count is not None and self.count < len(source):
      source = Subset(source, np.sort(np.random.default_rng(self.seed).permutation(len(source))[: self.count]))
    _finish(self, out, robustness(model, source, sizes, way, batch_size=self.batch_size, seed=self.seed))


def fraction(option: str, text: str, least: float = 0) -> float:
  """'8/255' or '0.03'. Raises UsageError for what is neither, or below the least."""
  try:
    above, _, below = text.partition('/')
    value = float(above) / float(below or 1)
  except (ValueError, ZeroDivisionError):
    raise UsageError(f'{option} {text}: must be a number such as 8/255 or 0.03') from None
  if not least <= value < math.inf:
    raise UsageError(f'{option} {text}: must be {least:g} or more, and finite')
  return value


def _given(**options: Any) -> dict[str, Any]:
  """Those that are not None."""
  return {name: value for name, value in options.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Explain:
  """See what a backbone sees: feature maps, and what else is done by gradients of pixels."""

  TOOLS: ClassVar[tuple[type, ...]] = (Features, Attack, Robustness)


def _finish(command: Any, out: Path, work: Iterable[Explanation]) -> None:
  """Follows the work, writes what came of it and says where it lies."""
  from tlx import explaining

  show = console.Console(quiet=command.json)
  found = explaining.follow(type(command).__name__.lower(), work, show)
  written = explaining.save(out, found)
  if command.json:
    return commands.print_json({**found.figures, 'files': written})
  for name, value in found.figures.items():
    if isinstance(value, int | float | str):
      show.line(f'{name:<24} {value:.4g}' if isinstance(value, float) else f'{name:<24} {value}')
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
      _rows(show, name, value)
  show.line(f'written: {out} ({", ".join(path.name for path in written)})')


def _rows(show: console.Console, name: str, rows: list[dict[str, Any]]) -> None:
  """Figures that come as a table, a line each."""
  text = lambda value: f'{value:.4g}' if isinstance(value, float) else str(value)
  for row in rows:
    show.line(f'{name:<24} ' + '  '.join(f'{key} {text(value)}' for key, value in row.items()))
