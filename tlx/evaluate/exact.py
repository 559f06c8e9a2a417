"""One exact pass over a split: every example counted once, padding never."""

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
  """Metrics of a split, and one record an example in the order of the split."""

  task: Task
  sums: Any  # the task's, on the host
  records: Mapping[str, np.ndarray]  # the task's rows [n], and index int32 [n]

  def summary(self) -> dict[str, Any]:
    return self.task.summary(self.sums, self.records)

  def numbers(self) -> dict[str, float]:
    """The summary without its tables."""
    return {name: value for name, value in self.summary().items() if isinstance(value, float | int)}


def evaluate(
  task: Task, step: Callable, variables: Variables, batches: Iterable[Batch], put: Callable, *, size: int
) -> Evaluation:
  """Runs the compiled `eval_step` over `batches`, placed on the devices by `put`.

  size: the examples the split has; unreadable ones are masked, and come out as fewer records.
  Raises TlxError if an example was counted twice or more are counted than there are.
  """
  total, parts, running = None, [], None
  for batch in itertools.chain(batches, [None]):
    # The next batch is on its way before the last one's numbers are fetched, so that the device never waits for us.
    done, running = running, step(variables, put(batch)) if batch is not None else None
    if done is not None:
      sums, records = jax.device_get(done)  # merged on the host, in float64
      total = sums if total is None else merge(total, sums)
      parts.append(records)
  records = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  kept = np.flatnonzero(records.pop('mask'))
  kept = kept[np.argsort(records['index'][kept], kind='stable')]
  records = {name: x[kept] for name, x in records.items()}
  if len(np.unique(records['index'])) != len(kept) or len(kept) > size:
    raise TlxError(
      f'evaluation counted {len(kept)} examples of a split of {size}, some of them twice: please report this'
    )
  return Evaluation(task, total, records)


def merge(a: Any, b: Any) -> Any:
  """The sums of both, on the host: counts as int64, all others as float64."""
  widest = lambda x: np.asarray(x, np.int64 if np.issubdtype(np.asarray(x).dtype, np.integer) else np.float64)
  return jax.tree.map(lambda x, y: widest(x) + widest(y), a, b)


def write(path: Path, evaluation: Evaluation) -> None:
  """What the task keeps of an evaluation, as one .npz."""
  encoded = io.BytesIO()
  np.savez_compressed(encoded, **evaluation.task.arrays(evaluation.sums, evaluation.records))
  folder.write_bytes(path, encoded.getvalue())
