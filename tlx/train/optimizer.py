"""Builds one `optax.multi_transform` over the trainable leaves of a phase, and the table of what learns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from tlx import labels, schedules, trees
from tlx.types import Params, Phase, UsageError


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The options of the optimizer. `build` makes the optax transformation of a phase."""

  name: str = 'adamw'  # adamw or sgd
  peak_lr: float = 1e-3  # of the head; a layer's peak is its rate in the phase times this
  weight_decay: float = 0.01  # on kernels only
  momentum: float = 0.9  # of sgd
  clip_norm: float = 1.0  # maximum L2 norm of the trainable gradient; 0 = off
  schedule: str = 'cosine'  # a key of `schedules.SCHEDULES`
  warmup: float = 0.1  # share of each phase's steps

  def direction(self) -> optax.GradientTransformation:
    """The update before multiplication by the learning rate: AdamW, or SGD with Nesterov momentum.

    Weight decay does not apply to biases and norms.

    Raises:
      UsageError: for an unknown name.
    """
    decay = optax.add_decayed_weights(self.weight_decay, mask=labels.decays) if self.weight_decay else optax.identity()
    if self.name == 'adamw':
      return optax.chain(optax.scale_by_adam(), decay)
    if self.name == 'sgd':
      return optax.chain(decay, optax.trace(self.momentum, nesterov=True))
    raise UsageError(f'no optimizer {self.name!r}; there are adamw, sgd')

  def rate(self, steps: int, relative: float = 1.0) -> optax.Schedule:
    """The learning-rate schedule of a phase.

    Args:
      steps: of the phase.
      relative: the layer's rate, a share of the peak.

    Returns:
      A function from the step (0 = the first of the phase) to the learning rate.
    """
    return schedules.make(self.schedule, self.peak_lr * relative, steps, round(self.warmup * steps))

  def build(self, phase: Phase, steps: int, trainable: Params) -> optax.GradientTransformation:
    """The optax transformation of a phase. It sees only the trainable leaves, so frozen ones cost no memory.

    Args:
      phase: gives each layer its rate.
      steps: of the phase.
      trainable: the leaves that learn.

    Returns:
      Clipping, the update of each layer, and its learning rate, chained.
    """
    tree = labels.label_tree(trainable, phase.rates)
    used = sorted(set(jax.tree.leaves(tree)))  # all processes must build the same program; a set has no fixed order
    return optax.chain(
      optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
      optax.multi_transform({name: self.direction() for name in used}, tree),
      optax.multi_transform(
        {name: optax.scale_by_learning_rate(self.rate(steps, phase.rates[name])) for name in used}, tree
      ),
    )


def carry(old: Any, new: Any) -> Any:
  """Carries moments into the optimizer state of the next phase.

  Args:
    old: state at the end of a phase.
    new: initial state of the next phase.

  Returns:
    `new` with the moments of each leaf that was learning before. Its schedules start at step 0.
  """
  known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old[1])}
  moments = jax.tree_util.tree_map_with_path(lambda path, leaf: known.get(jax.tree_util.keystr(path), leaf), new[1])
  return (new[0], moments, new[2])


class Row(NamedTuple):
  """One line of the table of what learns."""

  label: str  # 'frozen', or a layer or range of layers
  tensors: int
  parameters: int
  learning_rate: float  # at the peak
  first_path: str


def describe(params: Params, phase: Phase, peak_lr: float, layers: Sequence[str] = ()) -> list[Row]:
  """Makes the table of what learns in a phase. Every leaf belongs to exactly one row.

  Args:
    params: of the whole model.
    phase: gives each layer that learns its rate.
    peak_lr: peak learning rate.
    layers: the backbone's layers in order; used for the first path of the frozen row.

  Returns:
    The row 'frozen', then the layers that learn. Neighbours with the same rate share a row.

  Raises:
    UsageError: if the phase names a layer without parameters.
  """
  groups: dict[str, list[str]] = {}
  flat = trees.flatten(params)
  for path in _ordered(flat, [*layers, labels.HEAD] if layers else list(phase.rates)):
    groups.setdefault(labels.label(path, phase.rates), []).append(path)
  if missing := [name for name in phase.rates if name not in groups]:
    raise UsageError(
      f'phase {phase.name!r} lets {", ".join(missing)} learn, which has no parameters; there are {", ".join(groups)}'
    )
  rows = [_row(name, paths, flat, phase.rates.get(name, 0.0) * peak_lr) for name, paths in groups.items()]
  return sorted(_joined(rows), key=lambda row: row.label != labels.FROZEN)


def _ordered(flat: Mapping[str, Any], layers: Sequence[str]) -> list[str]:
  """Paths in the order of the layers. Paths of other layers come first."""
  place = {name: i for i, name in enumerate(layers)}
  return sorted(flat, key=lambda path: place.get(labels.layer_of(path), -1))


def _row(name: str, paths: Sequence[str], flat: Mapping[str, Any], rate: float) -> Row:
  return Row(name, len(paths), trees.count([flat[path] for path in paths]), rate, paths[0])


def _joined(rows: Sequence[Row]) -> list[Row]:
  """Joins consecutive layers with the same learning rate, such as 'stage0_block0 .. final_conv'."""
  joined: list[Row] = []
  for row in rows:
    last = joined[-1] if joined else None
    if last and last.learning_rate == row.learning_rate and labels.HEAD not in (last.label, row.label):
      first = last.label.split(' .. ')[0]
      joined[-1] = Row(
        f'{first} .. {row.label}',
        last.tensors + row.tensors,
        last.parameters + row.parameters,
        row.learning_rate,
        last.first_path,
      )
    else:
      joined.append(row)
  return joined
