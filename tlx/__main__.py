"""`tlx` and `python -m tlx`: the command line, in a process whose memory stays its own between two steps."""

import gc
import os
import sys
from pathlib import Path

# One heap that never shrinks, for blocks of any size: XLA on a CPU asks for the memory of a step and gives it back at
# its end, and the system would hand it out anew each time, page by page.
KEPT = 'glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776'
HUGE = 'glibc.malloc.hugetlb=1'
KERNEL = Path('/sys/kernel/mm/transparent_hugepage/enabled')
ACCELERATORS = ('nvidia[0-9]*', 'accel*', 'vfio/[0-9]*', 'kfd')  # their files in DEVICES
DEVICES = Path('/dev')


def main() -> None:
  keep_memory()
  gc.set_threshold(100_000)  # tracing makes a million objects that stay: EfficientNet-Lite0's step 2.1 -> 1.3 s
  from tlx.cli import main

  main()


def keep_memory() -> None:
  """Starts this process anew, if need be, with settings that glibc reads only when it starts; else does nothing.

  Milliseconds of a full step, 16 images, as the system gives it memory; with huge pages; with those, kept; PyTorch's:
  EfficientNet-Lite0 at 96 pixels 174, 220, 136, 110; ResNet-50 at 224 pixels -, 2507, 1943, 1761; VGG16 -, 8750, 6222,
  5649 (2 shared cores, taking turns; on other days huge pages alone were as good).
  Nothing happens on other systems, beside an accelerator, or where GLIBC_TUNABLES says something of malloc already.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  accelerated = any(path for pattern in ACCELERATORS for path in DEVICES.glob(pattern))
  if sys.platform == 'linux' and sys.executable and not accelerated and 'glibc.malloc.' not in tunables:
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, settings()]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settings() -> str:
  """What GLIBC_TUNABLES should say: huge pages too, where the kernel gives them on request."""
  try:
    return f'{HUGE}:{KEPT}' if '[madvise]' in KERNEL.read_text() else KEPT
  except OSError:
    return KEPT


if __name__ == '__main__':
  main()
