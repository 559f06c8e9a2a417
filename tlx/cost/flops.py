"""Multiply-adds of a function, counted in its jaxpr: nothing is compiled or run.

Matrix products and convolutions count, as usual in the literature; sums, norms and activations do not. Zeros of the
padding count like pixels. XLA's FLOPs are about twice this number plus the elementwise operations.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tlx import trees
from tlx.labels import HEAD
from tlx.nn.model import TransferModel

LOGITS = slice(1)  # the first output of init_with_output; leaves out the auxiliary head of some networks


class LayerCost(NamedTuple):
  """The cost of one layer for one image."""

  name: str
  shape: tuple[int, ...]  # output shape without the batch axis
  parameters: int
  multiply_adds: int


def multiply_adds(function: Callable, *abstract_args: Any) -> int:
  """Counts the multiply-adds of one call, as far as its results depend on them.

  A scan counts its body times its length. `lax.cond` counts its costliest branch. `lax.platform_dependent` counts its
  default, so the CPU forms of tlx.nn.conv do not change the number. `shard_map` counts the work of one device.

  Args:
    function: any function that JAX can trace.
    abstract_args: arrays, jax.ShapeDtypeStruct, or trees of them.

  Returns:
    The number of multiply-adds.

  Raises:
    ValueError: if a while loop multiplies matrices, because its length is known only at run time.

  >>> multiply_adds(jnp.dot, jnp.zeros((8, 16)), jnp.zeros((16, 4)))
  512
  """
  return _total(jax.make_jaxpr(function)(*abstract_args))


def model_cost(module: TransferModel, size: int, channels: int = 3) -> tuple[int, int]:
  """Counts (parameters, multiply-adds) for one image [size, size, channels], in evaluation mode, with one trace."""
  jaxpr, (_, variables) = _trace(module.init_with_output, jax.random.key(0), _image(size, channels))
  return trees.count(variables['params']), _total(jaxpr, LOGITS)


def layers(module: TransferModel, size: int, channels: int = 3) -> list[LayerCost]:
  """Counts the cost of every layer in order for one image [size, size, channels]; the head comes last.

  The sums over layers equal `model_cost`.
  """
  x = _image(size, channels)
  whole, (logits, variables) = _trace(module.init_with_output, jax.random.key(0), x)
  backbone = {collection: tree['backbone'] for collection, tree in variables.items() if 'backbone' in tree}
  params, rows, previous = variables['params'], [], None
  for name in module.backbone.names:
    layer = partial(module.backbone.apply, start=previous, stop=name)
    jaxpr, features = _trace(layer, backbone, x)
    x, previous = features[name], name
    rows.append(LayerCost(name, x.shape[1:], trees.count(params['backbone'].get(name, {})), _total(jaxpr)))
  rest = _total(whole, LOGITS) - sum(row.multiply_adds for row in rows)
  return [*rows, LayerCost(HEAD, logits.shape[1:], trees.count(params.get(HEAD, {})), rest)]


def _trace(function: Callable, *arguments: Any) -> tuple[Any, Any]:
  """(jaxpr, shapes of the outputs)."""
  return jax.make_jaxpr(function, return_shape=True)(*arguments)


def _image(size: int, channels: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)


def _total(jaxpr: Any, outputs: slice = slice(None)) -> int:
  """Multiply-adds of a jaxpr, closed or not, that these of its outputs depend on."""
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  total, wanted = 0, {id(variable) for variable in jaxpr.outvars[outputs]}
  for eqn in reversed(jaxpr.eqns):
    if any(id(variable) in wanted for variable in eqn.outvars):
      wanted.update(map(id, eqn.invars))
      total += _RULES.get(eqn.primitive.name, _nested)(eqn)
  return total


def _nested(eqn: Any) -> int:
  """Multiply-adds of the functions that an equation calls once (jit, custom derivatives, remat); 0 if it calls none."""
  return sum(_total(jaxpr) for jaxpr in _jaxprs(eqn.params.values()))


def _jaxprs(values: Any) -> Iterator[Any]:
  for value in values:
    if isinstance(value, tuple | list):
      yield from _jaxprs(value)
    elif hasattr(value, 'eqns'):
      yield value


def _product(eqn: Any) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  shape = eqn.invars[0].aval.shape
  return math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
  """Output values times kernel values per output. A transposed convolution counts its input's positions instead.

  The kernel's input axis holds the channels of one group only, so groups need no division.
  """
  x, kernel, y = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
  numbers, dilations = eqn.params['dimension_numbers'], eqn.params['lhs_dilation']
  places = [
    x[of_x] if dilation > 1 else y[of_y]
    for of_x, of_y, dilation in zip(numbers.lhs_spec[2:], numbers.out_spec[2:], dilations)
  ]
  batch, features = (y[axis] for axis in numbers.out_spec[:2])
  return batch * features * math.prod(places) * math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])


def _conditional(eqn: Any) -> int:
  totals = [_total(branch) for branch in eqn.params['branches']]
  platforms = eqn.params.get('branches_platforms') or ()
  return totals[platforms.index(None)] if None in platforms else max(totals)


def _while(eqn: Any) -> int:
  if _nested(eqn):
    raise ValueError('a while loop multiplies matrices an unknown number of times; use lax.scan, or lax.fori_loop '
                     'with bounds that are Python ints')  # fmt: skip
  return 0


_RULES: dict[str, Callable[[Any], int]] = {
  'dot_general': _product,
  'conv_general_dilated': _convolution,
  'scan': lambda eqn: eqn.params['length'] * _nested(eqn),
  'cond': _conditional,
  'while': _while,
}
