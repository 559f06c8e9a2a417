"""Files that are there whole or not at all, whatever is killed and however full the disk is; and folders of them."""

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
SEAL = 'sha256.json'  # in the folder that it speaks of: {file: SHA-256}
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # no file of that name, whatever there is instead


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """Opens a new file that takes the place of `path` in one move when the block ends; a failed block leaves the old one.

  Raises: OSError where the system refuses; FULL has words for the want of space.
  """
  path = pathlib.Path(path)
  # Beside the target, so that os.replace stays within one file system; opened anew, so that the umask applies.
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
  """Makes the move itself survive a power cut, where the system can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def seal(folder: pathlib.Path) -> None:
  """Writes down the hash of every file in a folder, so that `broken` can tell. Raises OSError."""
  found = sorted(path for path in folder.rglob('*') if path.is_file())
  hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in found}
  with replacing(folder / SEAL) as file:
    file.write(json.dumps(hashes, indent=0).encode())


def broken(folder: pathlib.Path) -> str | None:
  """What is no longer as it was when the folder was sealed; None where all is. Raises OSError where reading fails."""
  try:
    hashes = dict(json.loads((folder / SEAL).read_bytes()))
  except (ValueError, TypeError):
    return f'{SEAL} cannot be decoded'
  for name, expected in hashes.items():
    try:
      if _sha256(folder / name) != expected:
        return f'{name} is not what was written'
    except (*MISSING, ValueError):  # ValueError: the name itself was damaged
      return f'{name} is missing'
  return None


def fingerprint(root: pathlib.Path, paths: Iterable[pathlib.Path]) -> str | None:
  """Hash of a folder and of its files' names, sizes and times of change, in order; None where one cannot be seen."""
  try:
    seen = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
  except OSError:
    return None
  facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in seen]
  return hashlib.sha256(repr((str(root), facts)).encode()).hexdigest() if facts else None


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
