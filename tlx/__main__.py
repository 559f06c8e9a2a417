"""`tlx` and `python -m tlx`: the command line, in a process whose memory stays its own between two steps."""

import gc
import os
import sys
from pathlib import Path

# XLA on a CPU asks for the memory of a step and gives it back at its end, and the system would hand it out anew each
# time, page by page. So: a heap that never shrinks, for blocks of any size, and steps in the main thread, whose it is.
KEPT = 'glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776'
HUGE = 'glibc.malloc.hugetlb=1'
KERNEL = Path('/sys/kernel/mm/transparent_hugepage/enabled')
ACCELERATORS = ('nvidia[0-9]*', 'accel*', 'vfio/[0-9]*', 'kfd')  # their files in DEVICES
DEVICES = Path('/dev')


def main() -> None:
  keep_memory()
  gc.set_threshold(100_000)  # tracing makes a million objects that stay: EfficientNet-Lite0's step 2.1 -> 1.3 s
  if KEPT in os.environ.get('GLIBC_TUNABLES', ''):
    step_in_main_thread()
  from tlx.cli.main import main

  main()


def keep_memory() -> None:
  """Starts this process anew, if need be, with settings that glibc reads only when it starts; else does nothing.

  A full step, 16 images, on huge pages alone, and kept: EfficientNet-Lite0 at 96 pixels 97 and 91 ms, ResNet-50 at 224
  pixels 2013 and 1737. In turns with another program that takes and gives back memory, huge pages alone are worse than
  none (220 ms against 174, kept in another way 136); one heap for all threads costs 4 s of compilation.
  Nothing happens on other systems, beside an accelerator, or where GLIBC_TUNABLES says something of malloc already.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  accelerated = any(path for pattern in ACCELERATORS for path in DEVICES.glob(pattern))
  if sys.platform == 'linux' and sys.executable and not accelerated and 'glibc.malloc.' not in tunables:
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, settings()]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def step_in_main_thread() -> None:
  """Before JAX has looked for devices; no variable of the environment says it."""
  import jax

  jax.config.update('jax_cpu_enable_async_dispatch', False)


def settings() -> str:
  """What GLIBC_TUNABLES should say: huge pages too, where the kernel gives them on request."""
  try:
    return f'{HUGE}:{KEPT}' if '[madvise]' in KERNEL.read_text() else KEPT
  except OSError:
    return KEPT


if __name__ == '__main__':
  main()
