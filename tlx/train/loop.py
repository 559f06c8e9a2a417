"""The training loop. It decides when to step, log, evaluate and save; it contains no mathematics."""

import collections
import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from tlx import processes
from tlx.train import compile_ahead
from tlx.train import state as states
from tlx.train.checkpoint import Checkpoints
from tlx.train.optimizer import Optimizer
from tlx.train.sharding import Jit, Pmap
from tlx.train.step import Recipe, train_step
from tlx.types import Phase, TlxError, UsageError, Variables


class Stopped(Exception):
  """The run ended early after SIGTERM or Ctrl-C. Its state is saved; before the first step there is nothing to save."""

  def __init__(self, step: int, signum: int):
    super().__init__(f'stopped at step {step}')
    self.step, self.signum = step, signum


class Stretch(NamedTuple):
  """A phase and its steps: start + 1, ..., end."""

  phase: Phase
  start: int
  end: int


class PhaseInputs(NamedTuple):
  """A phase's input: images, or cached features of its frozen layers."""

  start: str | None  # the layer whose features the batches hold; None: images
  batches: Callable[[int], Any]  # first step -> iterator of placed batches, with `waited` seconds and close()
  evaluate: Callable[[Variables], Mapping[str, float]]  # of placed variables


class Plan(NamedTuple):
  """The inputs of the loop."""

  stretches: Sequence[Stretch]
  recipe: Recipe
  optimizer: Optimizer
  placement: Jit | Pmap
  checkpoints: Checkpoints
  # (phase, placed variables, function that raises Stopped after a signal) -> the phase's input.
  inputs: Callable[[Stretch, Variables, Callable[[], None]], PhaseInputs]
  # (phase, function that compiles the step of a recipe, recipe, arguments of the step) -> compiled step. It may raise
  # TlxError, for example if the step does not fit in memory.
  program: Callable[[Stretch, Callable[[Recipe], Any], Recipe, Any], Callable]
  expected: Callable[[Stretch], Any]  # shapes of a phase's global batch; None if they may be features
  log: Callable[[Mapping[str, Any]], None]
  resumed: Callable[[int, bool], None]  # step of the checkpoint (0: none), whether to evaluate there
  progress: Callable[[int, str, Mapping[str, float]], None]  # step, phase, newest numbers
  seed: int
  log_every: int  # steps
  eval_every: int  # steps
  save_every: int  # steps

  @property
  def steps(self) -> int:
    """Number of steps of the run."""
    return self.stretches[-1].end


class Outcome(NamedTuple):
  """The result of the loop."""

  state: states.TrainState  # one copy, not one per device
  seconds: Mapping[str, float]  # of compile, prefix, train and evaluate; data = the part of train that waited for it
  examples: int  # that this process trained on since it started


def stretches(phases: Sequence[Phase], steps: int) -> list[Stretch]:
  """Divides the steps of a run among its phases, in proportion to their shares. Each phase gets at least one step.

  Args:
    phases: in order.
    steps: of the whole run.

  Returns:
    One stretch per phase.

  Raises:
    UsageError: for fewer steps than phases.

  Examples:
    >>> [(x.start, x.end) for x in stretches([Phase('probe', 0.25, {}), Phase('full', 0.75, {})], steps=100)]
    [(0, 25), (25, 100)]
  """
  if steps < len(phases):
    few = '1 step is' if steps == 1 else f'{steps} steps are'
    raise UsageError(f'{few} too few for {len(phases)} phases; give more epochs, or a smaller batch size')
  ends = np.cumsum([phase.share for phase in phases]) / sum(phase.share for phase in phases)
  borders = [0]
  for i, end in enumerate(ends, 1):
    borders.append(min(max(round(end * steps), borders[-1] + 1), steps - len(phases) + i))
  return [Stretch(phase, a, b) for phase, a, b in zip(phases, borders, borders[1:])]


def abstract_state(plan: Plan, variables: Variables, index: int) -> states.TrainState:
  """The state in phase `index` as jax.ShapeDtypeStruct leaves with a sharding. It computes no values."""
  stretch = plan.stretches[index]

  def make(variables):
    tx = _transformation(plan, stretch, variables)
    return states.create(variables, stretch.phase, tx, seed=0, ema=plan.recipe.ema > 0)

  sharding = Jit(tuple(jax.devices())).whole
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(make, variables)
  )


def fit(plan: Plan, variables: Variables) -> Outcome:
  """Trains to the end of the plan, from the newest undamaged checkpoint if there is one.

  Args:
    plan: of the run.
    variables: where training starts without a checkpoint.

  Returns:
    The last state, and the time spent.

  Raises:
    Stopped: after SIGTERM or Ctrl-C, when the state is saved.
    TlxError: if the loss or the gradient is not finite, or a checkpoint cannot be read or written.
  """
  restored = plan.checkpoints.restore(lambda meta: abstract_state(plan, variables, meta['phase']))
  state, step, first = (_to_host(restored.state), restored.step, restored.meta['phase']) if restored else (None, 0, 0)
  plan.resumed(step, bool(restored and restored.meta['evaluation_due']))
  watch = Stopwatch()
  with _Signals() as signals:
    for index in range(first, len(plan.stretches)):
      stretch = plan.stretches[index]
      tx = _transformation(plan, stretch, variables)
      if state is None:
        state = states.create(variables, stretch.phase, tx, seed=plan.seed, ema=plan.recipe.ema > 0)
      elif index > first:
        state = states.enter(state, stretch.phase, tx)
      placed = plan.placement.put_state(state)
      due = bool(restored and index == first and restored.meta['evaluation_due'])
      if due or step < stretch.end:
        with watch.of('prefix'):
          inputs = plan.inputs(stretch, placed.variables, lambda step=step: _leave(signals, step))
      if due:
        _evaluate(plan, inputs, placed, step, stretch, watch)
      if step < stretch.end:
        pending = _gathered(restored.meta) if restored and index == first else []
        placed = _train(plan, inputs, index, tx, placed, step, watch, signals, pending)
      state, step = plan.placement.one(placed), stretch.end
    plan.checkpoints.wait()
    _leave(signals, step)  # a signal may come after the last step
  return Outcome(state, dict(watch.seconds), watch.examples)


def _train(
  plan: Plan,
  inputs: PhaseInputs,
  index: int,
  tx: optax.GradientTransformation,
  state: states.TrainState,
  start: int,
  watch: 'Stopwatch',
  signals: '_Signals',
  pending: list,
) -> states.TrainState:
  """Trains one phase from step `start` + 1 to its end. `pending` holds metrics of earlier steps that are not logged."""
  stretch = plan.stretches[index]
  batches, recipe = inputs.batches(start), dataclasses.replace(plan.recipe, start=inputs.start)
  try:
    with watch.of('train'):
      batch = next(batches)
    build = lambda recipe: plan.placement.train(train_step(recipe, stretch.phase, tx), state, batch)
    with watch.of('compile'):
      compiled = plan.program(stretch, build, recipe, (state, batch))
    _compile_next(plan, state, index + 1)
    for step in range(start + 1, stretch.end + 1):
      last = step == stretch.end
      due = step % plan.eval_every == 0 or step == plan.steps
      save = last or step % plan.save_every == 0
      told = save or due or step % plan.log_every == 0  # only after these steps the host waits for the device
      stop = processes.largest(signals.received) if told or jax.process_count() == 1 else 0
      with watch.of('train'):
        state, metrics = compiled(state, batch)
        pending.append(metrics)
        if told:
          _log(plan, pending, step, stretch, watch)
        elif stop:  # it logs nothing, as an uninterrupted run would not
          _check(plan, _rows(pending), step, stretch)
        batch = None if last else batches.after(metrics)
      if due and not stop:
        _evaluate(plan, inputs, state, step, stretch, watch)
      if save or stop:
        rows = {name: values.tolist() for name, values in _rows(pending).items()}
        meta = {'phase': index, 'data': {'next_index': step}, 'evaluation_due': due and bool(stop), 'unlogged': rows}
        plan.checkpoints.save(step, plan.placement.one(state), meta)
      if stop:
        plan.checkpoints.wait()
        raise Stopped(step, stop)
    return state
  finally:
    watch.seconds['data'] += batches.waited
    batches.close()


def _compile_next(plan: Plan, state: states.TrainState, index: int) -> None:
  """Compiles the step of phase `index` in the background, if the shapes of its batches are known already."""
  if index == len(plan.stretches) or not compile_ahead.gains():
    return
  if (batch := plan.expected(plan.stretches[index])) is None:
    return
  stretch, variables = plan.stretches[index], jax.eval_shape(plan.placement.one, state.variables)

  def build() -> Any:
    step = train_step(plan.recipe, stretch.phase, _transformation(plan, stretch, variables))
    return plan.placement.train(step, abstract_state(plan, variables, index), batch)

  compile_ahead.compile_aside(build)


def _leave(signals: '_Signals', step: int) -> None:
  """Raises Stopped if a signal came. The state after `step` is saved already, unless no step ran."""
  if stop := processes.largest(signals.received):
    raise Stopped(step, stop)


def _evaluate(plan: Plan, inputs: PhaseInputs, state, step: int, stretch: Stretch, watch: 'Stopwatch') -> None:
  with watch.of('evaluate'):
    numbers = inputs.evaluate(state.averaged)
  plan.log({'step': step, 'split': 'validation', 'phase': stretch.phase.name, **numbers})


def _log(plan: Plan, pending: list, step: int, stretch: Stretch, watch: 'Stopwatch') -> None:
  """Fetches and logs the metrics since the last call. Here the loop waits for the device."""
  rows = _rows(pending)
  pending.clear()
  _check(plan, rows, step, stretch)
  rate = float(plan.optimizer.rate(stretch.end - stretch.start)(step - stretch.start - 1))
  count = int(rows.pop('count').sum())
  means = {name: float(values.mean()) for name, values in rows.items()} | {'learning_rate': rate}
  speed = watch.lap(count)
  plan.log({'step': step, 'split': 'train', 'phase': stretch.phase.name, **means, 'images_per_second': speed})
  plan.progress(step, stretch.phase.name, {**means, 'images_per_second': speed})


def _rows(pending: list) -> dict[str, np.ndarray]:
  """Fetches pending metrics from the devices: {metric: [steps]}."""
  fetched = jax.device_get(pending)
  return {name: np.stack([np.ravel(x[name])[0] for x in fetched]) for name in (pending[0] if pending else ())}


def _gathered(meta: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
  """Inverts `_rows` for the metrics in a checkpoint."""
  columns = {
    name: np.asarray(values, np.int32 if name == 'count' else np.float32) for name, values in meta['unlogged'].items()
  }
  return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _check(plan: Plan, rows: Mapping[str, np.ndarray], step: int, stretch: Stretch) -> None:
  """Raises TlxError if the loss or gradient norm of a step up to `step` is not finite."""
  finite = np.isfinite(rows['loss']) & np.isfinite(rows['grad_norm'])
  if not finite.all():
    bad = step - len(finite) + 1 + int(np.argmin(finite))
    saved = plan.checkpoints.latest()
    raise TlxError(
      f'the loss is not a finite number since step {bad} (phase {stretch.phase.name!r}, peak learning rate '
      f'{plan.optimizer.peak_lr:g}); {f"checkpoint {saved} is whole" if saved else "nothing was saved before"}: '
      'choose a lower --lr and another --out'
    )


def _transformation(plan: Plan, stretch: Stretch, variables: Variables):
  trainable, _ = states.split(variables['params'], stretch.phase)
  return plan.optimizer.build(stretch.phase, stretch.end - stretch.start, trainable)


def _to_host(state: states.TrainState) -> states.TrainState:
  return jax.tree.map(np.asarray, state)


class Stopwatch:
  """Seconds spent in each part of the loop, such as 'train' or 'compile'."""

  def __init__(self):
    self.seconds = collections.Counter(dict.fromkeys(('compile', 'prefix', 'train', 'evaluate', 'data'), 0.0))
    self.examples, self._lap = 0, time.perf_counter()

  @contextlib.contextmanager
  def of(self, what: str):
    """Adds the time of the block to the seconds of `what`."""
    start = time.perf_counter()
    try:
      yield
    finally:
      spent = time.perf_counter() - start
      self.seconds[what] += spent
      if what != 'train':
        self._lap += spent

  def lap(self, examples: int) -> float:
    """Training speed since the last lap, in examples per second. `examples` is how many were trained on."""
    now = time.perf_counter()
    speed = examples / max(now - self._lap, 1e-9)
    self.examples, self._lap = self.examples + examples, now
    return speed


class _Signals:
  """Records SIGTERM and SIGINT, so that the loop can stop between two steps. A second signal acts at once."""

  def __enter__(self):
    self.received = 0
    self._old = {}
    if threading.current_thread() is threading.main_thread():
      self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for signum, handler in self._old.items():
      signal.signal(signum, handler)

  def _note(self, signum, frame):
    if self.received:
      signal.signal(signum, self._old[signum])
      signal.raise_signal(signum)
    self.received = signum
