"""One table for both directions: which tensor of a checkpoint is which leaf, and how its axes lie.

Every tensor is accounted for: read, or dropped by a rule that says so. Nothing is skipped in silence.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tlx import trees
from tlx.types import TlxError, Variables

Tensors = Mapping[str, np.ndarray]


class WeightMismatchError(TlxError):
  """A checkpoint and a model do not fit; the message lists every problem."""


class Transform(NamedTuple):
  """An exact change of axes and its inverse."""

  read: Callable[[np.ndarray], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]


SAME = Transform(lambda x: x, lambda x: x)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
DENSE = Transform(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]


class Rule(NamedTuple):
  """`source` is the checkpoint's name; `target` the leaf's path, 'params/...' or 'batch_stats/...'; None drops it."""

  source: str
  target: str | None
  transform: Transform = SAME


def conv(source: str, target: str, bias: bool = False) -> Iterator[Rule]:
  """A convolution, grouped and depthwise ones too."""
  yield Rule(f'{source}.weight', f'params/{target}/kernel', CONV)
  if bias:
    yield Rule(f'{source}.bias', f'params/{target}/bias')


def dense(source: str, target: str) -> Iterator[Rule]:
  """A linear layer with its bias."""
  yield Rule(f'{source}.weight', f'params/{target}/kernel', DENSE)
  yield Rule(f'{source}.bias', f'params/{target}/bias')


def norm(source: str, target: str) -> Iterator[Rule]:
  """A batch norm: parameters, statistics, and PyTorch's step counter, which no inference needs."""
  yield Rule(f'{source}.weight', f'params/{target}/scale')
  yield Rule(f'{source}.bias', f'params/{target}/bias')
  yield Rule(f'{source}.running_mean', f'batch_stats/{target}/mean')
  yield Rule(f'{source}.running_var', f'batch_stats/{target}/var')
  yield Rule(f'{source}.num_batches_tracked', None)


def read(
  tensors: Tensors, rules: Sequence[Rule], like: Variables, *, fresh: str | None = None, where: str = 'checkpoint'
) -> tuple[Variables, dict[str, np.ndarray]]:
  """Checkpoint tensors -> variables of `like`'s shapes in its dtypes, and the tensors that the rules drop.

  fresh: a path prefix such as 'head/' whose leaves are taken from `like` as they are, whatever the checkpoint says.
  Raises WeightMismatchError listing all problems: missing, unexpected, wrongly shaped, never written.
  """
  wanted = trees.flatten(like)
  is_fresh = lambda path: fresh is not None and path.split('/', 1)[1].startswith(fresh)
  leaves = {path: leaf for path, leaf in wanted.items() if is_fresh(path)}
  problems, dropped = [], {}
  known = {rule.source for rule in rules}
  problems += [f'{name} {tensors[name].shape}: the model has no place for it' for name in tensors if name not in known]
  for rule in rules:
    if rule.target is None or is_fresh(rule.target):
      if rule.source in tensors and rule.target is None:
        dropped[rule.source] = np.asarray(tensors[rule.source])
    elif rule.source not in tensors:
      problems.append(f'{rule.source} -> {rule.target}: not in the checkpoint')
    elif (value := _fit(rule, tensors[rule.source], wanted[rule.target])) is None:
      problems.append(
        f'{rule.source} {tensors[rule.source].shape} -> {rule.target} {wanted[rule.target].shape}: shapes differ'
      )
    else:
      leaves[rule.target] = value
  targets = {rule.target for rule in rules}
  problems += [f'{path}: no rule writes it' for path in wanted if path not in leaves and path not in targets]
  if problems:
    raise WeightMismatchError(_report(where, problems))
  return trees.unflatten({path: leaves[path] for path in wanted}), dropped


def write(variables: Variables, rules: Sequence[Rule], dropped: Tensors | None = None) -> dict[str, np.ndarray]:
  """The inverse of `read`: the checkpoint's names, shapes and order of axes; raises if a leaf has no rule."""
  leaves = trees.flatten(variables)
  targets = {rule.target: rule for rule in rules if rule.target in leaves}
  homeless = [f'{path}: no rule names it' for path in leaves if path not in targets]
  if homeless:
    raise WeightMismatchError(_report('export', homeless))
  tensors = {
    rule.source: np.ascontiguousarray(rule.transform.write(np.asarray(leaves[path]))) for path, rule in targets.items()
  }
  kept = dropped or {}
  return {
    rule.source: tensors[rule.source] if rule.source in tensors else kept[rule.source]
    for rule in rules
    if rule.source in tensors or rule.source in kept
  }


def _fit(rule: Rule, tensor: np.ndarray, leaf) -> np.ndarray | None:
  """The tensor as the leaf wants it, or None where the shapes differ."""
  if tensor.ndim != len(leaf.shape):
    return None
  value = rule.transform.read(np.asarray(tensor))
  return np.ascontiguousarray(value, dtype=leaf.dtype) if value.shape == leaf.shape else None


def _report(where: str, problems: list[str]) -> str:
  shown = problems[:20] + [f'... and {len(problems) - 20} more'] * (len(problems) > 20)
  return '\n  '.join([f'{where}: {len(problems)} problem{"s" * (len(problems) > 1)}', *shown])
