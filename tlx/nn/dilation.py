"""Output stride: stages beyond it dilate instead of striding, so that the last map keeps its resolution (DeepLab).

The weights are those of the undilated network (Chen et al. 2017, https://arxiv.org/abs/1706.05587, Sec. 3.2).
"""

from collections.abc import Sequence
from typing import NamedTuple

from tlx.types import UsageError

OUTPUT_STRIDES = (8, 16, 32)


class Spread(NamedTuple):
  """The stride and the dilations of a stage."""

  stride: int  # of the first block
  first: int  # dilation of the first block
  dilation: int  # of the other blocks

  def block(self, b: int) -> tuple[int, int]:
    """(stride, dilation) of the stage's block b."""
    return (1, self.dilation) if b else (self.stride, self.first)


def spread(strides: Sequence[int], output_stride: int, *, stem: int, early: bool = False) -> list[Spread]:
  """Computes the stride and the dilations of each stage: a stage beyond `output_stride` dilates by its stride instead.

  Args:
    strides: of the stages' first blocks, from input to output.
    output_stride: 8, 16 or 32.
    stem: stride of the input of the first stage.
    early: whether the first block of such a stage has the stage's dilation already (torchvision's MobileNetV3, and all
      encoders of segmentation-models-pytorch itself), or still that of the stage before, which fits its input
      (torchvision's ResNet, timm, TensorFlow's DeepLab).

  Returns:
    One `Spread` per stage.

  Examples:
    >>> spread([1, 2, 2, 2], output_stride=16, stem=4)[-1]
    Spread(stride=1, first=1, dilation=2)
  """
  found, reached, dilation = [], stem, 1
  for stride in strides:
    before, exceeds = dilation, reached * stride > output_stride
    dilation *= stride if exceeds else 1
    reached *= 1 if exceeds else stride
    found.append(Spread(1 if exceeds else stride, dilation if early else before, dilation))
  return found


def check_output_stride(value: int) -> None:
  """Raises UsageError unless the value is one of OUTPUT_STRIDES."""
  if value not in OUTPUT_STRIDES:
    raise UsageError(f'output_stride {value!r}: choose {", ".join(map(str, OUTPUT_STRIDES[:-1]))} or 32')
