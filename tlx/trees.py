"""Path-named leaves: a tree as a flat dict from 'backbone/stem/conv/kernel' to its array, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dict -> {path: leaf}; paths have no leading slash."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{path: leaf} -> nested dict."""
  return traverse_util.unflatten_dict(dict(flat), sep='/')


def split(tree: Mapping[str, Any], keep: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Two nested dicts: the leaves whose path `keep` accepts, and the others."""
  flat = flatten(tree)
  return unflatten({p: x for p, x in flat.items() if keep(p)}), unflatten(
    {p: x for p, x in flat.items() if not keep(p)}
  )


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `split`; later trees win."""
  return unflatten({path: leaf for tree in trees for path, leaf in flatten(tree).items()})


def count(tree: Any) -> int:
  """Number of values in all leaves."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_in_bytes(tree: Any) -> int:
  """Bytes of all leaves; works on abstract shapes too."""
  return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
