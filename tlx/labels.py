"""Label functions over the layer order: which layers learn, and at what share of the peak learning rate.

A label is a layer's name, or 'frozen'. Rates are a dict {layer: rate}; a layer that it lacks is frozen.
`layers` is always the backbone's order from input to output, without the head.
"""

from collections.abc import Mapping, Sequence

from tlx import trees
from tlx.types import Params, UsageError

BACKBONE, HEAD = 'backbone', 'head'  # the top-level modules of a model
FROZEN = 'frozen'


def head_only() -> dict[str, float]:
  """A linear probe: nothing of the backbone learns."""
  return {HEAD: 1.0}


def last_layers(layers: Sequence[str], k: int, rate: float = 1.0) -> dict[str, float]:
  """The last `k` layers at `rate`, and the head at 1. Raises UsageError unless 0 <= k <= len(layers)."""
  if not 0 <= k <= len(layers):
    raise UsageError(
      f'the last {k} layers of a backbone with {len(layers)}: choose 0 to {len(layers)} of {", ".join(layers)}'
    )
  return {**dict.fromkeys(layers[len(layers) - k :], rate), HEAD: 1.0}


def layerwise(layers: Sequence[str], decay: float) -> dict[str, float]:
  """Layer-wise learning-rate decay (BEiT, 2106.08254): decay^1 for the last layer, decay^n for the first."""
  return {**{name: decay ** (len(layers) - i) for i, name in enumerate(layers)}, HEAD: 1.0}


def layer_of(path: str) -> str:
  """'backbone/stem/conv/kernel' -> 'stem'; 'head/logits/bias' -> 'head'."""
  root, name, *_ = path.split('/')
  return HEAD if root == HEAD else name


def label(path: str, rates: Mapping[str, float]) -> str:
  """The optimiser's label of one leaf."""
  return layer if (layer := layer_of(path)) in rates else FROZEN


def label_tree(params: Params, rates: Mapping[str, float]) -> Params:
  """`params` with every leaf replaced by its label; each leaf has exactly one."""
  return trees.unflatten({path: label(path, rates) for path in trees.flatten(params)})


def decays(params: Params) -> Params:
  """`params` with every leaf replaced by whether weight decay applies.

  Kernels do; biases, norms, class tokens, position tables and layer scales never.
  """
  return trees.unflatten({path: path.endswith('/kernel') for path in trees.flatten(params)})
