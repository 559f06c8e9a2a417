"""Writes files atomically: a killed process or a full disk leaves no partial file. Seals folders with hashes."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator
from typing import BinaryIO

FULL = {
  errno.ENOSPC: 'the disk is full',
  errno.EDQUOT: 'the disk quota is used up',
  errno.EFBIG: 'the file size limit is reached',
}
SEAL = 'sha256.json'  # in the sealed folder; {file: SHA-256}
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # there is no file of that name, perhaps a folder


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
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
  try:
    with temporary.open('xb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()
  _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
  """Makes the move itself survive a power failure, on systems that can."""
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
  """A hash of a folder's path and of its files' names, sizes and modification times.

  Args:
    root: the folder.
    paths: files in it, in an order that counts.

  Returns:
    A hexadecimal hash; None if a file cannot be accessed, or if there are none.
  """
  try:
    seen = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
  except OSError:
    return None
  facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in seen]
  return hashlib.sha256(repr((str(root), facts)).encode()).hexdigest() if facts else None


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
