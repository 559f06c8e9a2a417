"""Resizes tables of relative positions to another grid."""

import math

import numpy as np

GROWTH = (1.01, 1.5)  # bounds of the ratio between neighbouring distances in the old table
PRECISION = 1e-6


def relative_table(table: np.ndarray, shape: tuple[int, ...], extra: int = 0) -> np.ndarray:
  """Resizes a table of relative positions to another square grid, as timm's resize_rel_pos_bias_table does.

  It spaces the old table's entries at distances that grow geometrically from the centre, so that small offsets keep
  their values and large ones are stretched (BEiT, https://github.com/microsoft/unilm), and interpolates linearly
  between them. A smaller grid gets little more than the old table's centre.

  Args:
    table: [(2 g - 1)^2 + extra, heads].
    shape: the new shape, with another g.
    extra: number of last rows, which belong to tokens without a position; they stay as they are.

  Returns:
    An array of that shape, same dtype; the arithmetic is float64.

  Raises:
    ValueError: if either table does not belong to a square grid, or if the number of heads differs.
  """
  old, new = (math.isqrt(max(0, rows - extra)) for rows in (table.shape[0], shape[0]))
  fits = (old * old, new * new) == (table.shape[0] - extra, shape[0] - extra) and table.shape[1:] == shape[1:]
  if not fits or not old % 2 or not new % 2:
    raise ValueError(f'tables {table.shape} and {shape} without their last {extra} rows are not of square grids')
  if old == new:
    return table
  weights, steps = _linear(_places(old, new), new), table[: old * old].astype(np.float64).reshape(old, old, -1)
  grid = np.einsum('ia,jb,abh->ijh', weights, weights, steps, optimize=True).reshape(new * new, -1)
  return np.concatenate([grid.astype(table.dtype), table[old * old :]])


def _places(old: int, new: int) -> np.ndarray:
  """Coordinates of the old table's entries along an axis of the new table, with 0 at the centre: increasing, [old]."""
  left, right = GROWTH
  while right - left > PRECISION:
    ratio = (left + right) / 2
    reach = (1 - ratio ** (old // 2)) / (1 - ratio)
    left, right = (left, ratio) if reach > new // 2 else (ratio, right)
  half = np.cumsum(ratio ** np.arange(old // 2))
  return np.concatenate([-half[::-1], [0.0], half])


def _linear(places: np.ndarray, new: int) -> np.ndarray:
  """Weights [new, old] of linear interpolation between values at `places`, constant beyond the ends."""
  target = np.arange(new) - new // 2
  return np.stack([np.interp(target, places, unit) for unit in np.eye(len(places))], axis=1)
