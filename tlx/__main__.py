"""The command line `tlx` and `python -m tlx`, in a process that keeps its memory between steps."""

import gc
import os
import sys
from pathlib import Path

# On a CPU, XLA allocates the memory of a step and frees it at the end. The system would map it anew for each step, page
# by page. So malloc keeps one heap that never shrinks, and steps run in the main thread, which owns that heap.
KEPT = 'glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776'
HUGE = 'glibc.malloc.hugetlb=1'
KERNEL = Path('/sys/kernel/mm/transparent_hugepage/enabled')
ACCELERATORS = ('nvidia[0-9]*', 'accel*', 'vfio/[0-9]*', 'kfd')  # device files in DEVICES
DEVICES = Path('/dev')


def main() -> None:
  keep_memory()
  gc.set_threshold(100_000)  # tracing makes a million lasting objects; EfficientNet-Lite0's step 2.1 -> 1.3 s
  if KEPT in os.environ.get('GLIBC_TUNABLES', ''):
    step_in_main_thread()
  from tlx.cli.main import main

  main()


def keep_memory() -> None:
  """Restarts this process with malloc settings that glibc reads only at the start.

  Time of a full step with 16 images, on huge pages alone and with kept memory: EfficientNet-Lite0 at 96 pixels 97 and
  91 ms, ResNet-50 at 224 pixels 2013 and 1737 ms. In turns with another program that allocates and frees memory, huge
  pages alone are worse than none (220 ms against 174 ms; 136 ms with memory kept in another way). One heap for all
  threads adds 4 s of compilation.

  It does nothing on systems other than Linux, if there is an accelerator, or if GLIBC_TUNABLES has settings of malloc.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  accelerated = any(path for pattern in ACCELERATORS for path in DEVICES.glob(pattern))
  if sys.platform == 'linux' and sys.executable and not accelerated and 'glibc.malloc.' not in tunables:
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, settings()]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def step_in_main_thread() -> None:
  """Makes JAX run steps in the main thread. Call it before JAX looks for devices; no environment variable does it."""
  import jax

  jax.config.update('jax_cpu_enable_async_dispatch', False)


def settings() -> str:
  """The value for GLIBC_TUNABLES. It adds huge pages if the kernel gives them on request."""
  try:
    return f'{HUGE}:{KEPT}' if '[madvise]' in KERNEL.read_text() else KEPT
  except OSError:
    return KEPT


if __name__ == '__main__':
  main()
