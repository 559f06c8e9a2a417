"""A backbone as an ordered list of named layers, and the model that adds a head to it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax

from tlx.labels import HEAD
from tlx.nn.conv import Dense
from tlx.nn.dtypes import widened
from tlx.nn.stochastic import Dropout
from tlx.types import UsageError

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
  """The contract of a family's frozen dataclass: its layers in order, and the channels of the last one.

  A config may also have these attributes:

  - `size`: height and width in pixels of the only input that the model takes (its position tables depend on it).
  - `smallest`: minimum height and width of an input in pixels; 32 by default.
  - `spatial_head`: see `Head`.
  """

  width: int  # channels of the last layer

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]: ...


class Staged:
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

  config: Any
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


class Head(nn.Module):
  """Dropout and one linear layer, in float32: pooled [b, d] -> logits [b, k]. With k = 0 it returns `pooled`.

  With `spatial` it takes the map [b, h, w, d] instead and averages the rectified logits over all positions
  (SqueezeNet).
  """

  num_classes: int
  dropout: float = 0.0
  spatial: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = Dropout(self.dropout, name='dropout')(widened(x), train)
    x = Dense(self.num_classes, name='logits')(x) if self.num_classes else x
    return nn.relu(x).mean(axis=(1, 2)) if self.spatial and self.num_classes else x


class TransferModel(nn.Module):
  """A backbone and a head: images float [b, h, w, 3], normalised, -> logits float32 [b, k]."""

  backbone: Backbone
  head: Head

  def __call__(
    self, x: jax.Array, *, train: bool | Collection[str] = False, start: str | None = None, remat: bool = False
  ) -> jax.Array:
    """Computes the logits.

    Args:
      x: images; or the output of `start`.
      train: names of the layers in training mode (the head's is 'head'); or True for all, False for none.
      start: a layer's name, or 'pooled'. The layers up to it do not run.
      remat: see `Backbone`.

    Returns:
      float32 [b, k].
    """
    if start != POOLED:
      last = self.backbone.names[-1]
      x = x if start == last else self.backbone(x, train=train, start=start, remat=remat)[last]
      x = x if self.pools_nothing else self.backbone.pool(x)
    return self.head(x, trains(train, HEAD))

  @property
  def pools_nothing(self) -> bool:
    """Whether the head reads the last layer's map without pooling."""
    return bool(self.head.spatial and self.head.num_classes)

  def features(self, images: jax.Array, *, train: bool | Collection[str] = False) -> dict[str, jax.Array]:
    """Every layer's output by name, in order, and then 'pooled' [b, d]."""
    features = self.backbone(images, train=train)
    return {**features, POOLED: self.backbone.pool(features[self.backbone.names[-1]])}


def trains(train: bool | Collection[str], name: str) -> bool:
  """Whether the layer `name` runs in training mode."""
  return train if isinstance(train, bool) else name in train
