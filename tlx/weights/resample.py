"""Adapts pretrained arrays to another input: other channels, another image size, another patch size."""

import math

import numpy as np

from tlx.types import TlxError

RGB = 3


def input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Adapts an RGB stem kernel to another number of input channels, as timm's adapt_input_conv does.

  For one channel it sums the kernels of the three colours, so that a grey image gives the result of its RGB copy. (A
  space-to-depth stem with a multiple of 3 channels is summed in groups of 3.) For two or more than three channels it
  repeats the kernels in turn and scales them by 3 / channels. Three channels leave the kernel as it is.

  Args:
    kernel: [kh, kw, 3, out].
    channels: at least 1.

  Returns:
    [kh, kw, channels, out], same dtype; the arithmetic is float32.

  Raises:
    TlxError: for any other kernel or number of channels.

  Examples:
    >>> input_channels(np.ones((7, 7, 3, 64), np.float32), channels=1)[0, 0, :, 0]
    array([3.], dtype=float32)
    >>> input_channels(np.ones((7, 7, 3, 64), np.float32), channels=6)[0, 0, :, 0]
    array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], dtype=float32)
  """
  if channels < 1 or kernel.ndim != 4:
    raise TlxError(
      f'a stem kernel {list(kernel.shape)} cannot be adapted to {channels} channels; it must be [kh, kw, 3, out]'
    )
  if channels == RGB:
    return kernel
  height, width, inputs, outputs = kernel.shape
  values = np.asarray(kernel, np.float32)
  if channels == 1 and (inputs <= RGB or inputs % RGB == 0):
    groups = max(inputs // RGB, 1)
    return values.reshape(height, width, groups, -1, outputs).sum(axis=3).astype(kernel.dtype)
  if inputs != RGB:
    raise TlxError(f'a stem kernel with {inputs} input channels cannot be adapted to {channels}; only one with 3 can')
  repeated = np.tile(values, (1, 1, math.ceil(channels / RGB), 1))[:, :, :channels]
  return (repeated * (RGB / channels)).astype(kernel.dtype)


def position_table(table: np.ndarray, shape: tuple[int, ...], prefix: int = 1) -> np.ndarray:
  """Resizes a learned position table to another square grid, as timm's resample_abs_pos_embed does.

  The resize is bicubic and antialiased.

  Args:
    table: [1, prefix + g * g, d]. The first `prefix` rows belong to the class token and its like and stay as they are.
    shape: (1, prefix + h * h, d).
    prefix: number of rows ahead of the grid's.

  Returns:
    An array of that shape, same dtype; the arithmetic is float64.

  Raises:
    ValueError: if either grid is not square, or if d differs.

  Examples:
    >>> position_table(np.zeros((1, 1 + 14 * 14, 384)), (1, 1 + 24 * 24, 384)).shape
    (1, 577, 384)
  """
  places = [rows - prefix for rows in (table.shape[1], shape[1])]
  old, new = (math.isqrt(max(0, count)) for count in places)
  if [old * old, new * new] != places or not old * new or table.shape[2:] != shape[2:]:
    raise ValueError(f'positions {table.shape} and {shape} without their first {prefix} rows are not of square grids')
  if old == new:
    return table
  weights, grid = bicubic(old, new), table[0, prefix:].astype(np.float64).reshape(old, old, -1)
  grid = np.einsum('ia,jb,abd->ijd', weights, weights, grid, optimize=True).reshape(1, new * new, -1)
  return np.concatenate([table[:, :prefix], grid.astype(table.dtype)], axis=1)


def patch_kernel(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes a patch embedding to another patch size, as timm's resample_patch_embed does.

  It applies the pseudo-inverse of the bicubic resize, so that a resized patch gives the embedding of the original patch
  (FlexiViT, https://arxiv.org/abs/2212.08013, Sec. 3.4).

  Args:
    kernel: [h, w, c, out].
    size: new height and width of a patch, pixels.

  Returns:
    [*size, c, out], same dtype; the arithmetic is float64.
  """
  if kernel.shape[:2] == tuple(size):
    return kernel
  rows, columns = (np.linalg.pinv(bicubic(old, new)) for old, new in zip(kernel.shape, size))
  return np.einsum('ai,bj,abco->ijco', rows, columns, kernel.astype(np.float64), optimize=True).astype(kernel.dtype)


def bicubic(old: int, new: int) -> np.ndarray:
  """Weights [new, old] of an antialiased bicubic resize along one axis; each row sums to one.

  It is Keys' kernel with a = -0.5 about half-pixel centres, widened by old / new if the axis shrinks, and cut off at
  the borders: the resize of torch's interpolate(mode='bicubic', antialias=True) and of Pillow.

  >>> bicubic(2, 4).round(3)
  array([[ 1.088, -0.088],
         [ 0.793,  0.207],
         [ 0.207,  0.793],
         [-0.088,  1.088]])
  """
  stretch = max(old / new, 1.0)
  centres = (np.arange(new) + 0.5) * old / new
  distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch
  near = (1.5 * distance - 2.5) * distance**2 + 1
  far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
  weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
  return weights / weights.sum(axis=1, keepdims=True)
