"""Rules for the constants of MobileNets in TensorFlow Lite files: kernels are OHWI, and batch norms are folded.

Folding scales the convolution and leaves a bias. tlx reads it as a norm that only adds the bias: scale 1, mean 0 and
variance 1 - epsilon. A norm that was trained since is written under the names that its parts had in TensorFlow.
"""

from collections.abc import Iterator

from tlx.weights.rules import Rule, Transform

CONV = Transform(lambda x: x.transpose(1, 2, 3, 0), lambda x: x.transpose(3, 0, 1, 2))  # OHWI <-> HWIO
DEPTHWISE = Transform(lambda x: x.transpose(1, 2, 0, 3), lambda x: x.transpose(2, 0, 1, 3))  # 1HWC <-> HW1C
DENSE = Transform(lambda x: x[:, 0, 0].T, lambda x: x.T[:, None, None])  # [out, 1, 1, in] <-> [in, out]


def unit(
  at: str, target: str, *, transform: Transform = CONV, epsilon: float = 1e-5, bias: str | None = None
) -> Iterator[Rule]:
  """The rules of a ConvNorm.

  Args:
    at: scope of its names in the file.
    target: path of our module.
    transform: axes of the kernel.
    epsilon: of our norm.
    bias: name of the bias, if the converter has joined it with others.
  """
  kernel = f'{at}/{"depthwise_Fold" if transform is DEPTHWISE else "Conv2D_Fold"}'
  norm = f'{at}/BatchNorm'
  yield Rule(f'{kernel};{at}/weights_quant/FakeQuantWithMinMaxVars', f'params/{target}/conv/kernel', transform)
  yield Rule(bias or f'{norm}_Fold/bias', f'params/{target}/norm/bias')
  yield Rule(f'{norm}/gamma', f'params/{target}/norm/scale', absent=1.0)
  yield Rule(f'{norm}/moving_mean', f'batch_stats/{target}/norm/mean', absent=0.0)
  yield Rule(f'{norm}/moving_variance', f'batch_stats/{target}/norm/var', absent=1 - epsilon)


def logits(at: str, target: str, transform: Transform) -> Iterator[Rule]:
  """The rules of a final 1x1 convolution with a bias."""
  yield Rule(f'{at}/Conv2D;{at}/weights_quant/FakeQuantWithMinMaxVars', f'params/{target}/kernel', transform)
  yield Rule(f'{at}/BiasAdd;{at}/Conv2D;{at}/biases', f'params/{target}/bias')
