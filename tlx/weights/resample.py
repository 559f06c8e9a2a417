"""Pretrained arrays made to fit another input."""

import math

import numpy as np

from tlx.types import TlxError

RGB = 3


def input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """A stem kernel pretrained on RGB, for images of another number of channels, as timm's adapt_input_conv does.

  One channel: the kernels of the three colours are summed, so that a grey image gives what its RGB copy gave (a
  space-to-depth stem with a multiple of 3 channels: per group of 3). More, or two: repeated in turn and scaled by
  3 / channels. Three: unchanged.

  Args: kernel: [kh, kw, 3, out]. channels: at least 1.
  Returns: [kh, kw, channels, out], same dtype; the arithmetic is float32.
  Raises: TlxError for any other kernel or number of channels.
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
  """Learned positions of a square grid, for another grid, as timm's resample_abs_pos_embed does (bicubic, antialiased).

  Args: table: [1, prefix + g * g, d], the rows of the class token and its like first, which stay as they are.
    shape: (1, prefix + h * h, d).
  Returns: that shape, same dtype; the arithmetic is float64.
  Raises: ValueError where either has no square grid, or d differs.
  """
  places = [rows - prefix for rows in (table.shape[1], shape[1])]
  old, new = (math.isqrt(max(0, count)) for count in places)
  if [old * old, new * new] != places or not old * new or table.shape[2:] != shape[2:]:
    raise ValueError(f'positions {table.shape} and {shape} with {prefix} of no place are not of square grids')
  if old == new:
    return table
  weights, grid = bicubic(old, new), table[0, prefix:].astype(np.float64).reshape(old, old, -1)
  grid = np.einsum('ia,jb,abd->ijd', weights, weights, grid, optimize=True).reshape(1, new * new, -1)
  return np.concatenate([table[:, :prefix], grid.astype(table.dtype)], axis=1)


def patch_kernel(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """A patch embedding for patches of another size, which then sees in a resized patch what it saw in the original.

  The pseudo-inverse of the bicubic resize (FlexiViT, https://arxiv.org/abs/2212.08013, Sec. 3.4), as timm's
  resample_patch_embed. Args: kernel: [h, w, c, out]. Returns: [*size, c, out], same dtype; the arithmetic is float64.
  """
  if kernel.shape[:2] == tuple(size):
    return kernel
  rows, columns = (np.linalg.pinv(bicubic(old, new)) for old, new in zip(kernel.shape, size))
  return np.einsum('ai,bj,abco->ijco', rows, columns, kernel.astype(np.float64), optimize=True).astype(kernel.dtype)


def bicubic(old: int, new: int) -> np.ndarray:
  """Weights [new, old] of an antialiased bicubic resize along one axis; rows sum to one.

  Keys' kernel with a = -0.5 about half-pixel centres, widened by old / new where the axis shrinks, and cut off at the
  borders: torch's interpolate(mode='bicubic', antialias=True), which is Pillow's too.
  """
  stretch = max(old / new, 1.0)
  centres = (np.arange(new) + 0.5) * old / new
  distance = np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch
  near = (1.5 * distance - 2.5) * distance**2 + 1
  far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
  weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
  return weights / weights.sum(axis=1, keepdims=True)
