"""Commands that show what a model sees: feature maps, heat maps and maps of data sets."""

import dataclasses
from typing import Annotated, Literal

from tlx.cli import commands
from tlx.cli.explain_shared import Data, Model, Out, Photo, Split, arg, finish, given, model_and


@dataclasses.dataclass(frozen=True)
class Features:
  """Show the channels of the named layers for a photograph, the most active channels first."""

  photo: Photo
  layer: Annotated[str | None, arg(help_behavior_hint='(default: every layer)')] = None
  """A layer by name (`tlx models NAME` lists them)."""
  most: int = 16
  """Number of channels to show for each layer."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import load_any
    from tlx.explain.features import feature_maps

    commands.positive(most=self.most)
    name, (image,) = model_and(self.photo, 'IMAGE')
    model, out = load_any(name), explain.place(self.out, name, 'features', image.stem)
    photo = explain.photograph(image, model.preprocess)
    finish(self, out, [feature_maps(model, photo, [self.layer] if self.layer else [], self.most)])


@dataclasses.dataclass(frozen=True)
class Exciting:
  """Show the photographs of a data set that activate the channels of a layer most, and where in them."""

  model: Model
  layer: str
  """A layer by name (`tlx models NAME` lists them)."""
  data: Data = None
  split: Split = 'validation'
  channel: Annotated[int | None, arg(help_behavior_hint='(default: the most selective ones)')] = None
  """Channel, by number."""
  most: int = 8
  """Number of channels to show."""
  photographs: int = 8
  """Number of photographs to show for each channel."""
  batch_size: int = 32
  """Images per step."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import data_of, load_any
    from tlx.explain.exciting import exciting
    from tlx.explain.outputs import check_layer

    commands.positive(most=self.most, photographs=self.photographs, batch_size=self.batch_size)
    model = load_any(self.model)
    check_layer(model.module, self.layer)
    subjects = [self.layer, *([] if self.channel is None else [str(self.channel)])]
    out = explain.place(self.out, self.model, 'exciting', *subjects)
    data = data_of(self.model, self.data, self.split)
    shown = {'most': self.most, 'photographs': self.photographs, 'batch_size': self.batch_size}
    source, names = data.splits[self.split], data.info.class_names
    finish(self, out, exciting(model, source, names, self.layer, self.channel, **shown))


@dataclasses.dataclass(frozen=True)
class Gradcam:
  """Show where a model looks for a class: Grad-CAM and integrated gradients over a photograph."""

  photo: Photo
  class_: Annotated[str | None, arg(name='class', help_behavior_hint='(default: the most probable)')] = None
  """A class by name or number."""
  layer: Annotated[str | None, arg(help_behavior_hint='(default: the last map that the class depends on)')] = None
  """The layer of Grad-CAM (`tlx models NAME` lists them)."""
  steps: int = 64
  """Steps of integrated gradients."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import load_any
    from tlx.explain.gradcam import where
    from tlx.explain.outputs import class_index

    commands.positive(steps=self.steps)
    name, (image,) = model_and(self.photo, 'IMAGE')
    model = load_any(name)
    index = None if self.class_ is None else class_index(model, self.class_)
    subjects = [image.stem, *([] if self.class_ is None else [self.class_])]
    out = explain.place(self.out, name, 'gradcam', *subjects)
    photo = explain.photograph(image, model.preprocess)
    finish(self, out, [where(model, photo, index, self.layer, self.steps)])


@dataclasses.dataclass(frozen=True)
class Deletion:
  """Check where a model looks: remove the hottest positions, and measure the class's probability."""

  model: Model
  data: Data = None
  split: Split = 'validation'
  count: int = 100
  """Number of photographs, drawn from the split at random."""
  layer: Annotated[str | None, arg(help_behavior_hint='(default: the same as for `tlx explain gradcam`)')] = None
  """The layer of Grad-CAM."""
  cells: Annotated[int | None, arg(help_behavior_hint="(default: the size of the layer's map)")] = None
  """Cells per side of the grid. The cells are removed one by one."""
  fill: Literal['blur', 'mean'] = 'blur'
  """What replaces a cell: the blurred photograph, or the mean colour that the model expects."""
  steps: int = 32
  """Steps of integrated gradients."""
  seed: int = 0
  """Random seed for the photographs and for the random order of cells."""
  batch_size: int = 16
  """Images per step."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import data_of, load_any
    from tlx.data.split import sample
    from tlx.explain.deletion import deletion

    commands.positive(count=self.count, steps=self.steps, batch_size=self.batch_size, **given(cells=self.cells))
    model, out = load_any(self.model), explain.place(self.out, self.model, 'deletion')
    source = sample(data_of(self.model, self.data, self.split).splits[self.split], self.count, self.seed)
    asked = {name: getattr(self, name) for name in ('layer', 'cells', 'fill', 'steps', 'seed', 'batch_size')}
    finish(self, out, deletion(model, source, **asked))


@dataclasses.dataclass(frozen=True)
class Map:
  """Draw a data set as a map on a page that zooms: images with similar features lie close together."""

  model: Model
  data: Data = None
  split: Split = 'validation'
  count: int = 2000
  """Maximum number of images; a larger split is sampled at random."""
  seed: int = 0
  """Random seed."""
  out: Out = None
  json: commands.Json = False

  def __call__(self) -> None:
    from tlx.actions import explain
    from tlx.actions.runs import data_of, load_any
    from tlx.explain.data_map import data_map

    commands.positive(count=self.count)
    model, data = load_any(self.model), data_of(self.model, self.data, self.split)
    out = explain.place(self.out, self.model, 'map', data.info.name, self.split)
    batches, total = explain.batches(data.splits[self.split], model.preprocess, self.count, self.seed)
    finish(self, out, data_map(model, batches, data.info.class_names, total=total, seed=self.seed))
