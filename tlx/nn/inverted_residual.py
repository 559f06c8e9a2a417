"""Networks of inverted residual blocks, such as MobileNet and EfficientNet.

(Sandler et al. 2018, https://arxiv.org/abs/1801.04381.) A family's config makes a `Plan`; modules, the order of layers
and the tables of weights follow from the plan.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from tlx.nn import dilation
from tlx.nn.activation import Activation, silu
from tlx.nn.conv_norm import ConvNorm
from tlx.nn.gate import SqueezeExcite
from tlx.nn.model import Config, Layer
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Preprocess
from tlx.weights import rules

Unit = tuple[str, str]  # a checkpoint's names for a convolution and the batch norm after it
UNITS = {  # kind of block -> its convolutions in order; a gate comes before 'project'
  'separable': ('depthwise', 'project'),
  'inverted': ('expand', 'depthwise', 'project'),
  'fused': ('expand', 'project'),  # the expansion is the spatial convolution
  'conv': ('conv',),
}


class Gate(NamedTuple):
  """The squeeze-and-excitation gate of a block (Hu et al. 2017, https://arxiv.org/abs/1709.01507).

  `squeezed(inputs, expanded)` gives the channels between the gate's two convolutions.
  """

  squeezed: Callable[[int, int], int] = lambda inputs, expanded: max(1, inputs // 4)
  inner: Activation = silu
  outer: Activation = nn.sigmoid


class Block(NamedTuple):
  """The static description of one block. Its output has `features` channels."""

  kind: str  # key of UNITS
  kernel: int
  stride: int
  expansion: float
  features: int
  activation: Activation
  gate: Gate | None = None
  linear: bool = True  # no activation follows the projection
  skip: bool = True  # a residual connection wherever the shapes allow it
  dilation: int = 1  # of the spatial convolution

  @property
  def units(self) -> tuple[str, ...]:
    return UNITS[self.kind]


class Plan(NamedTuple):
  """The static description of a whole network."""

  stem: int  # output channels of the stem
  stages: tuple[tuple[Block, ...], ...]
  final: int  # channels of the convolution after the last block; 0 = none
  activation: Activation  # after the stem and after the final convolution

  def blocks(self) -> Iterator[tuple[int, int, Block]]:
    """(stage, position in the stage, block) from input to output."""
    return ((s, b, block) for s, stage in enumerate(self.stages) for b, block in enumerate(stage))

  def joined(self) -> list[int]:
    """The stages that begin with a residual connection."""
    inputs = (self.stem, *(stage[-1].features for stage in self.stages))
    fits = lambda first, channels: first.skip and first.stride == 1 and first.features == channels
    return [s for s, stage in enumerate(self.stages) if fits(stage[0], inputs[s])]

  def spread(self, output_stride: int, early: bool) -> 'Plan':
    """The plan with stages that dilate instead of exceeding the output stride; see `dilation.spread`.

    With `early`, such a stage also begins without a residual connection, as it would with its stride.
    """
    found = dilation.spread([stage[0].stride for stage in self.stages], output_stride, stem=2, early=early)

    def spread(block: Block, stride: int, dilated: int) -> Block:
      skip = block.skip and not (early and stride < block.stride)
      return block._replace(stride=stride, dilation=dilated, skip=skip)

    stages = zip(found, self.stages)
    return self._replace(
      stages=tuple(tuple(spread(x, *how.block(b)) for b, x in enumerate(stage)) for how, stage in stages)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Config):
  """Base class of the families' configs. A subclass adds `plan()`."""

  padding: str = 'torch'  # 'same' for weights from TensorFlow
  epsilon: float = 1e-5  # batch norm's
  momentum: float = 0.9  # of the batch norm's running statistics
  output_stride: int = 32  # with 8 or 16 the last stages dilate instead of striding
  dilate_early: bool = False  # they dilate from their first block on (torchvision's MobileNetV3)

  def __post_init__(self):
    dilation.check_output_stride(self.output_stride)

  @property
  def width(self) -> int:
    plan = self.plan()
    return plan.final or plan.stages[-1][-1].features

  def plan(self) -> Plan:
    raise TypeError(f'{type(self).__name__} has no plan()')

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    plan = self.plan().spread(self.output_stride, self.dilate_early)
    blocks = list(plan.blocks())
    numerics = {'padding': self.padding, 'epsilon': self.epsilon, 'momentum': self.momentum}
    unit = partial(ConvNorm, activation=plan.activation, **numerics)
    return (
      Layer('stem', partial(unit, plan.stem, 3, 2)),
      *(
        Layer(f'stage{s}_block{b}', partial(Residual, block, drop_path * i / len(blocks), **numerics))
        for i, (s, b, block) in enumerate(blocks)
      ),
      *([Layer('final_conv', partial(unit, plan.final, 1))] if plan.final else []),
    )


PREFIXES = {  # prefix of a variant's name -> settings of the library that its weights come from
  '': {},
  'tf_': {'padding': 'same', 'epsilon': 1e-3},  # TensorFlow
  'tv_': {'epsilon': 1e-3, 'momentum': 0.99},  # torchvision, where it uses TensorFlow's batch norm
}


def round_channels(channels: float, limit: float = 0.9) -> int:
  """Rounds to the nearest multiple of 8, but at least to 8 and never below `limit` times the number.

  >>> round_channels(35.2)
  32
  >>> round_channels(11, limit=0.9)
  16
  """
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < limit * channels else rounded


class Residual(nn.Module):
  """A block of any kind: [b, h, w, c] -> [b, h / stride, w / stride, features]."""

  block: Block
  drop_path: float
  padding: str
  epsilon: float
  momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    block, shortcut, inputs = self.block, x, x.shape[-1]
    expanded = round_channels(inputs * block.expansion) if block.expansion != 1 else inputs
    for name in block.units:
      spatial = name == (block.units[0] if block.kind == 'conv' else block.units[-2])
      last = name == block.units[-1]
      if name == 'project' and block.gate:
        squeezed, inner, outer = block.gate
        x = SqueezeExcite(squeezed(inputs, expanded), inner, outer, name='gate')(x)
      x = ConvNorm(
        block.features if last else expanded,
        block.kernel if spatial else 1,
        block.stride if spatial else 1,
        groups=expanded if name == 'depthwise' else 1,
        padding=self.padding,
        epsilon=self.epsilon,
        momentum=self.momentum,
        activation=None if name == 'project' and block.linear else block.activation,
        dilation=block.dilation if spatial else 1,
        name=name,
      )(x, train)
    fits = block.skip and block.stride == 1 and inputs == block.features
    return shortcut + DropPath(self.drop_path)(x, train) if fits else x


# Tables of weights: the names of these modules in the checkpoints of several families.

Names = Callable[[int, int, int, Block], tuple[list[Unit], Unit]]


def layout(config: Network, stem: Unit, final: Unit, head: str, names: Names) -> Iterator[rules.Rule]:
  """Yields the rules of a whole network.

  Args:
    config: the network.
    stem: names of the stem's convolution and norm.
    final: names of the final convolution and its norm.
    head: name of the linear layer.
    names: maps a block's index in the network, its stage, its position in the stage and the block itself to the names
      of its units and of its gate's two layers.

  Yields:
    Rules between the checkpoint's names and ours.
  """
  yield from rules.stem(stem[0], 'backbone/stem/conv')
  yield from rules.norm(stem[1], 'backbone/stem/norm')
  plan = config.plan()
  for i, (s, b, block) in enumerate(plan.blocks()):
    units, gate = names(i, s, b, block)
    for part, names_of_part in zip(block.units, units):
      yield from unit(*names_of_part, f'backbone/stage{s}_block{b}/{part}')
    for part, name in zip(('reduce', 'expand'), gate if block.gate else ()):
      yield from rules.conv(name, f'backbone/stage{s}_block{b}/gate/{part}', bias=True)
  if plan.final:
    yield from unit(*final, 'backbone/final_conv')
  yield from rules.dense(head, 'head/logits')


def unit(conv: str, norm: str, target: str) -> Iterator[rules.Rule]:
  """The rules of one ConvNorm."""
  yield from rules.conv(conv, f'{target}/conv')
  yield from rules.norm(norm, f'{target}/norm')


def timm(config: Network) -> Iterator[rules.Rule]:
  """timm's names: conv_stem, blocks.0.0.conv_dw, conv_head, classifier."""
  convs = {
    'separable': ('conv_dw', 'conv_pw'),
    'inverted': ('conv_pw', 'conv_dw', 'conv_pwl'),
    'fused': ('conv_exp', 'conv_pwl'),
    'conv': ('conv',),
  }

  def names(i: int, s: int, b: int, block: Block) -> tuple[list[Unit], Unit]:
    at = f'blocks.{s}.{b}'
    units = [(f'{at}.{conv}', f'{at}.bn{n}') for n, conv in enumerate(convs[block.kind], 1)]
    return units, (f'{at}.se.conv_reduce', f'{at}.se.conv_expand')

  return layout(config, ('conv_stem', 'bn1'), ('conv_head', 'bn2'), 'classifier', names)


def torchvision(config: Network) -> Iterator[rules.Rule]:
  """torchvision's names for EfficientNet: features.0.0, features.1.0.block.0.0, features.8.0, classifier.1.

  Raises:
    NoLayoutError: if torchvision has no such network.
  """
  blocks = [block for _, _, block in config.plan().blocks()]
  if any('depthwise' in block.units and not block.gate for block in blocks):
    raise rules.NoLayoutError('torchvision has no EfficientNet without gates (lite)')
  if any(block.kind == 'fused' and block.expansion == 1 for block in blocks):
    raise rules.NoLayoutError('torchvision has no fused block without expansion (rw)')
  final = f'features.{len(config.plan().stages) + 1}'
  names = lambda i, s, b, block: sequential(f'features.{s + 1}.{b}.block', block)
  return layout(config, ('features.0.0', 'features.0.1'), (f'{final}.0', f'{final}.1'), 'classifier.1', names)


def transformers_unit(at: str) -> Unit:
  """transformers' names for the two modules of a ConvNorm, in its MobileNets."""
  return f'{at}.convolution', f'{at}.normalization'


def weights_of(prefix: str, variants: Mapping[str, Any]) -> Callable[[str], str]:
  """Makes an entry of LAYOUT_VARIANTS: it finds the variant for weights of another library.

  Args:
    prefix: prefix of the variants that fit that library's weights (a key of PREFIXES).
    variants: the family's VARIANTS.

  Returns:
    A function from a variant's name to the variant of the same shape with that prefix; the name itself if there is
    none.
  """

  def rename(name: str) -> str:
    plain = name[3:] if name[:3] in PREFIXES else name
    return next((known for known in (prefix + plain, plain) if known in variants), name)

  return rename


def of_torchvision(variant: str, file: str, record: Preprocess) -> Checkpoint:
  """The checkpoint that torchvision publishes at https://download.pytorch.org/models/FILE.pth."""
  location = f'https://download.pytorch.org/models/{file}.pth'
  return Checkpoint(variant, location, 'torchvision', record, 'bsd-3-clause', 'https://github.com/pytorch/vision')


def sequential(at: str, block: Block) -> tuple[list[Unit], Unit]:
  """torchvision's names for the units and the gate of a block. It numbers them; the gate is the last but one."""
  last = len(block.units) - 1
  places = [i + 1 if block.gate and i == last else i for i in range(len(block.units))]
  return [(f'{at}.{i}.0', f'{at}.{i}.1') for i in places], (f'{at}.{last}.fc1', f'{at}.{last}.fc2')
