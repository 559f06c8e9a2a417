"""`tlx evaluate`: computes the metrics of a finished run on a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.actions import runs
from tlx.actions.predict import check_windows
from tlx.data import decode, pipeline, transforms, unreadable
from tlx.evaluate import exact
from tlx.nn.model import forward_of
from tlx.train import sharding
from tlx.train.step import Recipe, eval_step
from tlx.types import DataSource, Geometry, Pretrained, Task, TlxError, UsageError


def evaluate(
  run: Path,
  *,
  data: str | None = None,
  split: str = 'validation',
  batch_size: int | None = None,
  scales: Sequence[float] = (),
) -> dict[str, Any]:
  """Computes the metrics of a run on a split of its own data set, or of another one with the same classes.

  Args:
    run: the folder of a finished run.
    data: another data set with the same classes; None is the run's own.
    split: train, validation or test.
    batch_size: images per step; None is the run's own.
    scales: for segmentation: photographs are resized by these factors, windows of the model's input size slide over
      them, and every pixel of a photograph counts (mmsegmentation's protocol). () resizes photographs and masks to the
      model's input instead.

  Returns:
    {metric: number}, as in result.json.

  Raises:
    UsageError: if the run is not finished, the classes differ, or the task does not use scales.
  """
  if batch_size is not None and batch_size < 1:
    raise UsageError(f'--batch-size {batch_size}: must be above 0')
  model = runs.load_run(run)
  found, options, task = runs.data_of(run, data, split), runs.options(run), runs.task_of(model)
  runs.check_classes(found, run, model)
  if scales:
    return _by_windows(model, task, found.splits[split], scales).numbers()
  place = sharding.make('jit')
  size = -(-(batch_size or options['batch_size']) // jax.device_count()) * jax.device_count()
  recipe = Recipe(model.module, task, model.preprocess, dtype=jnp.dtype(options['dtype']))
  batches = pipeline.eval_batches(
    found.splits[split], task=task, batch_size=size, transform=transforms.evaluation(model.preprocess)
  )
  step, variables = place.evaluate(eval_step(recipe)), place.put_state(model.variables)
  done = exact.evaluate(task, step, variables, batches, place.put_batch, size=len(found.splits[split]))
  return done.numbers()


def _by_windows(model: Pretrained, task: Task, source: DataSource, scales: Sequence[float]) -> exact.Evaluation:
  """Evaluates a split by sliding windows, one photograph at a time. It names unreadable ones and leaves them out."""
  check_windows(task, scales)
  forward = forward_of(model)
  judge, total, rows, failures = jax.jit(task.evaluate), None, [], unreadable.of(source)
  for index in range(len(source)):
    example = None
    try:
      example = source[index]
      image = example.image
      photograph = decode.decode(image, scale=model.preprocess.grey) if isinstance(image, bytes) else image
      failures.read()
    except (TlxError, OSError) as error:
      failures.failed(index, example and example.name, error)
      continue
    height, width = photograph.shape[:2]
    target = task.encode(example.annotation, Geometry(height, width, 0, 0, height, width), (height, width))
    whole = task.whole(lambda x: np.asarray(forward(x)), photograph, model.preprocess.shape, scales)
    sums, records = judge(whole[None], {name: x[None] for name, x in target.items()}, np.ones(1, bool))
    total = jax.device_get(sums) if total is None else exact.merge(total, jax.device_get(sums))
    rows.append({**jax.device_get(records), 'index': np.int32([index])})
  if not rows:
    raise TlxError('no image of the split can be read')
  return exact.Evaluation(task, total, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
