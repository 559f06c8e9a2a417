"""A backbone as an ordered list of named layers, and the model that puts a head on it."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.linen as nn
import jax

from tlx.labels import HEAD
from tlx.nn.dtypes import widened
from tlx.types import UsageError

POOLED = 'pooled'  # one vector an image, behind the last layer


class Layer(NamedTuple):
  """One named step of a backbone; `build(name=...)` makes its linen module, called as (x, train)."""

  name: str
  build: Callable[..., nn.Module]


class Tapped(NamedTuple):
  """What a layer's module may return in place of an array: its output, and maps from inside it by name.

  A head reads the map `conv` of the layer `stem` as the feature 'stem/conv'.
  """

  output: jax.Array
  taps: Mapping[str, jax.Array]


class Config(Protocol):
  """Base of every family's frozen dataclass, which states the width and the layers, and where it differs the rest.

  A field or a property of the same name takes the place of a default.
  """

  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

  width: int  # channels of the last layer
  size: int | None = None  # pixels, height = width: the only input that the position tables fit; None: any size
  smallest: int = 32  # pixels; minimum side of an input
  prefix: int = 0  # tokens ahead of those of the image, such as the class token
  output_stride: int | None = None  # pixels between two places of the last map; None: the family has no choice
  aux_classes: int | None = None  # outputs of a second head inside the backbone; None: there is no second head
  spatial_head: bool = False  # see `Head`

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]: ...


class Staged(Config):
  """Base of the configs whose blocks come in stages: their order, and a layer for each."""

  depths: tuple[int, ...]  # blocks a stage

  def blocks(self) -> Iterator[tuple[int, int]]:
    """(stage, block) from input to output."""
    return ((s, b) for s, depth in enumerate(self.depths) for b in range(depth))

  def block_layers(self, drop_path: float, block: Callable[[int, int, float], Callable[..., nn.Module]]) -> list[Layer]:
    """`block(stage, place in it, rate)` builds a layer; the rates grow linearly from 0 to `drop_path`."""
    last = max(1, sum(self.depths) - 1)
    return [Layer(f'stage{s}_block{b}', block(s, b, drop_path * i / last)) for i, (s, b) in enumerate(self.blocks())]


class Backbone(nn.Module):
  """Runs a family's layers in order and returns every layer's output by name.

  Images are float [b, h, w, 3], already normalised; the compute dtype is theirs, parameters stay float32.
  """

  config: Any
  drop_path: float = 0.0  # stochastic depth of the last layer (Huang et al. 2016), growing linearly from 0

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
    """Features by layer name, from after `start` (then `x` is its output) up to and including `stop`.

    train: the names of the layers in training mode (batch statistics, dropout, stochastic depth), or all or none.
    remat: the backward pass computes the inside of a layer again, from the layer's input, instead of keeping it.
    taps: the maps from inside layers too, by 'LAYER/NAME', ahead of their layer's output.
    Raises UsageError for a name that is no layer.
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
    """The last layer's output as one vector an image, float32 [b, d]; global average pooling for feature maps."""
    return widened(x).mean(axis=tuple(range(1, x.ndim - 1)))

  def _check(self, names) -> None:
    wrong = [name for name in names if name not in self.names]
    if wrong:
      raise UsageError(f'no such layer: {", ".join(wrong)}; the backbone has {", ".join(self.names)}')


def _run(layer: nn.Module, x: jax.Array, train: bool) -> jax.Array | Tapped:
  return layer(x, train)


class TransferModel(nn.Module):
  """A backbone and a head: images float [b, h, w, 3], normalised, -> what the head makes of the features.

  head: a linen module, called as `head(features, train)`, where features holds the output of every layer, the maps
  tapped inside layers, and 'pooled' [b, d]. The heads of `tlx/heads` are such modules; so may be your own.
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
    """train: layer names (the head's is 'head') in training mode, or all or none. remat: as of the backbone.

    start: the layers up to this one, or for 'pooled' all layers, do not run; x is then its output, or a dict of it and
    of the earlier features that the head reads.
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
    """Every layer's output by name, in order, and 'pooled' [b, d]."""
    features = self.backbone(images, train=train)
    return {**features, POOLED: self.backbone.pool(features[self.backbone.names[-1]])}

  def reads(self) -> tuple[str, ...]:
    """Names of the features that the head reads: its `needs`, or else what it asks for when it is called on shapes."""
    return getattr(self.head, 'needs', None) or _reads(self)


@functools.cache
def _reads(model: TransferModel) -> tuple[str, ...]:
  side = model.backbone.config.size or max(64, model.backbone.config.smallest)
  noted: dict[str, None] = {}

  class Noting(dict):
    """Features that note which of them are asked for."""

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


def trains(train: bool | Collection[str], name: str) -> bool:
  """Whether the layer `name` runs in training mode."""
  return train if isinstance(train, bool) else name in train
