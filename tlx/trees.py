"""Trees as flat dicts from paths such as 'backbone/stem/conv/kernel' to leaves, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Flattens a nested dict to {path: leaf}. Paths have no leading slash.

  >>> flatten({'head': {'logits': {'bias': 1, 'kernel': 2}}})
  {'head/logits/bias': 1, 'head/logits/kernel': 2}
  """
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Builds the nested dict of {path: leaf}.

  >>> unflatten({'head/logits/bias': 1, 'head/logits/kernel': 2})
  {'head': {'logits': {'bias': 1, 'kernel': 2}}}
  """
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def split(tree: Mapping[str, Any], keep: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a tree in two: the leaves whose path `keep` accepts, and the others.

  Args:
    tree: a nested dict.
    keep: path -> whether the leaf belongs to the first tree.

  Returns:
    Two nested dicts.

  Examples:
    >>> split({'backbone': {'kernel': 1}, 'head': {'kernel': 2}}, lambda path: path.startswith('head/'))
    ({'head': {'kernel': 2}}, {'backbone': {'kernel': 1}})
  """
  flat = flatten(tree)
  return unflatten({p: x for p, x in flat.items() if keep(p)}), unflatten(
    {p: x for p, x in flat.items() if not keep(p)}
  )


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
  """Merges trees: the inverse of `split`. Where two have the same path, the later one wins.

  >>> merge({'head': {'kernel': 2}}, {'backbone': {'kernel': 1}})
  {'head': {'kernel': 2}, 'backbone': {'kernel': 1}}
  """
  return unflatten({path: leaf for tree in trees for path, leaf in flatten(tree).items()})


def count(tree: Any) -> int:
  """Number of values in all leaves, which may be jax.ShapeDtypeStruct.

  >>> count({'kernel': np.zeros((3, 5)), 'bias': np.zeros(5)})
  20
  """
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_in_bytes(tree: Any) -> int:
  """Bytes of all leaves, which may be jax.ShapeDtypeStruct.

  >>> size_in_bytes({'kernel': np.zeros((3, 5), np.float32)})
  60
  """
  return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
