"""Our models against another library's on random weights: the draw, both passes, and what differs most.

Whatever is compared stands under the other library's names, which `rules.write` gives to any tree shaped like our
variables: gradients and moved statistics too. torch is imported by use, so that a table of cases can be read without.
"""

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tlx
from tlx import catalog
from tlx.cost.certificate import QUICK
from tlx.types import Params, Variables
from tlx.weights import read_tensors, rules

# The older emitters take a third of the newer ones' time; one part leaves the other cores to other workers.
COMPILER = {**QUICK, 'xla_cpu_use_fusion_emitters': False, 'xla_cpu_parallel_codegen_split_count': 1}
LABELS = np.array([1, 3])
STATISTICS = ('running_mean', 'running_var')
Tensors = Mapping[str, np.ndarray]


class Pass(NamedTuple):
  """What one forward and backward pass leaves, under their names."""

  logits: np.ndarray  # [b, k], of a dense task [b, h, w, k]
  gradients: Tensors  # of the mean cross-entropy
  statistics: Tensors  # batch norms' means and variances afterwards


class Worst(NamedTuple):
  """The largest error of a comparison, and where it is."""

  error: float
  name: str


def images(size: int | tuple[int, int], spread: float = 1.0) -> np.ndarray:
  """float32 [2, h, w, 3], already normalised; spread: their standard deviation."""
  sides = (size, size) if isinstance(size, int) else size
  return np.random.default_rng(0).normal(0, spread, (len(LABELS), *sides, 3)).astype(np.float32)


def draw(module: Any) -> None:
  """Draws every parameter and statistic of a torch module, sized so that activations stay near one.

  Other buffers (counters, tables of indices) stay as they are.
  """
  import torch

  torch.manual_seed(0)
  statistics = [(name, buffer) for name, buffer in module.named_buffers() if name.endswith(STATISTICS)]
  for name, tensor in (*module.named_parameters(), *statistics):
    tensor.data.copy_(_drawn(name, tensor))


def _drawn(name: str, tensor: Any) -> Any:
  import torch

  if name.endswith('running_var'):
    return torch.rand_like(tensor) + 0.5
  if tensor.ndim > 1:
    return torch.randn_like(tensor) / tensor[0].numel() ** 0.5
  return 0.2 * torch.randn_like(tensor) + (1.0 if name.endswith('weight') else 0.0)


def library(name: str) -> Any:
  """Another library's module; skips the test without it."""
  pytest.importorskip('torch')
  try:
    importlib.import_module('torchvision_operators')  # beside a CPU-only torch, torchvision needs it
    return importlib.import_module(name)
  except Exception as error:
    pytest.skip(f'{name} cannot be imported: {type(error).__name__}: {error}', allow_module_level=True)


def grouped(library: str, cases: Mapping[str, Any], often: Sequence[str]) -> list:
  """Parameters of a fixture that is costly to make: {name: case}; those not named in `often` belong to the full matrix.

  All tests of a case run on one worker (`--dist loadgroup`) and are drawn together.
  """
  marks = lambda name: (pytest.mark.xdist_group(f'{library} {name}'), *[pytest.mark.full] * (name not in often))
  return [pytest.param(case, id=name, marks=marks(name)) for name, case in cases.items()]


def silence(module: Any) -> None:
  """Turns off dropout and stochastic depth, whose masks no two libraries draw alike."""
  for part in module.modules():
    for rate in ('p', 'drop_prob'):
      if isinstance(getattr(part, rate, None), float):
        setattr(part, rate, 0.0)


def to_torch(array: np.ndarray, dtype: Any = None) -> Any:
  """[b, h, w, 3] -> torch [b, 3, h, w]."""
  import torch

  return torch.from_numpy(array.transpose(0, 3, 1, 2).copy()).to(dtype or torch.float32)


def their_pass(module: Any, array: np.ndarray, *, train: bool, dtype: str, labels: np.ndarray = LABELS) -> Pass:
  """Of a copy of a torch module, computed in `dtype`; a parameter without influence has the gradient zero.

  labels: int [b], of a dense task [b, h, w].
  """
  import torch

  copied = copy.deepcopy(module).to(getattr(torch, dtype)).train(train)
  silence(copied)
  output = copied(to_torch(array, getattr(torch, dtype)))
  logits = getattr(output, 'logits', output)  # transformers, and torchvision's models with a second head
  torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
  gradients = {
    name: np.zeros(tuple(x.shape)) if x.grad is None else x.grad.numpy() for name, x in copied.named_parameters()
  }
  statistics = {name: x.numpy() for name, x in copied.named_buffers() if name.endswith(STATISTICS)}
  return Pass(np.moveaxis(logits.detach().numpy(), 1, -1), gradients, statistics)


def our_pass(
  model: tlx.Pretrained,
  array: np.ndarray,
  *,
  train: bool,
  dtype: str,
  labels: np.ndarray = LABELS,
  table: Sequence[rules.Rule] | None = None,
) -> Pass:
  """The same of a loaded model, computed in `dtype` from the parameters on; table: its rules, if not `table_of`."""
  variables = jax.tree.map(lambda x: np.asarray(x, dtype), dict(model.variables))

  def loss(params: Params, others: Variables, x: jax.Array):
    logits, moved = model.module.apply({'params': params, **others}, x, train=train, mutable=['batch_stats'])
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -picked.mean(), (logits, moved)

  with jax.enable_x64(dtype == 'float64'):
    params, others = variables.pop('params'), variables
    arguments = (params, others, np.asarray(array, dtype))
    gradients, (logits, moved) = compiled(jax.grad(loss, has_aux=True), *arguments)
  # Rules without a target are constants of their own dtypes.
  table = tuple(rule for rule in table or table_of(model) if rule.target)
  named = rules.write(jax.device_get({'params': gradients}), table), rules.write(jax.device_get(dict(moved)), table)
  assert {x.dtype.name for x in jax.tree.leaves((logits, named))} == {dtype}  # no layer narrowed it on the way
  return Pass(np.asarray(logits), *named)


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
  """What a function gives for arrays, as one program that is quick to compile, not to run."""
  return jax.jit(function).lower(*arguments).compile(COMPILER)(*arguments)


def without(result: Pass, dropped: Tensors) -> Pass:
  """Without the gradients of parameters that we drop, which must be zero: they have no influence."""
  assert not [name for name, x in result.gradients.items() if name in dropped and x.any()]
  return result._replace(gradients={name: x for name, x in result.gradients.items() if name not in dropped})


def random_head(model: tlx.Pretrained) -> Variables:
  """The variables with a random head in place of the fresh one, which is zero."""
  from conftest import randomised  # of pytest's path

  params = model.variables['params']
  return {**model.variables, 'params': {**params, 'head': randomised(params['head'])}}


def as_saved(module: Any, result: Pass, folder: Path) -> Pass:
  """The same under the names that a module of transformers has in files, which may not be those of its attributes."""
  import torch

  holder = copy.deepcopy(module).double()
  for key, tensor in (*holder.named_parameters(), *holder.named_buffers()):
    if (value := {**result.gradients, **result.statistics}.get(key)) is not None:
      tensor.data = torch.from_numpy(value)
  holder.save_pretrained(folder)
  tensors = {key: x for key, x in read_tensors(folder).items() if not key.endswith('_tracked')}
  moved = {key: x for key, x in tensors.items() if key.endswith(STATISTICS)}
  return result._replace(gradients={key: x for key, x in tensors.items() if key not in moved}, statistics=moved)


def float64_errors(
  model: tlx.Pretrained,
  module: Any,
  array: np.ndarray,
  *,
  train: bool,
  renamed: Callable[[Pass], Pass] = lambda x: x,
  labels: np.ndarray = LABELS,
  table: Sequence[rules.Rule] | None = None,
) -> dict[str, Worst]:
  """Of logits, statistics and gradients; in training mode, and only there, their statistics must have moved.

  renamed: gives theirs the names that files have, where a module's are others. labels, table: as of both passes.
  """
  before = {name: x.numpy().copy() for name, x in module.named_buffers() if name.endswith(STATISTICS)}
  read = rules.by_target(table or table_of(model)).values()
  unread = model.source.dropped.keys() - {rule.source for parts in read for rule in parts}
  ours = our_pass(model, array, train=train, dtype='float64', labels=labels, table=table)
  theirs = their_pass(module, array, train=train, dtype='float64', labels=labels)
  assert not [name for name, x in theirs.statistics.items() if np.array_equal(x, before[name]) == train]
  theirs = without(renamed(theirs), {name: model.source.dropped[name] for name in unread})
  return {
    'logits': compare({'': ours.logits}, {'': theirs.logits}),
    'statistics': compare(ours.statistics, theirs.statistics),
    # Where batch statistics take a shift away again its true gradient is zero, and rounding is what is computed.
    'gradients': compare(ours.gradients, theirs.gradients, floor=1e-6),
  }


def table_of(model: tlx.Pretrained) -> tuple[rules.Rule, ...]:
  """The rules of the layout that the model was loaded from."""
  config = model.module.backbone.config
  family = catalog.of_config(config, model.source.variant).family  # of a config.json, it may be none of the variants
  return tuple(family.LAYOUTS[model.source.layout](config))


def relative(found: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
  """Largest difference, as a share of the largest expected value, or of `floor` where that is larger."""
  return float(np.abs(found - expected).max() / max(np.abs(expected).max(), floor, np.finfo(np.float64).tiny))


def compare(found: Tensors, expected: Tensors, *, floor: float = 0.0) -> Worst:
  """The tensor with the largest `relative` error; floor: as a share of the largest value of all tensors.

  Both must hold the same names and shapes.
  """
  assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
  assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in expected.items()}
  least = floor * max((np.abs(x).max() for x in expected.values()), default=0)
  return max((Worst(relative(found[n], x, least), n) for n, x in expected.items()), default=Worst(0.0, 'nothing'))


def distance(found: Tensors, expected: Tensors) -> float:
  """Relative L2 distance of all tensors together, as one long vector."""
  squared = lambda tensors: sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors)
  return (squared(found[name] - x for name, x in expected.items()) / squared(expected.values())) ** 0.5
