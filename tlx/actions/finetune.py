"""`tlx finetune`: loads data and weights, trains, evaluates, exports the model and writes the report."""

import contextlib
import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tlx import catalog, labels, pretrained, processes, schedules, trees, words
from tlx.actions import defaults, ownership, run_data, run_record, tasks
from tlx.cache import compiled_steps, programs
from tlx.cost import certificate
from tlx.data import augment, unreadable
from tlx.evaluate import exact
from tlx.experiment import Experiment
from tlx.prefix import phase_inputs
from tlx.prefix.compute import Settings
from tlx.report import folder, page, terminal
from tlx.train import loop, memory, optimizer, sharding
from tlx.train.checkpoint import Checkpoints
from tlx.train.step import Recipe
from tlx.types import Dataset, Phase, Pretrained, Strategy, Task


class Prepared(NamedTuple):
  """An experiment with all options chosen, and its data and weights loaded."""

  experiment: Experiment
  why: Mapping[str, str]  # {option: 'value (reason)'} of the options that were left open
  data: Dataset
  task: Task
  pretrained: Pretrained
  phases: Sequence[Phase]
  placement: sharding.Jit | sharding.Pmap
  stretches: Sequence[loop.Stretch]
  steps: int


class Result(NamedTuple):
  """The result of `tlx.finetune`."""

  metrics: Mapping[str, Any]  # the content of result.json
  pretrained: Pretrained  # the trained model
  folder: Path  # of the run


def run(experiment: Experiment, *, quiet: bool = False) -> Result:
  """Trains, evaluates, exports and reports. It resumes an unfinished run in the same folder.

  Args:
    experiment: the options.
    quiet: whether to print warnings only.

  Returns:
    The result; that of the earlier call if the run is complete already.

  Raises:
    UsageError: for wrong options.
    TlxError: for problems of the machine, such as a full disk or too little memory.
    loop.Stopped: after SIGTERM or Ctrl-C, when the state is saved.
  """
  started = time.time()
  programs.keep()
  show = terminal.Console(quiet or jax.process_index() > 0)
  out = Path(experiment.out or run_record.folder_name(experiment))
  processes.in_first(lambda: (run_record.check_folder(out), ownership.check(out, show.warn)))  # before it takes time
  prepared = prepare(experiment, show)
  data = processes.in_first(lambda: run_data.describe(prepared.data))
  claim = lambda: run_record.claim(out, prepared, data, show.warn)
  if processes.largest(int(run_record.is_whole(out, prepared.task))):
    processes.in_first(claim)
    return _completed(prepared.task, out, show)
  with contextlib.ExitStack() as stack:
    keep = processes.in_first(lambda: stack.enter_context(ownership.owned(out, show.warn)))
    processes.in_first(claim)
    rows = _learning(prepared)
    show.learning(rows)
    processes.in_first(lambda: run_record.begin(out, run_record.describe(prepared, data, rows), prepared.task))
    if processes.largest(int(run_record.result_of(out, prepared.task) is not None)):  # only its report was missing
      processes.in_first(lambda: page.write_report(out, prepared.task))
      return _completed(prepared.task, out, show)
    outcome, inputs = _train(prepared, out, show, keep or (lambda: None))
    trained = prepared.pretrained._replace(variables=jax.device_get(outcome.state.averaged))
    metrics = _finish(prepared, trained, outcome, inputs, out, started)
  for split, source in prepared.data.splits.items():
    if line := unreadable.summary(source):
      show.warn(f'{split}: {line}')
  show.result(metrics, prepared.task, out)
  return Result(metrics, trained, out)


def _completed(task: Task, out: Path, show: terminal.Console) -> Result:
  """The result of an earlier call."""
  show.line(f'{out} is complete; choose another --out to train again')
  metrics = folder.read_json(out / 'result.json')
  show.result(metrics, task, out)
  return Result(metrics, pretrained.load(str(out / 'model')), out)


def prepare(experiment: Experiment, show: terminal.Console) -> Prepared:
  """Loads the data set and the weights, and chooses the options that were left open.

  Args:
    experiment: the user's options.
    show: prints the data set and the defaults.

  Returns:
    The experiment, ready to train.

  Raises:
    UsageError: for wrong options.
    TlxError: if the weights are not available.
  """
  strategy = _strategy(experiment)
  place = sharding.make(experiment.compile)
  defaults.check(experiment)
  from_pretrained = strategy.pretrained
  found = pretrained.resolve(experiment.model)  # before the data set, so that a misspelt name fails fast
  data = catalog.dataset(experiment.data, seed=experiment.seed)
  show.data(data.info)
  words.refuse(run_data.empty(data))
  task = tasks.of_experiment(experiment, data.info)
  head, lacking = tasks.head_of(experiment, task, found), tasks.lacking(experiment, task, found)
  if from_pretrained:
    found = pretrained.locate(found, experiment.weights)
  # The defaults do not depend on the weights. So the weights are read once, at the chosen size.
  phases = strategy.phases([layer.name for layer in found.variant.config.layers()])
  facts = defaults.Facts(data.info, found.preprocess, phases, from_pretrained, task, head, _square(found))
  experiment, why = defaults.resolve(
    dataclasses.replace(experiment, out=experiment.out or run_record.folder_name(experiment)), facts
  )
  show.defaults(why)
  defaults.check_batch(experiment, jax.device_count())
  task = tasks.with_defaults(task, experiment)
  chosen = augmentation(experiment)
  defaults.check_task(experiment, task, chosen, lacking)
  defaults.check_views(experiment, chosen)
  shape = defaults.shape(experiment.image_size)
  tasks.check_input(found, head, shape)
  loaded = pretrained.load(
    found,
    num_classes=len(data.info.class_names),
    image_size=shape if shape[0] != shape[1] else shape[0],
    head=head,
    pretrained=from_pretrained,
    dropout=experiment.dropout,
    drop_path=experiment.drop_path,
    seed=experiment.seed,
  )
  loaded = tasks.trained_for(task, loaded, data.info)
  phases = strategy.phases(loaded.module.backbone.names)  # the weights decide whether there is an `aux` layer
  tasks.check_size(task, loaded.module, shape)
  steps = schedules.steps(experiment.epochs, facts.examples, experiment.batch_size)
  return Prepared(experiment, why, data, task, loaded, phases, place, loop.stretches(phases, steps), steps)


def _square(found: pretrained.Found) -> bool:
  return found.variant.config.size is not None


def _strategy(experiment: Experiment) -> Strategy:
  return catalog.strategy(experiment.strategy) if isinstance(experiment.strategy, str) else experiment.strategy


def recipe(prepared: Prepared) -> Recipe:
  """Makes the static inputs of the step."""
  e = prepared.experiment
  return Recipe(
    prepared.pretrained.module,
    prepared.task,
    prepared.pretrained.preprocess,
    augmentation(e),
    jnp.dtype(e.dtype),
    defaults.least_micro_batches(e),
    e.ema,
    e.remat,
    e.norm_statistics,
  )


def augmentation(e: Experiment) -> augment.Augment | None:
  """The augmentation preset, with the options that override it. None if nothing is random."""
  names = {'mixup': 'mixup', 'cutmix': 'cutmix', 'erasing': 'erasing', 'randaugment': 'randaugment_layers'}
  changes = {field: getattr(e, option) for option, field in names.items() if getattr(e, option) is not None}
  chosen = dataclasses.replace(augment.PRESETS[e.augment], **changes)
  return None if chosen == augment.PRESETS['none'] else chosen


def rates(prepared: Prepared) -> optimizer.Optimizer:
  """Makes the optimizer from the experiment's options."""
  e = prepared.experiment
  return optimizer.Optimizer(e.optimizer, e.lr, e.weight_decay, e.momentum, e.clip_norm, e.schedule, e.warmup)


def _train(prepared: Prepared, out: Path, show: terminal.Console, keep: Callable[[], None]):
  """Runs the loop with its log, event files, progress bar and checkpoints. `keep` raises if the folder is lost."""
  e = prepared.experiment
  whole = recipe(prepared)
  settings = Settings(e.batch_size, e.seed, e.workers, e.cache, e.cache_views, e.sampling, e.compile)
  inputs = phase_inputs.Inputs(
    settings, prepared.data.splits, whole, prepared.placement, out / 'features', show.line
  )
  checkpoints = Checkpoints(out / 'checkpoints', warn=show.warn)
  log = run_record.Log(out)
  batch = certificate.example_batch(prepared.task, e.batch_size, whole.preprocess.shape)
  abstract = compiled_steps.shapes((prepared.pretrained.variables, batch))
  count = lambda: certificate.forward_flops_uncompiled(whole, prepared.pretrained.variables, batch)
  forward = functools.cache(lambda: compiled_steps.number(count, whole, abstract))

  def program(stretch: loop.Stretch, build: Callable, seen: Recipe, arguments: Any) -> Any:
    facts = stretch.phase, stretch.end - stretch.start, rates(prepared), e.compile, compiled_steps.shapes(arguments)
    kept = lambda recipe: compiled_steps.kept(lambda: build(recipe), recipe, *facts)
    fitting = memory.fit(kept, seen, e.batch_size, choose=e.micro_batches == 'auto')
    return show.program(stretch.phase.name, *fitting, forward)

  with show.progress(prepared.steps, prepared.task.primary) as progress:
    plan = loop.Plan(
      stretches=prepared.stretches,
      recipe=whole,
      optimizer=rates(prepared),
      placement=prepared.placement,
      checkpoints=checkpoints,
      inputs=inputs.of,
      expected=inputs.expected,
      program=program,
      log=lambda line: (keep(), log.append(line), progress.log(line)),
      resumed=lambda step, due: (log.resume(step, due), progress.resume(step)),
      progress=progress.update,
      seed=e.seed,
      log_every=e.log_every,
      eval_every=max(1, round(max(e.eval_every, 1 / e.epochs) * prepared.steps)),
      save_every=e.save_every,
    )
    try:
      outcome = loop.fit(plan, prepared.pretrained.variables)
    finally:
      checkpoints.close()
      log.close()
  return outcome, inputs


def _finish(
  prepared: Prepared, trained: Pretrained, outcome: loop.Outcome, inputs: phase_inputs.Inputs, out: Path, started: float
) -> dict[str, Any]:
  """Evaluates and exports the trained model and writes the report. It does not touch the checkpoints."""
  variables = prepared.placement.put_state(trained.variables)
  evaluation = inputs.evaluator('validation')(variables)
  learning = {name for phase in prepared.phases for name in phase.rates}
  params = trees.flatten(trained.variables['params'])
  metrics = {
    **evaluation.numbers(),
    'split': 'validation',
    'seconds': time.time() - started,
    'images_per_second': outcome.examples / max(outcome.seconds['train'], 1e-9),
    'trainable_parameters': trees.count([x for path, x in params.items() if labels.layer_of(path) in learning]),
    'parameters': trees.count(params),
    'phases': [phase.name for phase in prepared.phases],
    'data_wait': outcome.seconds['data'] / max(outcome.seconds['train'], 1e-9),
    'compile_seconds': outcome.seconds['compile'],
    'prefix_seconds': outcome.seconds['prefix'],
  }
  if 'test' in prepared.data.splits:
    metrics['test'] = inputs.evaluator('test')(variables).numbers()
  if jax.process_index() == 0:
    _write_evaluation(prepared, trained, evaluation, out)
    pretrained.save(out / 'model', trained)
    page.write_report(out, prepared.task, metrics)
    shutil.rmtree(out / 'features', ignore_errors=True)
    folder.write_json(out / 'result.json', metrics)  # the last file: a run that has it is complete
  return metrics


def _write_evaluation(prepared: Prepared, trained: Pretrained, evaluation: exact.Evaluation, out: Path) -> None:
  """Writes evaluation.npz and the pictures of the worst mistakes."""
  exact.write(out / 'evaluation.npz', evaluation)
  try:
    prepared.task.pictures(out, evaluation.records, prepared.data.splits['validation'], trained)
  except Exception as error:  # such as too little memory for Grad-CAM: the run must still finish
    terminal.Console().warn(f'the report has no pictures of the mistakes: {error}')


def _learning(prepared: Prepared) -> list[tuple[str, int, list[optimizer.Row]]]:
  """(phase, steps, table of what learns) of each phase."""
  params, names = prepared.pretrained.variables['params'], prepared.pretrained.module.backbone.names
  return [
    (s.phase.name, s.end - s.start, optimizer.describe(params, s.phase, prepared.experiment.lr, names))
    for s in prepared.stretches
  ]
