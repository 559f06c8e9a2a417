"""Several processes in one run, on one or more hosts: how they start, wait for each other and agree.

With one process, every function here returns at once.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tlx import words
from tlx.types import TlxError, UsageError

EXTRAS = {'cuda': 'cuda', 'gpu': 'cuda', 'tpu': 'tpu'}  # {platform: the extra with JAX's build for it}
ENVIRONMENT = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def start() -> None:
  """Joins the processes of this job. Call it before JAX is used.

  JAX recognises SLURM, Open MPI, Kubernetes and Cloud TPU. Elsewhere the variables in ENVIRONMENT tell each process the
  address host:port of the first process, the number of processes, and its own index.

  Raises:
    UsageError: if the information is missing, or the other processes do not come.
  """
  address, *numbers = (os.environ.get(name) for name in ENVIRONMENT)
  try:
    count, index = (None if number is None else int(number) for number in numbers)
    jax.distributed.initialize(address, count, index)
  except (ValueError, RuntimeError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UsageError(f'--distributed: {reason}; without a known scheduler, set {", ".join(ENVIRONMENT)}') from None


def pretend(devices: int) -> None:
  """Makes JAX simulate CPU devices and use no others. Call it before JAX is used.

  Args:
    devices: number of simulated devices.

  Raises:
    UsageError: for a number below 1, or if JAX is in use already.
  """
  if devices < 1:
    raise UsageError(f'--devices {devices}: must be above 0')
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices)
  except RuntimeError:
    raise UsageError(f'--devices {devices}: JAX has started already with {jax.device_count()}') from None


def no_device() -> str:
  """Why JAX has no device of the platform that the user chose, and what to set; '' if it has one.

  Call it after JAX has raised an error: JAX raises an AssertionError without words for some platforms.
  """
  chosen = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    reason = ' '.join(str(error).split()).partition(' (set JAX_PLATFORMS')[0].rstrip('.')[:200]
  else:
    return ''
  try:
    jax.config.update('jax_platforms', None)
    there = ', '.join(sorted({device.platform for device in jax.devices()} | {'cpu'}))
  except (RuntimeError, AssertionError):
    there = 'cpu'
  finally:
    jax.config.update('jax_platforms', chosen)
  extra = next((extra for name, extra in EXTRAS.items() if name in (chosen or '')), '')
  hint = f'; for a build of JAX with {extra}: {words.install(extra)}' if extra else ''
  said = f' ({words.shown(reason)})' if reason else ''
  return f'JAX_PLATFORMS={words.shown(chosen or "")}: JAX finds no such device{said}; there are: {there}; ' + (
    f'next: unset JAX_PLATFORMS, or set it to cpu{hint}'
  )


def in_first(function: Callable[[], Any]) -> Any:
  """Calls a function in process 0 only; the others wait for it.

  Args:
    function: may raise TlxError, which then ends all processes.

  Returns:
    Its result in process 0, None in the others.
  """
  result, problem = None, None
  if jax.process_index() == 0:
    try:
      result = function()
    except TlxError as error:
      problem = error
  if largest(int(problem is not None)):
    raise problem or TlxError('the first process could not go on: its message says why')
  return result


def largest(value: int) -> int:
  """The largest of the processes' values. Every process must call it."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return int(multihost_utils.process_allgather(np.int32(value)).max())
