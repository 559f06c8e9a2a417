"""Evaluates a split in one exact pass: every example counts once, and padding does not count."""

import io
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tlx.report import folder
from tlx.types import Batch, Task, TlxError, Variables


class Evaluation(NamedTuple):
  """The sums of a split, and one record per example in the order of the split."""

  task: Task
  sums: Any  # the task's, on the host
  records: Mapping[str, np.ndarray]  # the task's rows [n], and index int32 [n]

  def summary(self) -> dict[str, Any]:
    """The task's metrics: numbers, and tables such as 'per_class'."""
    return self.task.summary(self.sums, self.records)

  def numbers(self) -> dict[str, float]:
    """The summary without its tables."""
    return {name: value for name, value in self.summary().items() if isinstance(value, float | int)}


def evaluate(
  task: Task, step: Callable, variables: Variables, batches: Iterable[Batch], put: Callable, *, size: int
) -> Evaluation:
  """Evaluates a split.

  Args:
    task: gives the metrics.
    step: the compiled `eval_step`.
    variables: of the model, placed on the devices.
    batches: of `pipeline.eval_batches`.
    put: places a batch on the devices.
    size: number of examples of the split. An unreadable image is masked and has no record.

  Returns:
    Sums and records, on the host.

  Raises:
    TlxError: if no example can be read, an example is counted twice, or more are counted than the split has.
  """
  total, parts, running = None, [], None
  for batch in itertools.chain(batches, [None]):
    # The next step is sent before the results of the last one are fetched, so that the device never waits for us.
    done, running = running, step(variables, put(batch)) if batch is not None else None
    if done is not None:
      sums, records = jax.device_get(done)  # `merge` adds them in float64
      total = sums if total is None else merge(total, sums)
      parts.append(records)
  records = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  kept = np.flatnonzero(records.pop('mask'))
  kept = kept[np.argsort(records['index'][kept], kind='stable')]
  records = {name: x[kept] for name, x in records.items()}
  if not len(kept):
    raise TlxError(f'none of the {size} images of the split can be read; next: see that its files are there')
  if len(np.unique(records['index'])) != len(kept) or len(kept) > size:
    raise TlxError(
      f'evaluation counted {len(kept)} examples of a split of {size}, some of them twice: please report this'
    )
  return Evaluation(task, total, records)


def merge(a: Any, b: Any) -> Any:
  """Adds two pytrees of sums on the host: integers as int64, all others as float64.

  >>> merge({'count': np.int32(2), 'loss': np.float32(0.5)}, {'count': np.int32(1), 'loss': np.float32(0.25)})
  {'count': np.int64(3), 'loss': np.float64(0.75)}
  """
  widest = lambda x: np.asarray(x, np.int64 if np.issubdtype(np.asarray(x).dtype, np.integer) else np.float64)
  return jax.tree.map(lambda x, y: widest(x) + widest(y), a, b)


def write(path: Path, evaluation: Evaluation) -> None:
  """Writes the arrays that the task keeps of an evaluation to an .npz file.

  Args:
    path: of the file.
    evaluation: of a split.

  Raises:
    TlxError: if the file cannot be written.
  """
  encoded = io.BytesIO()
  np.savez_compressed(encoded, **evaluation.task.arrays(evaluation.sums, evaluation.records))
  folder.write_bytes(path, encoded.getvalue())
