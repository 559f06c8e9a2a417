"""The commands of `tlx explain`: as in `commands`, a dataclass each; every one writes pictures and figures.json."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from tlx import commands, console
from tlx.explain.seen import Explanation
from tlx.types import Pretrained, UsageError

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


@dataclasses.dataclass(frozen=True)
class Ideal:
  """Pictures, from noise, that a class, a channel or a direction answers to most."""

  model: Model
  classes: Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    arg(name='class', metavar='NAME', help='A class by name or number; repeat it, or put commas between several.'),
  ] = ()
  layer: Annotated[str | None, arg(help_behavior_hint='')] = None
  """Instead of a class, a layer (`tlx models NAME` lists them), with --channel or --towards."""
  channel: Annotated[int | None, arg(help_behavior_hint='')] = None
  """The channel of --layer."""
  towards: Annotated[Path | None, arg(metavar='IMAGE', help_behavior_hint='')] = None
  """What --layer makes of this photograph, compared with a plain picture of its colour."""
  steps: int = 256
  """Of descent."""
  variation: Annotated[float | None, arg(help_behavior_hint='(default: 2000 for classes, 50 for a layer)')] = None
  """Weight of total variation against one standard deviation of what is aimed at; 0 leaves it out."""
  parametrisation: Literal['fourier', 'pixels'] = 'fourier'
  """What descent changes: Fourier coefficients of decorrelated colours, or the pixels themselves."""
  no_transforms: Annotated[bool, arg(help_behavior_hint='')] = False
  """Without the random shifts, scales and turns that keep the picture legible."""
  size: Annotated[int | None, arg(help_behavior_hint="(default: the model's own)")] = None
  """Height and width in pixels."""
  judge: Annotated[str | None, arg(metavar='MODEL', help_behavior_hint='')] = None
  """A second model of the same classes, asked what it sees in the finished pictures."""
  seed: int = 0
  """Of the noise and the transforms."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx import explaining
    from tlx.explain import ideal, transforms
    from tlx.explain.seen import check_size
    from tlx.inference import load_any

    commands.positive(steps=self.steps)
    variation = (2000.0 if self.classes else 50.0) if self.variation is None else self.variation
    if variation < 0:
      raise UsageError(f'--variation {variation}: must be 0 or more')
    self._one_subject()
    model, judge = load_any(self.model), load_any(self.judge) if self.judge else None
    goals = self._goals(model)
    for goal in goals if judge else ():
      ideal.judged_class(judge, model, goal.index)
    size = check_size(model, model.preprocess.size if self.size is None else self.size)
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
    _finish(self, explaining.place(self.out, self.model, 'ideal', *(goal.name for goal in goals)), work)

  def _one_subject(self) -> None:
    """Raises UsageError unless there are classes, or a layer with one of its two, and not both."""
    if bool(self.classes) == bool(self.layer):
      raise UsageError('name either --class, or --layer with --channel or --towards')
    if bool(self.layer) != ((self.channel is None) != (self.towards is None)):
      raise UsageError('--layer needs one of --channel and --towards, and they need it')
    if self.judge and self.layer:
      raise UsageError('--judge looks at classes; there is none to judge of a --layer')

  def _goals(self, model: Pretrained) -> list:
    from tlx import explaining
    from tlx.explain import ideal

    if self.channel is not None:
      return [ideal.of_channel(model, self.layer, self.channel)]
    if self.towards is not None:
      photo = explaining.photograph(self.towards, model.preprocess)
      return [ideal.of_direction(model, self.layer, photo, self.towards.stem)]
    known = [name.lower() for name in model.class_names]  # of which some have a comma in them
    words = [part for text in self.classes for part in ([text] if text.lower() in known else text.split(','))]
    goals = [ideal.of_class(model, word.strip()) for word in words]
    return list({goal.index: goal for goal in goals}.values())


@dataclasses.dataclass(frozen=True)
class Style:
  """A photograph's content in the style of another picture, coarse to fine."""

  model: Model
  content: Annotated[Positional[Path], arg(metavar='CONTENT', help='The photograph.')]
  style: Annotated[Positional[Path], arg(metavar='STYLE', help='A painting, a pattern, another photograph.')]
  size: Annotated[int | None, arg(help_behavior_hint='(default: 512, or the only one the model takes)')] = None
  """Pixels of the longer side of the result; reached in up to three doublings."""
  steps: int = 80
  """At each size."""
  style_layers: Annotated[str | None, arg(help_behavior_hint='(default: the first at each resolution)')] = None
  """Layers whose Gram matrices are the style, with commas between them."""
  content_layer: Annotated[str | None, arg(help_behavior_hint='(default: the second at stride 8)')] = None
  """The layer that keeps the content."""
  style_weight: float = 1000.0
  """Against the content's weight of 1."""
  variation: float = 3.0
  """Weight of total variation."""
  colours: Literal['style', 'luminance', 'histogram'] = 'style'
  """Whose: luminance keeps the photograph's and transfers light and dark; histogram gives them to the style first."""
  optimizer: Literal['lbfgs', 'adam'] = 'lbfgs'
  """lbfgs gets further in a step, adam takes less time for one."""
  seed: int = 0
  """Of the shuffled photograph that the figures compare with."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx import explaining
    from tlx.explain import style
    from tlx.inference import load_any

    commands.positive(steps=self.steps, style_weight=self.style_weight)
    if self.variation < 0:
      raise UsageError(f'--variation {self.variation}: must be 0 or more')
    photo, manner = explaining.picture(self.content), explaining.picture(self.style)
    model = load_any(self.model)
    sizes = style.sizes_to(model, self.size)
    work = style.style_transfer(
      model,
      photo,
      manner,
      sizes=sizes,
      steps=self.steps,
      style_layers=[name.strip() for name in self.style_layers.split(',')] if self.style_layers else (),
      content_layer=self.content_layer,
      weights=style.Weights(style=self.style_weight, variation=self.variation),
      colours=self.colours,
      optimizer=self.optimizer,
      seed=self.seed,
    )
    _finish(self, explaining.place(self.out, self.model, 'style', self.content.stem, self.style.stem), work)


@dataclasses.dataclass(frozen=True)
class Explain:
  """See what a backbone sees: feature maps, and what else is done by gradients of pixels."""

  TOOLS: ClassVar[tuple[type, ...]] = (Features, Ideal, Style)


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
  show.line(f'written: {out} ({", ".join(path.name for path in written)})')
