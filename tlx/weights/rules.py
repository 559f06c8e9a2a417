"""Translates the tensors of a checkpoint to the leaves of a model and back, by one table of rules.

Every tensor is accounted for: a rule reads it, or a rule drops it.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tlx import trees, words
from tlx.types import TlxError, UsageError, Variables
from tlx.weights import resample

Tensors = Mapping[str, np.ndarray]


class WeightMismatchError(TlxError):
  """A checkpoint does not fit a model. The message lists every problem."""


class NoLayoutError(UsageError):
  """A library has no such network. A function of LAYOUTS raises it, and the message says what the library lacks."""


class Transform(NamedTuple):
  """A change of axes and its inverse."""

  read: Callable[[np.ndarray], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]
  exact: bool = True  # False: `read` drops values that have no effect; they are kept for export


SAME = Transform(lambda x: x, lambda x: x)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
DENSE = Transform(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])  # [out, in, 1, 1] <-> [in, out]


def reshape(theirs: Sequence[int], ours: Sequence[int]) -> Transform:
  """Reshapes `theirs` to `ours` and back. One -1 in each stands for the remaining size."""
  return Transform(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


Fit = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]  # (a leaf's value, the shape it must have) -> resampled value


class Rule(NamedTuple):
  """The rule for one tensor of a checkpoint.

  Attributes:
    source: the tensor's name. A rule that drops tensors may have a pattern such as 'text_model.*'.
    target: path of the leaf, 'params/...' or 'batch_stats/...'; None drops the tensor. Several rules with one target
      are parts of the leaf, joined along its last axis in the order of the table (query, key and value).
    transform: from the checkpoint's axes to ours, and back.
    fit: resamples the value where the input's size or channels differ from the checkpoint's.
    share: length of this part relative to the leaf's other parts.
    value: makes the value of a dropped tensor that its library expects in a file, for a model that kept none.
    absent: value of the whole leaf if a file lacks this tensor. It is written only if the leaf has another value.
  """

  source: str
  target: str | None
  transform: Transform = SAME
  fit: Fit | None = None
  share: int = 1
  value: Callable[[], np.ndarray] | None = None
  absent: float | None = None


def conv(source: str, target: str, bias: bool = False, fit: Fit | None = None) -> Iterator[Rule]:
  """The rules of a convolution, also grouped or depthwise."""
  yield Rule(f'{source}.weight', f'params/{target}/kernel', CONV, fit)
  if bias:
    yield Rule(f'{source}.bias', f'params/{target}/bias')


def stem(source: str, target: str, bias: bool = False) -> Iterator[Rule]:
  """The rules of the convolution that reads the image; it adapts to another number of channels."""
  return conv(source, target, bias, fit_channels)


def fit_channels(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Adapts a convolution's kernel to another number of input channels: the `fit` of a stem."""
  return resample.input_channels(kernel, shape[2])


def dense(source: str, target: str, bias: bool = True) -> Iterator[Rule]:
  """The rules of a linear layer."""
  yield Rule(f'{source}.weight', f'params/{target}/kernel', DENSE)
  if bias:
    yield Rule(f'{source}.bias', f'params/{target}/bias')


def affine(source: str, target: str) -> Iterator[Rule]:
  """The rules of a norm without statistics: layer norm or group norm."""
  yield Rule(f'{source}.weight', f'params/{target}/scale')
  yield Rule(f'{source}.bias', f'params/{target}/bias')


def norm(source: str, target: str) -> Iterator[Rule]:
  """The rules of a batch norm: parameters, statistics, and PyTorch's step counter, which is dropped."""
  yield from affine(source, target)
  yield Rule(f'{source}.running_mean', f'batch_stats/{target}/mean')
  yield Rule(f'{source}.running_var', f'batch_stats/{target}/var')
  yield Rule(f'{source}.num_batches_tracked', None)


def tables(
  layouts: Mapping[str, Callable[[Any], Iterable[Rule]]], config: Any
) -> tuple[dict[str, tuple[Rule, ...]], dict[str, str]]:
  """Makes the tables of rules of all layouts that have this network.

  Args:
    layouts: layout's name -> a function from a config to its rules.
    config: of the family.

  Returns:
    {layout: table}, and {layout: why it has none} for the others.
  """
  made, refused = {}, {}
  for name, layout in layouts.items():
    try:
      made[name] = tuple(layout(config))
    except NoLayoutError as error:
      refused[name] = str(error)
  return made, refused


def read(
  tensors: Tensors, rules: Sequence[Rule], like: Variables, *, fresh: Sequence[str] = (), where: str = 'checkpoint'
) -> tuple[Variables, dict[str, np.ndarray]]:
  """Reads the variables of a model from the tensors of a checkpoint.

  Args:
    tensors: {name: array}.
    rules: the table.
    like: variables of the model; the result has their shapes and dtypes.
    fresh: modules such as 'logits'; their leaves come from `like`, whatever the checkpoint holds.
    where: names the checkpoint in an error.

  Returns:
    The variables, and the tensors that the rules drop.

  Raises:
    WeightMismatchError: it lists all problems: tensors that are missing, unexpected or of the wrong shape, and leaves
      that no rule writes.
  """
  wanted = trees.flatten(like)
  is_fresh = lambda path: not set(fresh).isdisjoint(path.split('/'))
  leaves = {path: leaf for path, leaf in wanted.items() if is_fresh(path)}
  targets, drops = by_target(rules), _dropping(rules)
  dropped = {name: np.asarray(tensor) for name, tensor in tensors.items() if drops(name)}
  known = {rule.source for rule in rules} | dropped.keys()
  strays = [f'{name} {tensors[name].shape}: no place in the model' for name in tensors if name not in known]
  problems: list[str] = []
  for path, parts in targets.items():
    missing = [rule.source for rule in parts if rule.source not in tensors]
    if is_fresh(path) or (path not in wanted and len(missing) == len(parts)):
      continue
    if path not in wanted:
      problems.append(f'{parts[0].source} -> {path}: the model has no such leaf')
    elif missing and parts[0].absent is not None:
      leaves[path] = np.full(wanted[path].shape, parts[0].absent, wanted[path].dtype)
    elif missing:
      problems.append(f'{", ".join(missing)} -> {path}: not in the checkpoint')
    elif (value := joined(parts, tensors, wanted[path])) is None:
      shapes = ', '.join(f'{rule.source} {tensors[rule.source].shape}' for rule in parts)
      problems.append(f'{shapes} -> {path} {wanted[path].shape}: shapes differ')
    else:
      leaves[path] = np.ascontiguousarray(value, dtype=wanted[path].dtype)
      dropped |= {rule.source: np.asarray(tensors[rule.source]) for rule in parts if not rule.transform.exact}
  problems += [f'{path}: no rule writes it' for path in wanted if path not in leaves and path not in targets]
  if strays or problems:
    raise WeightMismatchError(_report(where, [strays, problems]))
  return trees.unflatten({path: leaves[path] for path in wanted}), dropped


def write(
  variables: Variables, rules: Sequence[Rule], dropped: Tensors | None = None, dtypes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
  """Inverts `read`: makes the checkpoint's names, shapes and order of axes.

  Args:
    variables: of the model.
    rules: the table.
    dropped: the tensors that `read` returned. They come back; so do the values that an inexact transform did not read,
      if the rest of the tensor is unchanged.
    dtypes: {tensor's name: dtype}; a tensor is cast to it if no value changes.

  Returns:
    {name: array}, in the order of the table.

  Raises:
    WeightMismatchError: if a leaf has no rule.
  """
  leaves, targets = trees.flatten(variables), by_target(rules)
  if homeless := [f'{path}: no rule names it' for path in leaves if path not in targets]:
    raise WeightMismatchError(_report('export', [homeless]))
  tensors = {rule.source: rule.value() for rule in rules if rule.value} | dict(dropped or {})
  for path, leaf in leaves.items():
    parts = targets[path]
    for rule, value in zip(parts, _split(np.asarray(leaf), parts)):
      if rule.absent is not None and np.all(value == value.dtype.type(rule.absent)):
        continue
      kept = tensors.get(rule.source)
      if kept is None or not np.array_equal(rule.transform.read(kept), value):
        tensor = np.ascontiguousarray(rule.transform.write(value))
        tensors[rule.source] = _narrowed(tensor, (dtypes or {}).get(rule.source))
  order = {rule.source: i for i, rule in enumerate(rules)}
  return {name: tensors[name] for name in sorted(tensors, key=lambda name: order.get(name, len(order)))}


def _narrowed(tensor: np.ndarray, dtype: str | None) -> np.ndarray:
  """Casts the tensor to that dtype, if no value changes."""
  if dtype is None or tensor.dtype == np.dtype(dtype):
    return tensor
  narrow = tensor.astype(np.dtype(dtype))
  return narrow if np.array_equal(narrow.astype(tensor.dtype), tensor) else tensor


def by_target(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
  """{path of a leaf: the rules of its parts, in order}."""
  targets: dict[str, list[Rule]] = {}
  for rule in rules:
    if rule.target is not None:
      targets.setdefault(rule.target, []).append(rule)
  return targets


def _dropping(rules: Sequence[Rule]) -> Callable[[str], bool]:
  """Makes a function that says whether the table drops a tensor of that name."""
  sources = {rule.source for rule in rules if rule.target is None}
  patterns = [source for source in sources if '*' in source]
  return lambda name: name in sources or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _split(leaf: np.ndarray, parts: Sequence[Rule]) -> list[np.ndarray]:
  """Splits a leaf into the parts of its rules."""
  if not parts[1:]:
    return [leaf]
  shares = np.cumsum([rule.share for rule in parts])
  return np.split(leaf, shares[:-1] * (leaf.shape[-1] // shares[-1]), axis=-1)


def joined(parts: Sequence[Rule], tensors: Tensors, leaf) -> np.ndarray | None:
  """Joins the tensors into the leaf; None if the shapes differ."""
  try:
    values = [rule.transform.read(np.asarray(tensors[rule.source])) for rule in parts]
    value = np.concatenate(values, axis=-1) if values[1:] else values[0]
    if value.shape != leaf.shape and parts[0].fit and value.ndim == len(leaf.shape):
      value = parts[0].fit(value, leaf.shape)
  except (ValueError, IndexError):  # the tensor has another rank
    return None
  fair = len(parts) == 1 or len({(*v.shape[:-1], v.shape[-1] / rule.share) for rule, v in zip(parts, values)}) == 1
  return value if fair and value.shape == leaf.shape else None


def _report(where: str, problems: list[list[str]]) -> str:
  """The error's text. It shortens each kind of problem by itself, so that none hides another."""
  count = sum(map(len, problems))
  lines = [line for kind in problems for line in (*kind[:20], *[f'... and {len(kind) - 20} more'] * (len(kind) > 20))]
  return '\n  '.join(map(words.shown, [f'{where}: {count} problem{"s" * (count > 1)}', *lines]))


def own(leaves: Iterable[str]) -> Iterator[Rule]:
  """Rules for leaves that no other library names: 'params/head/conv/kernel' is 'head.conv.kernel' in a file."""
  for path in leaves:
    yield Rule(path.partition('/')[2].replace('/', '.'), path)


def blank(like: Variables, fresh: Sequence[str], rectified: bool = False) -> Variables:
  """Replaces a fresh linear head in `like` by zeros, so that the first steps change the backbone little.

  Args:
    like: variables of the model.
    fresh: names of modules such as 'logits'.
    rectified: whether the logits pass a ReLU. Zeros would then never learn, so the kernel is drawn from a normal
      distribution with standard deviation 0.01.

  Returns:
    Variables like `like`.
  """
  rng = np.random.default_rng(0)

  def start(path: str, x: Any) -> np.ndarray:
    drawn = rectified and path.endswith('/kernel')
    return rng.normal(0, 0.01, x.shape).astype(x.dtype) if drawn else np.zeros(x.shape, x.dtype)

  flat = trees.flatten(like)
  old = lambda path: set(fresh).isdisjoint(path.split('/'))
  return trees.unflatten({path: x if old(path) else start(path, x) for path, x in flat.items()})
