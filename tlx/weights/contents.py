"""What a file of weights holds, before its tensors are read; and the errors of files that are damaged."""

import contextlib
import io
import lzma
import pathlib
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from tlx import words
from tlx.types import TlxError

ZIP_MAGIC = b'PK\x03\x04'
DIRECTORY_BYTES = 8 << 20  # maximum directory of a zip file; enough for 100,000 entries
BROKEN = (
  ValueError, LookupError, TypeError, OverflowError, EOFError, MemoryError, RuntimeError, AssertionError, SyntaxError,
  AttributeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


class Tensor(Protocol):
  """An array, or a tensor in a file that was not read."""

  @property
  def shape(self) -> tuple[int, ...]: ...


class Contents(NamedTuple):
  """The tensors of a file, before they are read."""

  tensors: Mapping[str, Tensor]
  read: Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]  # of those chosen, which may have new names
  preferred: str = ''  # timm would load the tensors whose names begin with this


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns what goes wrong while a file is read into a TlxError of one line."""
  try:
    with warnings.catch_warnings(action='ignore'):  # pickletools and numpy warn of odd texts
      yield
  except BROKEN as error:
    raise broken(path, kind, error) from None


def broken(path: pathlib.Path, kind: str, error: Exception) -> TlxError:
  """Makes the one-line error for a file that is damaged or of another kind."""
  reason = words.shown(' '.join(str(error).split())[:160]) or type(error).__name__
  return TlxError(f'{path}: not {kind}, or a damaged one ({reason}); download or copy it again')


class _Capped(io.FileIO):
  """A file that refuses to read more than DIRECTORY_BYTES at once.

  `zipfile` reads the central directory in one call, whatever size the file claims for it.
  """

  def read(self, size: int = -1) -> bytes:
    if size is not None and size > DIRECTORY_BYTES:
      raise zipfile.BadZipFile(f'its list of entries is larger than {DIRECTORY_BYTES >> 20} MiB')
    return super().read(size)


@contextlib.contextmanager
def open_zip(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """Opens a zip file. Raises ValueError for duplicate names, paths that point outside of it, and encryption."""
  with _Capped(path) as file, zipfile.ZipFile(file) as archive:
    names = archive.namelist()
    if len(set(names)) != len(names):
      raise ValueError('an entry appears twice')
    for info in archive.infolist():
      if info.filename.startswith('/') or '..' in info.filename.split('/') or info.flag_bits & 1:
        raise ValueError(f'entry {info.filename!r:.60} is encrypted or points outside of the file')
    yield archive
