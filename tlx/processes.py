"""One run in several processes, on several hosts: how they start, wait for one another and agree.

With one process everything here costs nothing.
"""

import os

import jax
import numpy as np

from tlx.types import UsageError

ENVIRONMENT = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def start() -> None:
  """Joins the processes of this job; to be called before JAX is used.

  SLURM, Open MPI, Kubernetes and Cloud TPU are recognised by JAX; elsewhere each process is told by the variables of
  ENVIRONMENT: host:port of the first process, how many there are, and which one this is.
  Raises: UsageError where neither says enough, or the others do not come.
  """
  address, *numbers = (os.environ.get(name) for name in ENVIRONMENT)
  try:
    count, index = (None if number is None else int(number) for number in numbers)
    jax.distributed.initialize(address, count, index)
  except (ValueError, RuntimeError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UsageError(f'--distributed: {reason}; under no known scheduler set {", ".join(ENVIRONMENT)}') from None


def pretend(devices: int) -> None:
  """Makes JAX see so many CPU devices and no other; to be called before JAX is used.

  Raises: UsageError for less than one, or where JAX is in use already.
  """
  if devices < 1:
    raise UsageError(f'--devices {devices}: must be above 0')
  try:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', devices)
  except RuntimeError:
    raise UsageError(f'--devices {devices}: JAX has started already with {jax.device_count()}') from None


def wait(what: str) -> None:
  """Returns when every process is here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


def largest(value: int) -> int:
  """The largest of the processes' values; each of them has to ask."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return int(multihost_utils.process_allgather(np.int32(value)).max())
