"""Writes files atomically, seals folders with hashes, and tells whether the files of a folder changed."""

import contextlib
import contextvars
import errno
import hashlib
import json
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

FULL = {
  errno.ENOSPC: 'the disk is full',
  errno.EDQUOT: 'the disk quota is used up',
  errno.EFBIG: 'the file size limit is reached',
}
SEAL = 'sha256.json'  # in the sealed folder; {file: SHA-256}
TEMPORARY = re.compile(r'\..+\.[0-9a-f]{8}\.tmp')  # names of the files that `replacing` writes
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # there is no file of that name, perhaps a folder

Fact = Callable[[Sequence[pathlib.Path]], Iterable[Any]]
_portable: contextvars.ContextVar[Fact | None] = contextvars.ContextVar('portable', default=None)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a new file, and moves it to `path` when the block ends. If the block fails, the old file stays.

  Args:
    path: of the file.

  Yields:
    The open binary file.

  Raises:
    OSError: if the system refuses; FULL has words for a lack of space.
  """
  path = pathlib.Path(path)
  # It lies next to the target, because os.replace needs one file system; open(), unlike tempfile, respects the umask.
  temporary = temporary_of(path)
  try:
    with temporary.open('xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
  sync_folder(path.parent)


def temporary_of(path: pathlib.Path) -> pathlib.Path:
  """A new name next to a file, for its content while it is written."""
  return path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')


def sweep(folder: pathlib.Path) -> None:
  """Deletes the files that killed calls of `replacing` left in a folder. Nobody else may write to it meanwhile."""
  with contextlib.suppress(OSError):
    for path in folder.iterdir():
      if TEMPORARY.fullmatch(path.name):
        with contextlib.suppress(OSError):
          path.unlink()


def sync_folder(folder: pathlib.Path) -> None:
  """Makes moves in a folder survive a power failure, on systems that can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def seal(folder: pathlib.Path) -> None:
  """Writes the SHA-256 of every file in a folder, for `broken` to check. Raises OSError."""
  found = sorted(path for path in folder.rglob('*') if path.is_file())
  hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in found}
  with replacing(folder / SEAL) as file:
    file.write(json.dumps(hashes, indent=0).encode())


def broken(folder: pathlib.Path) -> str | None:
  """Compares a sealed folder with its hashes.

  Returns:
    What is wrong with the first file that differs; None if every file is as it was when the folder was sealed.

  Raises:
    OSError: if reading fails.
  """
  try:
    hashes = dict(json.loads((folder / SEAL).read_bytes()))
  except (ValueError, TypeError):
    return f'{SEAL} cannot be decoded'
  for name, expected in hashes.items():
    try:
      if _sha256(folder / name) != expected:
        return f'{name} differs from what was written'
    except (*MISSING, ValueError):  # ValueError: the name itself is damaged
      return f'{name} is missing'
  return None


def fingerprint(root: pathlib.Path, paths: Iterable[pathlib.Path]) -> str | None:
  """A hash that changes if a file of a folder was changed, replaced, renamed or swapped for another.

  It covers the folder's path and each file's name, size, modification time, change time and inode. Within `portable`
  it covers the names below the folder and another fact of the files instead.

  Args:
    root: the folder.
    paths: files in it, in an order that counts.

  Returns:
    A hexadecimal hash; None if a file cannot be accessed, or if there are none.
  """
  paths, fact = list(paths), _portable.get()
  try:
    names = [path.relative_to(root).as_posix() for path in paths]
    seen = (str(root), list(zip(names, _identities(paths)))) if fact is None else list(zip(names, fact(paths)))
  except OSError:
    return None
  return hashlib.sha256(repr(seen).encode('utf-8', 'backslashreplace')).hexdigest() if paths else None


@contextlib.contextmanager
def portable(fact: Fact) -> Iterator[None]:
  """Within the block, `fingerprint` gives the same hash for a copy of the folder elsewhere or on another machine.

  Args:
    fact: maps the files to what counts beside their names, such as their sizes.
  """
  token = _portable.set(fact)
  try:
    yield
  finally:
    _portable.reset(token)


def _identities(paths: Iterable[pathlib.Path]) -> Iterator[tuple[int, ...]]:
  for stat in map(os.stat, paths):  # two files with equal names, sizes and times that swap places keep their inodes
    yield stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
