"""Chooses the task and the head of a run from its options, data set and model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from tlx import catalog, words
from tlx.experiment import Experiment
from tlx.nn.levels import levels
from tlx.nn.model import TransferModel
from tlx.pretrained import Asked, Found, example
from tlx.types import DatasetInfo, Pretrained, Task, UsageError

OPTIONS = ('label_smoothing', 'focal_gamma', 'class_weights')  # options of an experiment that some tasks have as fields
HEAD_OPTIONS = {'hidden': 'head_hidden', 'dropout': 'head_dropout', 'pool': 'pool'}  # field: option


def of_experiment(e: Experiment, info: DatasetInfo) -> Task:
  """Makes the task of an experiment: the one in its options, or else the data set's own.

  Options that the task does not have are ignored here; `lacking` reports them.

  Args:
    e: the experiment.
    info: gives the classes.

  Returns:
    The task.

  Raises:
    UsageError: for an unknown task, and for a task that cannot read this data set.
  """
  if not isinstance(e.task, str | None):
    return e.task.bind(info)
  spec = e.task or info.task
  known = catalog.fields('tasks', spec)
  return catalog.task(spec, **{name: value for name, value in _of_task(e).items() if name in known}).bind(info)


def lacking(e: Experiment, task: Task, found: Found) -> list[str]:
  """Lists the given options that the task or the head does not have.

  Args:
    e: the experiment.
    task: of the experiment.
    found: the model.

  Returns:
    One line per option.
  """
  problems = []
  if isinstance(e.task, str | None):
    known = {field.name for field in dataclasses.fields(task)}
    problems += [f'{flag(n)}: the task {name_of(task)} has no such option' for n in _of_task(e) if n not in known]
  if isinstance(e.head, str | None):
    spec = _head_spec(e, task, found)
    known, name = catalog.fields('heads', spec), words.parse(spec)[0]
    lacks = [HEAD_OPTIONS[field] for field in _of_head(e) if field not in known]
    problems += [f'{flag(option)}: the head {name} has no such option' for option in lacks]
  return problems


def _of_task(e: Experiment) -> dict[str, Any]:
  return {name: getattr(e, name) for name in OPTIONS if getattr(e, name) not in (None, 'none', 0.0)}


def _of_head(e: Experiment) -> dict[str, Any]:
  return {field: getattr(e, name) for field, name in HEAD_OPTIONS.items() if getattr(e, name) is not None}


def _head_spec(e: Experiment, task: Task, found: Found) -> str:
  own = found.head if words.parse(found.task)[0] == name_of(task) else None
  return e.head or own or task.default_head


def with_defaults(task: Task, e: Experiment) -> Task:
  """The task with the defaults that `defaults.resolve` chose."""
  known = {field.name for field in dataclasses.fields(task)}
  return dataclasses.replace(task, label_smoothing=e.label_smoothing) if 'label_smoothing' in known else task


def of_record(spec: str | None, class_names: Sequence[str]) -> Task:
  """Makes the task of a finished run or a model from its record.

  Args:
    spec: the task with its options as text; None is classification.
    class_names: of the model.

  Returns:
    The task.

  Raises:
    UsageError: for an unknown task or option.
  """
  return dataclasses.replace(catalog.task(spec or 'classification'), class_names=tuple(class_names))


def name_of(task: Task) -> str:
  """The file of `tlx/tasks` that the task is from; the class's full name for a task of the user."""
  parts = type(task).__module__.split('.')
  return parts[2] if parts[:2] == ['tlx', 'tasks'] else f'{type(task).__module__}.{type(task).__qualname__}'


def spec_of(task: Task) -> str:
  """The task with its options as text, which `of_record` reads."""
  own = name_of(task)
  return own if '.' in own else words.text(own, task, leave_out=('class_names', 'class_weights'))


def head_of(e: Experiment, task: Task, found: Found) -> str | nn.Module | None:
  """Chooses the head: the one in the options, else the model's own if it is for this task, else the task's default.

  Options that the head does not have are ignored here; `lacking` reports them.

  Args:
    e: the experiment.
    task: of the experiment.
    found: the model.

  Returns:
    The head with its options as text, or the user's module. None is the linear head without options: the model's file
    may have its weights.
  """
  if not isinstance(e.head, str | None):
    return e.head
  spec = _head_spec(e, task, found)
  known = catalog.fields('heads', spec)
  given = {field: value for field, value in _of_head(e).items() if field in known}
  return _joined(spec, given) if given else None if spec == 'linear' else spec


def trained_for(task: Task, loaded: Pretrained, info: DatasetInfo) -> Pretrained:
  """Sets a model's classes, task and scale of deep grey. For dense tasks it then sees the whole picture, not a crop.

  Args:
    task: that the head is for.
    loaded: the model.
    info: of the data set.

  Returns:
    The model with new records and the same weights.
  """
  whole = loaded.preprocess._replace(crop=1.0, mode='squash') if task.dense else loaded.preprocess
  source = loaded.source._replace(task=spec_of(task))
  return loaded._replace(class_names=info.class_names, source=source, preprocess=whole._replace(grey=info.grey))


def check_input(found: Found, head: str | nn.Module | None, shape: tuple[int, int]) -> None:
  """Checks a small size of the input by tracing the model. Every model takes larger ones.

  Args:
    found: the model.
    head: of `head_of`.
    shape: height and width of the input, pixels.

  Raises:
    UsageError: if nothing would be left of such an image.
  """
  if min(shape) >= found.variant.config.smallest or _takes(found, head, shape):
    return
  fitting = next((side for side in (16, 32, 48, 64, 96, 128) if _takes(found, head, (side, side))), None)
  way_out = f'next: give {fitting} or more' if fitting else "next: leave it out, to take the model's own"
  size = 'x'.join(map(str, dict.fromkeys(shape)))
  raise UsageError(f'--image-size {size}: too small for {found.variant.name}; {way_out}')


def _takes(found: Found, head: str | nn.Module | None, shape: tuple[int, int]) -> bool:
  ask = Asked(num_classes=2, image_size=shape if shape[0] != shape[1] else shape[0], head=head)
  try:
    module = ask.module(ask.variant(found.variant), 2, found.head)
    jax.eval_shape(module.init, jax.random.key(0), example(module, 3, shape))
  except (ValueError, TypeError, ZeroDivisionError) as error:  # each layer has its own
    return isinstance(error, UsageError) and shape[0] != shape[1]  # it takes squares only: `load` says so
  return True


def check_size(task: Task, module: TransferModel, shape: tuple[int, int]) -> None:
  """Checks the size of the input.

  Args:
    task: of the run.
    module: the model.
    shape: height and width of its input, pixels.

  Raises:
    UsageError: if the task is dense and a side is smaller than the backbone's largest stride.
  """
  strides = [level.stride for level in levels(module.backbone)] if task.dense else []
  if strides and min(shape) < max(strides):
    raise UsageError(
      f'--image-size {"x".join(map(str, shape))}: the backbone reduces by {max(strides)}, so that no place would be '
      f'left; give {max(strides)} or more'
    )


def flag(option: str) -> str:
  """The command-line flag of an option.

  >>> flag('head_hidden')
  '--head-hidden'
  """
  return f'--{option.replace("_", "-")}'


def _joined(spec: str, given: Mapping[str, Any]) -> str:
  name, options = words.parse(spec)
  return f'{name}({", ".join(f"{option}={value!r}" for option, value in (options | given).items())})'
