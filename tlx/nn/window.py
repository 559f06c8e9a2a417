"""Attention inside windows of a feature map, as in the Swin transformers, and their pyramid of stages.

Maps are [b, h, w, c]; windows are [b * number, window * window, c], window by window and row by row. If the window does
not divide the map, zeros fill the map up at the bottom and right. As in timm, this padding follows the shift and takes
part in the attention.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tlx.nn.attention import Mlp, table_init
from tlx.nn.conv import Conv, Dense
from tlx.nn.model import Layer, Staged
from tlx.nn.norm import LayerNorm
from tlx.nn.stochastic import DropPath

PATCH = 4  # pixels
SEPARATE = -100.0  # added to the logits of two positions that only the cyclic shift made neighbours
EPSILON = 1e-5  # in every norm


@dataclasses.dataclass(frozen=True)
class PyramidConfig(Staged):
  """Shape of a hierarchical transformer: each stage halves the height and width of the map and doubles the channels.

  Windows and position tables are made for images of `size`. The modules also take other sizes, even with height !=
  width, and then keep the same windows.
  """

  depths: tuple[int, ...]  # blocks of each stage
  heads: tuple[int, ...]  # attention heads of each stage
  base: int  # channels of the first stage
  windows: tuple[int, ...]  # height = width of each stage's windows, positions
  size: int = 224  # pixels, height = width
  mlp_ratio: float = 4.0  # hidden channels of the MLPs, over the stage's channels
  norm_last: bool = False  # norms come after attention, MLP and patch merging, not before
  final_norm: bool = True  # False leaves out the last layer, for heads that read maps

  @property
  def width(self) -> int:
    return self.base * 2 ** (len(self.depths) - 1)

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    return (
      Layer('stem', partial(PatchEmbedding, self.base)),
      *self.block_layers(drop_path, lambda s, b, rate: partial(Block, self, s, b, rate)),
      *([Layer('norm', MapNorm)] if self.final_norm else []),
    )

  def attention(self, stage: int, block: int, name: str) -> nn.Module:
    """The attention of a block: [b, h, w, c] -> same. A family's config overrides it."""
    raise TypeError(f'{type(self).__name__} has no attention()')

  def channels(self, stage: int) -> int:
    return self.base * 2**stage

  def window(self, stage: int) -> int:
    """Height and width of the stage's windows, in positions; never larger than the map."""
    return min(self.windows[stage], self.side(stage))

  def shift(self, stage: int, block: int) -> int:
    """How far the block shifts its windows, in positions: half a window in every other block.

    It is 0 where one window covers the whole map.
    """
    return 0 if block % 2 == 0 or self.side(stage) <= self.windows[stage] else self.window(stage) // 2

  def side(self, stage: int) -> int:
    """Height and width of the stage's map, in positions."""
    return -(-(self.size // PATCH) // 2**stage)


def partition(x: jax.Array, window: int, shift: int = 0) -> jax.Array:
  """Shifts a map [b, h, w, c] up and left, and cuts it into windows [b * number, window * window, c]."""
  x = jnp.roll(x, (-shift, -shift), (1, 2)) if shift else x
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
  x = x.reshape(b, -(-h // window), window, -(-w // window), window, c).swapaxes(2, 3)
  return x.reshape(-1, window * window, c)


def restore(windows: jax.Array, size: tuple[int, int], window: int, shift: int = 0) -> jax.Array:
  """Inverts `partition` for a map of height and width `size`."""
  rows, columns = (-(-n // window) for n in size)
  x = windows.reshape(-1, rows, columns, window, window, windows.shape[-1]).swapaxes(2, 3)
  x = x.reshape(-1, rows * window, columns * window, windows.shape[-1])[:, : size[0], : size[1]]
  return jnp.roll(x, (shift, shift), (1, 2)) if shift else x


def window_bias(positions: jax.Array, windows: int, size: tuple[int, int], window: int, shift: int) -> jax.Array:
  """Computes the attention bias: relative positions, and a mask between positions that are not neighbours.

  Args:
    positions: relative position bias, [heads, n, n] with n = window * window.
    windows: number of windows in the whole batch.
    size: height and width of the map, in positions.
    window: height and width of a window, in positions.
    shift: of the windows, in positions.

  Returns:
    [1, heads, n, n] if shift is 0, else [windows, heads, n, n].
  """
  if not shift:
    return positions[None]
  region = _regions(size, window, shift)
  # The program makes the comparison: from the host, the masks of large maps would be megabytes of constants in it.
  wall = jnp.where(jnp.asarray(region)[:, :, None] == jnp.asarray(region)[:, None, :], 0.0, SEPARATE)
  bias = positions + wall[:, None].astype(positions.dtype)
  return jnp.tile(bias, (windows // len(region), 1, 1, 1))


def _regions(size: tuple[int, int], window: int, shift: int) -> np.ndarray:
  """Which of the nine parts of a shifted map each position belongs to: int32 [number of windows, window * window]."""
  parts = []
  for n in size:
    padded = -(-n // window) * window
    place = np.arange(padded)
    parts.append((place >= padded - window).astype(np.int32) + (place >= padded - shift))
  region = 3 * parts[0][:, None] + parts[1]
  return np.asarray(region.reshape(-1, window, region.shape[1] // window, window).swapaxes(1, 2)).reshape(
    -1, window * window
  )


def relative_positions(table: jax.Array, side: int) -> jax.Array:
  """Looks up a bias for every pair of positions of a square grid, by the offset between them.

  It reads the table by reshapes, because the gradient of indexing is a scatter. A GPU adds up a scatter's sums in a
  different order each time, and training would not repeat bit for bit.

  Args:
    table: [(2 side - 1)^2, heads], by rows and columns of the offset query - key, starting at -(side - 1).
    side: height and width of the grid.

  Returns:
    [heads, side^2 queries, side^2 keys].
  """
  steps = 2 * side - 1
  x = _toeplitz(table.reshape(steps, steps, -1), side)  # [query row, key row, column offset, heads]
  x = _toeplitz(x.transpose(2, 0, 1, 3), side)  # [query column, key column, query row, key row, heads]
  return x.transpose(4, 2, 0, 3, 1).reshape(-1, side * side, side * side)


def _toeplitz(x: jax.Array, side: int) -> jax.Array:
  """Maps x [2 side - 1, ...] to [side, side, ...] with entry (i, j) = x[i - j + side - 1]."""
  if side == 1:
    return x[None]
  steps, rest = 2 * side - 1, x.shape[1:]
  # Rows are one entry shorter than the cycle, so each row starts one entry later in it than the row above.
  cycle = jnp.roll(x[::-1], 1 - side, axis=0)
  rows = jnp.broadcast_to(cycle, (side, *x.shape)).reshape(side * steps, *rest)[: side * (steps - 1)]
  return rows.reshape(side, steps - 1, *rest)[:, :side]


class RelativePositionBias(nn.Module):
  """A learnable bias for every offset between two positions of a square grid: [heads, n, n].

  Parameter: `table` [offsets, heads]. With `class_token` a token precedes the grid, and the table ends with three more
  rows: from the class token to a position, from a position to the class token, and from the class token to itself (Bao
  et al. 2021, https://arxiv.org/abs/2106.08254).
  """

  side: int
  heads: int
  class_token: bool = False

  @nn.compact
  def __call__(self) -> jax.Array:
    steps = (2 * self.side - 1) ** 2
    table = self.param('table', table_init, (steps + 3 * self.class_token, self.heads))
    bias = relative_positions(table[:steps], self.side)
    if not self.class_token:
      return bias
    n = self.side**2
    from_class, to_class, itself = (jnp.broadcast_to(row[:, None, None], (self.heads, 1, 1)) for row in table[steps:])
    top = jnp.concatenate([itself, jnp.broadcast_to(from_class, (self.heads, 1, n))], axis=2)
    rest = jnp.concatenate([jnp.broadcast_to(to_class, (self.heads, n, 1)), bias], axis=2)
    return jnp.concatenate([top, rest], axis=1)


class PatchEmbedding(nn.Module):
  """Embeds patches of 4 x 4 pixels as normalised channels: [b, h, w, 3] -> [b, h / 4, w / 4, features]."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = Conv(self.features, PATCH, PATCH, 'valid', use_bias=True, kernel_init=table_init, name='patches')(x)
    return LayerNorm(EPSILON, name='norm')(x)


class PatchMerging(nn.Module):
  """Merges 2 x 2 neighbours into one position: [b, h, w, c] -> [b, h / 2, w / 2, 2 c], rounded up."""

  norm_last: bool  # the norm comes after the linear layer, not before

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(b, -(-h // 2), 2, -(-w // 2), 2, c).transpose(0, 1, 3, 4, 2, 5)  # columns of the 2 x 2 before rows
    x = x.reshape(*x.shape[:3], 4 * c)
    reduction = Dense(2 * c, use_bias=False, name='reduction')
    norm = LayerNorm(EPSILON, name='norm')
    return norm(reduction(x)) if self.norm_last else reduction(norm(x))


class Block(nn.Module):
  """Attention and MLP, each with a norm and a residual connection. The first block of a later stage merges patches."""

  config: PyramidConfig
  stage: int
  block: int
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    c, s = self.config, self.stage
    if s and not self.block:
      x = PatchMerging(c.norm_last, name='merging')(x)
    mlp = Mlp(int(c.channels(s) * c.mlp_ratio), name='mlp')
    first = 0.0 if c.norm_last else 1.0  # with a final scale of 0, a new branch starts as zero
    for i, branch in ((1, c.attention(s, self.block, name='attention')), (2, mlp)):
      norm = LayerNorm(EPSILON, first, name=f'norm{i}')
      y = norm(branch(x)) if c.norm_last else branch(norm(x))
      x = x + DropPath(self.drop_path)(y, train)
    return x


class MapNorm(nn.Module):
  """The norm of the last map, which keeps its positions for dense tasks."""

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return LayerNorm(EPSILON, name='norm')(x)
