"""A backbone as an ordered list of named layers, and the model that adds a head to it."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.linen as nn
import jax

from tlx.labels import HEAD
from tlx.nn.dtypes import widened
from tlx.types import Pretrained, UsageError

POOLED = 'pooled'  # the feature after the last layer: one vector per image


class Layer(NamedTuple):
  """One named step of a backbone. `build(name=...)` makes its linen module, which is called as (x, train)."""

  name: str
  build: Callable[..., nn.Module]


class Tapped(NamedTuple):
  """What a layer's module may return instead of an array: its output, and maps from inside it by name.

  A head reads the map `conv` of the layer `stem` as the feature 'stem/conv'.
  """

  output: jax.Array
  taps: Mapping[str, jax.Array]


class Config(Protocol):
  """Base class of a family's frozen dataclass, which defines its layers in order and the channels of the last one.

  A field or a property of the same name replaces a default below.
  """

  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

  width: int  # channels of the last layer
  size: int | None = None  # height and width in pixels of the only input that the position tables fit; None: any size
  smallest: int = 32  # minimum height and width of an input in pixels
  prefix: int = 0  # number of tokens before those of the image, such as the class token
  output_stride: int | None = None  # stride of the last map in pixels; None: the family has a fixed one
  aux_classes: int | None = None  # outputs of a second head inside the backbone; None: there is no second head
  spatial_head: bool = False  # see `Head`

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]: ...


class Staged(Config):
  """Base class of configs that order their blocks in stages, with one layer for each block."""

  depths: tuple[int, ...]  # blocks of each stage

  def blocks(self) -> Iterator[tuple[int, int]]:
    """(stage, block) from input to output."""
    return ((s, b) for s, depth in enumerate(self.depths) for b in range(depth))

  def block_layers(self, drop_path: float, block: Callable[[int, int, float], Callable[..., nn.Module]]) -> list[Layer]:
    """The layers of all blocks, from input to output.

    Args:
      drop_path: stochastic depth rate of the last block; the rates grow linearly from 0.
      block: block(stage, position in the stage, rate) returns the layer's `build` function.

    Returns:
      One layer per block, named 'stage{s}_block{b}'.
    """
    last = max(1, sum(self.depths) - 1)
    return [Layer(f'stage{s}_block{b}', block(s, b, drop_path * i / last)) for i, (s, b) in enumerate(self.blocks())]


class Backbone(nn.Module):
  """Runs a family's layers in order and returns every layer's output by name.

  Images are float [b, h, w, 3], already normalised. The backbone computes in their dtype; parameters stay float32.
  """

  config: Config
  drop_path: float = 0.0  # stochastic depth rate of the last layer (Huang et al. 2016); it grows linearly from 0

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(layer.name for layer in self.config.layers())

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool | Collection[str] = False,
    start: str | None = None,
    stop: str | None = None,
    remat: bool = False,
    taps: bool = False,
  ) -> dict[str, jax.Array]:
    """Computes the features, from the layer after `start` up to and including `stop`.

    Args:
      x: images; or the output of `start`.
      train: names of the layers in training mode (batch statistics, dropout, stochastic depth); or True for all layers,
        False for none.
      start: a layer's name. That layer and those before it do not run.
      stop: a layer's name. The layers after it do not run.
      remat: whether the backward pass recomputes the inside of each layer from the layer's input, instead of storing
        it.
      taps: whether to return the maps from inside layers too, as 'LAYER/NAME', ahead of the layer's output.

    Returns:
      {layer name: output}, in order.

    Raises:
      UsageError: if `start` or `stop` does not name a layer.
    """
    self._check(name for name in (start, stop) if name is not None)
    features, running, run = {}, start is None, nn.remat(_run, static_argnums=2) if remat else _run
    for layer in self.config.layers(self.drop_path):
      if running:
        found = run(layer.build(name=layer.name), x, trains(train, layer.name))
        if isinstance(found, Tapped):
          features |= {f'{layer.name}/{name}': tap for name, tap in found.taps.items()} if taps else {}
          found = found.output
        x = features[layer.name] = found
      running = (running or layer.name == start) and layer.name != stop
    return features

  def pool(self, x: jax.Array) -> jax.Array:
    """Pools the last layer's output to one vector per image, float32 [b, d]: the mean over a map's positions."""
    return widened(x).mean(axis=tuple(range(1, x.ndim - 1)))

  def _check(self, names) -> None:
    wrong = [name for name in names if name not in self.names]
    if wrong:
      raise UsageError(f'no such layer: {", ".join(wrong)}; the backbone has {", ".join(self.names)}')


def _run(layer: nn.Module, x: jax.Array, train: bool) -> jax.Array | Tapped:
  return layer(x, train)


class TransferModel(nn.Module):
  """A backbone and a head: images float [b, h, w, 3], normalised -> the head's outputs.

  The head is a linen module, called as `head(features, train)`. The features are the output of every layer, the maps
  tapped inside layers, and 'pooled' [b, d]. The heads of `tlx/heads` are such modules; your own can be one too.
  """

  backbone: Backbone
  head: nn.Module

  def __call__(
    self,
    x: jax.Array | Mapping[str, jax.Array],
    *,
    train: bool | Collection[str] = False,
    start: str | None = None,
    remat: bool = False,
  ) -> Any:
    """Computes the head's outputs.

    Args:
      x: images; or the output of `start`; or a dict of it and of the earlier features that the head reads.
      train: names of the layers in training mode (the head's is 'head'); or True for all, False for none.
      start: a layer's name, or 'pooled'. The layers up to it do not run.
      remat: see `Backbone`.

    Returns:
      Whatever the head makes: logits float32 [b, k] for a classifier.
    """
    features = x if isinstance(x, Mapping) else {start: x} if start else {}
    last = self.backbone.names[-1]
    if start not in (POOLED, last):
      image = x if start is None else features[start]
      features = {**features, **self.backbone(image, train=train, start=start, remat=remat, taps=True)}
    if POOLED not in features and last in features:
      features = {**features, POOLED: self.backbone.pool(features[last])}
    return self.head(features, trains(train, HEAD))

  def features(self, images: jax.Array, *, train: bool | Collection[str] = False) -> dict[str, jax.Array]:
    """Every layer's output by name, in order, and then 'pooled' [b, d]."""
    features = self.backbone(images, train=train)
    return {**features, POOLED: self.backbone.pool(features[self.backbone.names[-1]])}

  def reads(self) -> tuple[str, ...]:
    """Names of the features that the head reads: its `needs`, or else those that it requests in an abstract call."""
    return getattr(self.head, 'needs', None) or _reads(self)


@functools.cache
def _reads(model: TransferModel) -> tuple[str, ...]:
  side = model.backbone.config.size or max(64, model.backbone.config.smallest)
  noted: dict[str, None] = {}

  class Noting(dict):
    """Features that record which of them the head requests."""

    def __getitem__(self, name):
      noted[name] = None
      return super().__getitem__(name)

    def __iter__(self):
      noted.update(dict.fromkeys(self.keys()))
      return super().__iter__()

    def items(self):
      noted.update(dict.fromkeys(self.keys()))
      return super().items()

    def values(self):
      noted.update(dict.fromkeys(self.keys()))
      return super().values()

    def get(self, name, default=None):
      noted[name] = None
      return super().get(name, default)

  def run(images: jax.Array) -> None:
    features = model.backbone.init_with_output(jax.random.key(0), images, taps=True)[0]
    pooled = model.backbone.pool(features[model.backbone.names[-1]])
    model.head.init(jax.random.key(0), Noting({**features, POOLED: pooled}), False)

  jax.eval_shape(run, jax.ShapeDtypeStruct((1, side, side, 3), 'float32'))
  return tuple(noted)


def forward_of(model: Pretrained) -> Callable[[Any], Any]:
  """Compiles a model with its normalisation: pixels uint8 [b, h, w, 3] of its input size -> the head's outputs."""
  apply = jax.jit(lambda variables, pixels: model.module.apply(variables, model.preprocess.normalise(pixels)))
  return functools.partial(apply, model.variables)  # as an argument, not a constant for XLA to fold


def trains(train: bool | Collection[str], name: str) -> bool:
  """Whether the layer `name` runs in training mode."""
  return train if isinstance(train, bool) else name in train
