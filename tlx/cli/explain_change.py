"""Commands that change pixels: ideal pictures, style transfer and adversarial attacks."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tlx.cli import commands
from tlx.cli.explain_shared import (
  DEFAULT,
  Data,
  Model,
  Out,
  Photo,
  Positional,
  Split,
  arg,
  finish,
  given,
  model_and,
)  # fmt: skip
from tlx.types import Pretrained, UsageError

EPSILONS = {'linf': '8/255', 'l2': '3'}
CURVES = {'linf': '0,0.5/255,1/255,2/255,4/255,8/255', 'l2': '0,0.1,0.25,0.5,1,3'}


@dataclasses.dataclass(frozen=True)
class Ideal:
  """Make pictures that maximise a class, a channel or a direction, starting from noise."""

  model: Annotated[Model, arg(metavar='[MODEL]', help='A pretrained model, or the folder of a run.')] = DEFAULT
  classes: Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    arg(name='class', metavar='NAME', help='A class by name or number; repeat the option, or separate them by commas.'),
  ] = ()
  layer: Annotated[str | None, arg(help_behavior_hint='')] = None
  """Instead of a class, a layer (`tlx models NAME` lists them), with --channel or --towards."""
  channel: Annotated[int | None, arg(help_behavior_hint='')] = None
  """Channel of --layer, by number."""
  towards: Annotated[Path | None, arg(metavar='IMAGE', help_behavior_hint='')] = None
  """A photograph. The pictures maximise the direction to it from a plain picture of its mean colour, in --layer."""
  steps: int = 512
  """Gradient steps."""
  variation: Annotated[float | None, arg(help_behavior_hint='(default: 2000 for classes, 50 for a layer)')] = None
  """Weight of the total variation, relative to one standard deviation of the objective; 0 turns it off."""
  parametrisation: Literal['fourier', 'pixels'] = 'fourier'
  """What descent changes: Fourier coefficients of decorrelated colours, or the pixels themselves."""
  no_transforms: Annotated[bool, arg(help_behavior_hint='')] = False
  """Turn off the random shifts, scales and rotations that keep the picture legible."""
  size: Annotated[int | None, arg(help_behavior_hint="(default: the model's own)")] = None
  """Height and width in pixels."""
  judge: Annotated[str | None, arg(metavar='MODEL', help_behavior_hint='')] = None
  """A second model with the same classes, which classifies the finished pictures."""
  seed: int = 0
  """Random seed for the noise and the transforms."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import load_any
    from tlx.explain import ideal, transforms
    from tlx.explain.outputs import check_size

    commands.positive(steps=self.steps)
    variation = (2000.0 if self.classes else 50.0) if self.variation is None else self.variation
    if variation < 0:
      raise UsageError(f'--variation {variation}: must be 0 or more')
    self._one_subject()
    model, judge = load_any(self.model), load_any(self.judge) if self.judge else None
    goals = self._goals(model)
    for goal in goals if judge else ():
      ideal.judged_class(judge, model, goal.index)
    size = check_size(model, max(model.preprocess.shape) if self.size is None else self.size)
    work = ideal.ideal_images(
      model,
      goals,
      size=size,
      steps=self.steps,
      variation=variation,
      parametrisation=self.parametrisation,
      transforms=transforms.NONE if self.no_transforms else transforms.USUAL,
      seed=self.seed,
      judge=judge,
    )
    finish(self, explain.place(self.out, self.model, 'ideal', *(goal.name for goal in goals)), work)

  def _one_subject(self) -> None:
    """Raises UsageError unless the options name either classes, or a layer with a channel or a photograph."""
    if bool(self.classes) == bool(self.layer):
      raise UsageError('name either --class, or --layer with --channel or --towards')
    if bool(self.layer) != ((self.channel is None) != (self.towards is None)):
      raise UsageError('--layer needs one of --channel and --towards, and they need it')
    if self.judge and self.layer:
      raise UsageError('--judge looks at classes, not at a --layer; name a --class, or leave --judge out')

  def _goals(self, model: Pretrained) -> list:
    from tlx.actions import explain
    from tlx.explain import ideal

    if self.channel is not None:
      return [ideal.of_channel(model, self.layer, self.channel)]
    if self.towards is not None:
      photo = explain.photograph(self.towards, model.preprocess)
      return [ideal.of_direction(model, self.layer, photo, self.towards.stem)]
    known = [name.lower() for name in model.class_names]  # some names contain a comma
    words = [part for text in self.classes for part in ([text] if text.lower() in known else text.split(','))]
    goals = [ideal.of_class(model, word.strip()) for word in words]
    return list({goal.index: goal for goal in goals}.values())


@dataclasses.dataclass(frozen=True)
class Style:
  """Draw the content of a photograph in the style of another picture."""

  pictures: Annotated[
    Positional[tuple[str, ...]],
    arg(
      metavar='[MODEL] CONTENT STYLE',
      help='A photograph for the content and a picture for the style; a model or a run may come first.',
      help_behavior_hint='(default: vgg19 if its weights are on this machine, else efficientnet_lite0)',
    ),
  ]
  size: Annotated[int | None, arg(help_behavior_hint="(default: 512, or the model's only size)")] = None
  """Longer side of the result in pixels. It is reached in up to three sizes, each twice the one before."""
  steps: int = 80
  """Optimizer steps at each size."""
  style_layers: Annotated[str | None, arg(help_behavior_hint='(default: the first at each resolution)')] = None
  """Layers whose Gram matrices define the style, separated by commas."""
  content_layer: Annotated[str | None, arg(help_behavior_hint='(default: the second at stride 8)')] = None
  """Layer that defines the content."""
  style_weight: float = 1000.0
  """Weight of the style; the content has weight 1."""
  variation: float = 3.0
  """Weight of the total variation."""
  colours: Literal['style', 'luminance', 'histogram'] = 'style'
  """Source of the colours. luminance keeps those of the photograph and transfers brightness only; histogram first gives
  the style picture the colours of the photograph."""
  optimizer: Literal['lbfgs', 'adam'] = 'lbfgs'
  """Optimizer. lbfgs gets further in each step, adam takes less time per step."""
  seed: int = 0
  """Random seed for the shuffled photograph that the figures compare with."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import first_at_hand, load_any
    from tlx.explain import style

    commands.positive(steps=self.steps, style_weight=self.style_weight)
    if self.variation < 0:
      raise UsageError(f'--variation {self.variation}: must be 0 or more')
    default = lambda: first_at_hand('vgg19', DEFAULT)
    name, (content, manner) = model_and(self.pictures, 'CONTENT', 'STYLE', default=default)
    pictures = explain.picture(content), explain.picture(manner)
    model = load_any(name)
    sizes = style.sizes_to(model, self.size)
    work = style.style_transfer(
      model,
      *pictures,
      sizes=sizes,
      steps=self.steps,
      style_layers=[name.strip() for name in self.style_layers.split(',')] if self.style_layers else (),
      content_layer=self.content_layer,
      weights=style.Weights(style=self.style_weight, variation=self.variation),
      colours=self.colours,
      optimizer=self.optimizer,
      seed=self.seed,
    )
    finish(self, explain.place(self.out, name, 'style', content.stem, manner.stem), work)


@dataclasses.dataclass(frozen=True)
class Attack:
  """Change a photograph slightly, so that the model gives another answer."""

  photo: Photo
  target: Annotated[str | None, arg(help_behavior_hint='(default: any other class)')] = None
  """Class that the model should see instead, by name or number."""
  method: Literal['pgd', 'fgsm', 'descent'] = 'pgd'
  """pgd: projected gradient descent; fgsm: one step; descent: plain gradient descent, then the smallest such change."""
  norm: Literal['linf', 'l2'] = 'linf'
  """How the size of the change is measured: the largest change of one value, or the length of all changes."""
  epsilon: Annotated[str | None, arg(help_behavior_hint='(default: 8/255, or 3 for l2)')] = None
  """Maximum size of the change, for pixels in [0, 1]."""
  steps: Annotated[int | None, arg(help_behavior_hint='(default: 20 for pgd, 500 for descent)')] = None
  """Maximum number of gradient steps."""
  step_size: Annotated[str | None, arg(help_behavior_hint='(default: 2.5 epsilon / steps; descent 0.002)')] = None
  """Length of a step, in the unit of epsilon. For descent it is the learning rate."""
  momentum: Annotated[float | None, arg(help_behavior_hint='(default: 0)')] = None
  """Momentum of the steps of pgd."""
  restarts: Annotated[int | None, arg(help_behavior_hint='(default: 1)')] = None
  """Number of random starts of pgd; the best result is kept."""
  seed: int = 0
  """Random seed."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import load_any
    from tlx.explain import adversarial, attack
    from tlx.explain.outputs import class_index

    self._check()
    norm, targeted, fast = self.norm, self.target is not None, self.method == 'fgsm'
    epsilon = fraction('--epsilon', self.epsilon or EPSILONS[norm])
    step = None if self.step_size is None else fraction('--step-size', self.step_size, least=1e-9)
    name, (image,) = model_and(self.photo, 'IMAGE')
    words = (image.stem, self.method, *([self.target] if targeted else []))
    model, out = load_any(name), explain.place(self.out, name, 'attack', *words)
    photo = explain.photograph(image, model.preprocess)
    target = class_index(model, self.target) if targeted else None
    if self.method == 'descent':
      found = adversarial.by_descent(model, photo, target, steps=self.steps or 500, rate=step or 0.002)
    else:
      steps, share = 1 if fast else self.steps or 20, step and step / max(epsilon, 1e-9)
      way = attack.Attack(norm, steps, share, targeted, self.momentum or 0.0, not fast, self.restarts or 1)
      found = adversarial.by_attack(model, photo, way, epsilon, target, self.seed)
    finish(self, out, [found])

  def _check(self) -> None:
    """Raises UsageError for options that the method does not have, and for counts below 1."""
    none = {'pgd': (), 'fgsm': ('steps', 'step_size', 'momentum', 'restarts')}
    none['descent'] = ('norm', 'epsilon', 'momentum', 'restarts')
    if wrong := [name for name in none[self.method] if getattr(self, name) != getattr(Attack, name)]:
      raise UsageError('\n'.join(f'--{name.replace("_", "-")}: --method {self.method} has none' for name in wrong))
    commands.positive(**given(steps=self.steps, restarts=self.restarts))


@dataclasses.dataclass(frozen=True)
class Robustness:
  """Attack every photograph of a split, and plot the accuracy over the size of the change."""

  model: Model
  data: Data = None
  split: Split = 'validation'
  epsilons: Annotated[str | None, arg(help_behavior_hint='(default: 0,0.5/255,1/255,2/255,4/255,8/255)')] = None
  """Sizes of the change for pixels in [0, 1], separated by commas; for l2 0,0.1,0.25,0.5,1,3 by default."""
  norm: Literal['linf', 'l2'] = 'linf'
  """How the size of a change is measured: the largest change of one value, or the length of all changes."""
  steps: int = 20
  """Maximum number of steps of projected gradient descent."""
  momentum: float = 0.0
  """Momentum of the steps."""
  restarts: int = 1
  """Number of random starts. Each one runs only on the photographs that withstood the ones before it."""
  count: Annotated[int | None, arg(help_behavior_hint='(default: all)')] = None
  """Number of photographs, drawn from the split at random."""
  batch_size: int = 32
  """Images per step."""
  seed: int = 0
  """Random seed."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import check_classes, data_of, load_any
    from tlx.data.split import sample
    from tlx.explain.attack import Attack
    from tlx.explain.robustness import robustness

    commands.positive(steps=self.steps, restarts=self.restarts, batch_size=self.batch_size, **given(count=self.count))
    sizes = {text: fraction('--epsilons', text) for text in (self.epsilons or CURVES[self.norm]).split(',')}
    way = Attack(self.norm, self.steps, None, False, self.momentum, True, self.restarts, stop=True)
    model, out = load_any(self.model), explain.place(self.out, self.model, 'robustness', self.norm)
    data = data_of(self.model, self.data, self.split)
    check_classes(data, self.model, model)
    source = data.splits[self.split]
    source = source if self.count is None else sample(source, self.count, self.seed)
    finish(self, out, robustness(model, source, sizes, way, batch_size=self.batch_size, seed=self.seed))


def fraction(option: str, text: str, least: float = 0) -> float:
  """Parses a number such as '8/255' or '0.03'.

  Args:
    option: named in the error.
    text: the number.
    least: minimum.

  Returns:
    The number.

  Raises:
    UsageError: if the text is not a number, or the number is below the minimum or not finite.

  Examples:
    >>> fraction('--epsilon', '1/4')
    0.25
  """
  try:
    above, _, below = text.partition('/')
    value = float(above) / float(below or 1)
  except (ValueError, ZeroDivisionError):
    raise UsageError(f'{option} {text}: must be a number such as 8/255 or 0.03') from None
  if not least <= value < math.inf:
    raise UsageError(f'{option} {text}: must be {least:g} or more, and finite')
  return value
