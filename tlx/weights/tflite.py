"""Rules for the constants of TensorFlow Lite files of MobileNets, as arrays by name: kernels OHWI, batch norms folded.

A folded norm has left its bias beside the convolution, which is scaled. It is read as a norm that changes nothing but
by that bias: scale 1, mean 0, variance 1 - epsilon. One that has been trained since is written with the names that its
parts had in TensorFlow.
"""

from collections.abc import Iterator

from tlx.weights.rules import Rule, Transform

CONV = Transform(lambda x: x.transpose(1, 2, 3, 0), lambda x: x.transpose(3, 0, 1, 2))  # OHWI <-> HWIO
DEPTHWISE = Transform(lambda x: x.transpose(1, 2, 0, 3), lambda x: x.transpose(2, 0, 1, 3))  # 1HWC <-> HW1C
DENSE = Transform(lambda x: x[:, 0, 0].T, lambda x: x.T[:, None, None])  # [out, 1, 1, in] <-> [in, out]


def unit(
  at: str, target: str, *, transform: Transform = CONV, epsilon: float = 1e-5, bias: str | None = None
) -> Iterator[Rule]:
  """A ConvNorm at the scope `at`.

  epsilon: of our norm. bias: the name of its bias, where the converter has joined it with others.
  """
  kernel = f'{at}/{"depthwise_Fold" if transform is DEPTHWISE else "Conv2D_Fold"}'
  norm = f'{at}/BatchNorm'
  yield Rule(f'{kernel};{at}/weights_quant/FakeQuantWithMinMaxVars', f'params/{target}/conv/kernel', transform)
  yield Rule(bias or f'{norm}_Fold/bias', f'params/{target}/norm/bias')
  yield Rule(f'{norm}/gamma', f'params/{target}/norm/scale', absent=1.0)
  yield Rule(f'{norm}/moving_mean', f'batch_stats/{target}/norm/mean', absent=0.0)
  yield Rule(f'{norm}/moving_variance', f'batch_stats/{target}/norm/var', absent=1 - epsilon)


def logits(at: str, target: str, transform: Transform) -> Iterator[Rule]:
  """A last 1x1 convolution with a bias."""
  yield Rule(f'{at}/Conv2D;{at}/weights_quant/FakeQuantWithMinMaxVars', f'params/{target}/kernel', transform)
  yield Rule(f'{at}/BiasAdd;{at}/Conv2D;{at}/biases', f'params/{target}/bias')
