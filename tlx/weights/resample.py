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
