"""Labels of parameters: which layers learn, and at which share of the peak learning rate.

A label is a layer's name, or 'frozen'. `rates` is a dict {layer: share of the peak rate}; layers that it lacks are
frozen. `layers` is the backbone's order from input to output, without the head.
"""

from collections.abc import Mapping, Sequence

from tlx import trees
from tlx.types import Params, UsageError

BACKBONE, HEAD = 'backbone', 'head'  # names of a model's top-level modules
FROZEN = 'frozen'


def head_only() -> dict[str, float]:
  """The rates of a linear probe: only the head learns.

  >>> head_only()
  {'head': 1.0}
  """
  return {HEAD: 1.0}


def last_layers(layers: Sequence[str], k: int, rate: float = 1.0) -> dict[str, float]:
  """The rates of partial fine-tuning: the last `k` layers learn at `rate`, the head at 1.

  Args:
    layers: the backbone's layers.
    k: number of layers, 0 to len(layers).
    rate: share of the peak learning rate.

  Returns:
    {layer: rate}.

  Raises:
    UsageError: unless 0 <= k <= len(layers).

  Examples:
    >>> last_layers(['stem', 'block0', 'block1'], k=2, rate=0.1)
    {'block0': 0.1, 'block1': 0.1, 'head': 1.0}
  """
  if not 0 <= k <= len(layers):
    raise UsageError(
      f'the last {k} layers of a backbone with {len(layers)}: choose 0 to {len(layers)} of {", ".join(layers)}'
    )
  return {**dict.fromkeys(layers[len(layers) - k :], rate), HEAD: 1.0}


def layerwise(layers: Sequence[str], decay: float) -> dict[str, float]:
  """The rates of layer-wise learning-rate decay (BEiT, https://arxiv.org/abs/2106.08254).

  Args:
    layers: the backbone's layers; the i-th from the end learns at decay^i.
    decay: factor from a layer to the one before it, (0, 1].

  Returns:
    {layer: rate}.

  Examples:
    >>> layerwise(['stem', 'block0'], decay=0.5)
    {'stem': 0.25, 'block0': 0.5, 'head': 1.0}
  """
  return {**{name: decay ** (len(layers) - i) for i, name in enumerate(layers)}, HEAD: 1.0}


def layer_of(path: str) -> str:
  """The layer of a parameter.

  >>> layer_of('backbone/stem/conv/kernel'), layer_of('head/logits/bias')
  ('stem', 'head')
  """
  root, name, *_ = path.split('/')
  return HEAD if root == HEAD else name


def label(path: str, rates: Mapping[str, float]) -> str:
  """The label of a parameter: its layer if that learns, else 'frozen'."""
  return layer if (layer := layer_of(path)) in rates else FROZEN


def label_tree(params: Params, rates: Mapping[str, float]) -> Params:
  """Replaces every leaf of `params` by its label. Each leaf has exactly one.

  >>> label_tree({'backbone': {'stem': {'kernel': 0}}, 'head': {'kernel': 0}}, head_only())
  {'backbone': {'stem': {'kernel': 'frozen'}}, 'head': {'kernel': 'head'}}
  """
  return trees.unflatten({path: label(path, rates) for path in trees.flatten(params)})


def decays(params: Params) -> Params:
  """Replaces every leaf of `params` by whether weight decay applies to it.

  It applies to kernels only, not to biases, norms, class tokens, position tables and layer scales.
  """
  return trees.unflatten({path: path.endswith('/kernel') for path in trees.flatten(params)})
