"""The commands of `tlx explain`: as in `commands`, a dataclass each; every one writes pictures and figures.json."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from tlx import commands, console
from tlx.explain.seen import Explanation

arg, Positional = tyro.conf.arg, tyro.conf.Positional
Model = Annotated[
  Positional[str], arg(metavar='MODEL', help='A pretrained model such as efficientnet_lite0, or the folder of a run.')
]
Photo = Annotated[Positional[Path], arg(metavar='IMAGE', help='A photograph.')]
Out = Annotated[
  Path | None, arg(help='The folder to write.', help_behavior_hint='(default: RUN/explain/..., or explained/...)')
]
Data = Annotated[str | None, arg(help='folder:PATH, tfds:NAME, ...', help_behavior_hint="(default: the run's own)")]


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
class Map:
  """Draw a data set as the backbone sees it: like pictures lie together, on a page that zooms."""

  model: Model
  data: Data = None
  split: str = 'validation'
  """validation, train, or test where there is one."""
  count: int = 2000
  """Images at most; of more, so many are drawn at random."""
  seed: int = 0
  """Of everything random."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx import explaining
    from tlx.explain.data_map import data_map
    from tlx.inference import data_of, load_any

    commands.positive(count=self.count)
    model, data = load_any(self.model), data_of(self.model, self.data, self.split)
    out = explaining.place(self.out, self.model, 'map', data.info.name, self.split)
    batches, total = explaining.batches(data.splits[self.split], model.preprocess, self.count, self.seed)
    _finish(self, out, data_map(model, batches, data.info.class_names, total=total, seed=self.seed))


@dataclasses.dataclass(frozen=True)
class Explain:
  """See what a backbone sees: feature maps, and what else is done by gradients of pixels."""

  TOOLS: ClassVar[tuple[type, ...]] = (Features, Map)


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
