"""Output stride: stages beyond it dilate instead of striding, so that the last map stays fine (DeepLab).

The weights are those of the undilated network (Chen et al. 2017, https://arxiv.org/abs/1706.05587, Sec. 3.2).
"""

from collections.abc import Sequence
from typing import NamedTuple

from tlx.types import UsageError

OUTPUT_STRIDES = (8, 16, 32)


class Spread(NamedTuple):
  """How a stage keeps to the output stride."""

  stride: int  # of its first block
  first: int  # dilation of its first block
  dilation: int  # of the others

  def block(self, b: int) -> tuple[int, int]:
    """Stride and dilation of the stage's block b."""
    return (1, self.dilation) if b else (self.stride, self.first)


def spread(strides: Sequence[int], output_stride: int, *, stem: int, early: bool = False) -> list[Spread]:
  """The stride and dilation of each stage: those that would go beyond `output_stride` dilate by their stride.

  Args:
    strides: of the stages' first blocks, from input to output.
    output_stride: 8, 16 or 32.
    stem: the stride ahead of the first stage.
    early: the first block of a stage that dilates does so already (torchvision's MobileNetV3, all
      encoders of segmentation-models-pytorch itself). Otherwise it keeps the
      dilation of the stage before, as dense as its input is (torchvision's ResNet, timm, TensorFlow's DeepLab).
  """
  found, reached, dilation = [], stem, 1
  for stride in strides:
    before, exceeds = dilation, reached * stride > output_stride
    dilation *= stride if exceeds else 1
    reached *= 1 if exceeds else stride
    found.append(Spread(1 if exceeds else stride, dilation if early else before, dilation))
  return found


def check_output_stride(value: int) -> None:
  """Raises UsageError for what is not one of OUTPUT_STRIDES."""
  if value not in OUTPUT_STRIDES:
    raise UsageError(f'output_stride {value!r}: choose {", ".join(map(str, OUTPUT_STRIDES[:-1]))} or 32')
