"""The command line asks for huge pages where the kernel gives them on request: once, and beside what is set already."""

import os
import sys

import pytest

from tlx import __main__


@pytest.mark.parametrize(
  'kernel, before, after',
  [
    ('always [madvise] never', None, 'glibc.malloc.hugetlb=1'),
    ('always [madvise] never', 'glibc.malloc.check=0', 'glibc.malloc.check=0:glibc.malloc.hugetlb=1'),
    ('always [madvise] never', 'glibc.malloc.hugetlb=0', None),
    ('[always] madvise never', None, None),
    (None, None, None),
  ],
)
def test_the_process_starts_anew_only_where_that_gives_huge_pages(monkeypatch, tmp_path, kernel, before, after):
  started = []
  monkeypatch.setattr(os, 'execv', lambda *command: started.append((os.environ['GLIBC_TUNABLES'], *command)))
  monkeypatch.setattr(__main__, 'KERNEL', tmp_path / 'enabled')
  monkeypatch.setenv('GLIBC_TUNABLES', before or '')
  if kernel:
    (tmp_path / 'enabled').write_text(kernel)
  __main__.huge_pages()
  assert started == ([(after, sys.executable, [sys.executable, *sys.orig_argv[1:]])] if after else [])
