"""`tlx` and `python -m tlx`: the command line, on huge pages."""

import gc
import os
import sys
from pathlib import Path

SETTING = 'glibc.malloc.hugetlb'
KERNEL = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def main() -> None:
  huge_pages()
  gc.set_threshold(100_000)  # tracing makes a million objects that stay: EfficientNet-Lite0's step 2.1 -> 1.3 s
  from tlx.cli import main

  main()


def huge_pages() -> None:
  """Starts this process anew, if need be, with glibc asking for huge pages, which it decides only when it starts.

  On a CPU, XLA takes the memory of a step from the system and gives it back at its end. EfficientNet-Lite0, all of it
  learning, 16 images of 96 pixels: 67,000 page faults and 140 ms a step on small pages, 400 and 93 to 109 on huge ones.
  Nothing happens where the kernel gives them unasked or never, or where GLIBC_TUNABLES says something of it already.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  try:
    on_request = '[madvise]' in KERNEL.read_text()
  except OSError:  # another system
    return
  if on_request and SETTING not in tunables and sys.executable:
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, f'{SETTING}=1']))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == '__main__':
  main()
