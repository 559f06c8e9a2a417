"""`tlx evaluate`: the numbers of a finished run on a split."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tlx.actions import runs
from tlx.data import pipeline, transforms
from tlx.evaluate import exact
from tlx.train import sharding
from tlx.train.step import Recipe, eval_step
from tlx.types import UsageError


def evaluate(
  run: Path, *, data: str | None = None, split: str = 'validation', batch_size: int | None = None
) -> dict[str, Any]:
  """The numbers of result.json for a run on a split of its own data set or of another with the same classes."""
  if batch_size is not None and batch_size < 1:
    raise UsageError(f'--batch-size {batch_size}: must be above 0')
  model = runs.load_run(run)
  found, options, task = runs.data_of(run, data, split), runs.options(run), runs.task_of(model)
  runs.check_classes(found, run, model)
  place = sharding.make('jit')
  size = -(-(batch_size or options['batch_size']) // jax.device_count()) * jax.device_count()
  recipe = Recipe(model.module, task, model.preprocess, dtype=jnp.dtype(options['dtype']))
  batches = pipeline.eval_batches(
    found.splits[split], task=task, batch_size=size, transform=transforms.evaluation(model.preprocess)
  )
  step, variables = place.evaluate(eval_step(recipe)), place.put_state(model.variables)
  done = exact.evaluate(task, step, variables, batches, place.put_batch, size=len(found.splits[split]))
  return done.numbers()
