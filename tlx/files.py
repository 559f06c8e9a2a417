"""Writes files atomically, seals folders with hashes, and tells whether the files of a folder changed.

Cache folders are private: what another user could have written there would run as this user, or spoil results.
"""

import contextlib
import contextvars
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from tlx import words

FULL = {
  errno.ENOSPC: 'the disk is full',
  errno.EDQUOT: 'the disk quota is used up',
  errno.EFBIG: 'the file size limit is reached',
}
SEAL = 'sha256.json'  # in the sealed folder; {file: SHA-256}
TEMPORARY = re.compile(r'\..+\.[0-9a-f]{8}\.tmp')  # names of the files that `replacing` writes
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # there is no file of that name, perhaps a folder
CACHE = 'XDG_CACHE_HOME'
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> pathlib.Path:
  """tlx's cache folder: $XDG_CACHE_HOME/tlx, or ~/.cache/tlx. It begins with ~, and is of no use, without a home."""
  chosen, home = os.environ.get(CACHE, ''), os.path.expanduser('~')
  if os.path.isabs(chosen):  # the standard says to ignore a relative one
    return pathlib.Path(chosen) / 'tlx'
  return pathlib.Path(home if os.path.isabs(home) and os.path.isdir(home) else '~') / '.cache' / 'tlx'


def make_private(folder: pathlib.Path, variable: str = CACHE) -> str:
  """Makes a cache folder that only this user can write, with its parents.

  Args:
    folder: its path.
    variable: the environment variable that names another folder.

  Returns:
    Why tlx does not use the folder, and what the user can do; '' if it is private and writable.
  """
  try:
    if not folder.is_absolute():
      why = 'there is no home folder' if str(folder)[0] == '~' else f'{folder} is not an absolute path'
      return f'{why}; next: set {variable} to a folder of yours'
    if not (problem := exposed(folder, variable)):
      for place in (*reversed(folder.parents), folder):
        if not place.exists():
          place.mkdir(mode=0o700, exist_ok=True)
      problem = exposed(folder, variable)
    if not problem and not os.access(folder, os.W_OK | os.X_OK):
      problem = f'{folder} is not writable; next: set {variable} to a folder that is'
    return problem
  except OSError as error:
    return f'{error.filename or folder}: {error.strerror or error}; next: set {variable} to a folder that you can write'


def exposed(folder: pathlib.Path, variable: str = CACHE) -> str:
  """Says why another user could change what a folder holds, and what to do; '' if only this user and root can.

  The owners and modes of all parents count, as for ssh, and of links on the way. Other users may write a parent that
  has the sticky bit, such as /tmp, because they cannot replace what is in it.

  Args:
    folder: its absolute path; it need not exist.
    variable: the environment variable that names another folder.

  Raises:
    OSError: if the system does not tell.
  """
  if not hasattr(os, 'getuid'):
    return ''
  trusted = {os.getuid(), 0, os.stat('/').st_uid}  # in a user namespace root may have another number
  problem = _exposed(pathlib.Path(os.path.abspath(folder)), trusted)
  return f'{problem} set {variable} to a folder that only you can write' if problem else ''


def _exposed(folder: pathlib.Path, trusted: set[int], links: int = 20) -> str:
  for place in (*reversed(folder.parents), folder):
    if not os.path.lexists(place):
      return ''
    seen = place.lstat()
    if stat.S_ISLNK(seen.st_mode):
      if not links:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(place))
      target = pathlib.Path(os.path.normpath(place.parent.resolve() / os.readlink(place)))
      if problem := _exposed(target, trusted, links - 1):
        return problem
    elif not stat.S_ISDIR(seen.st_mode):
      raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    elif seen.st_mode & OTHERS_WRITE and (place == folder or not seen.st_mode & stat.S_ISVTX):
      return f'other users can write {place}; next: chmod go-w {place}, or'
    if seen.st_uid not in trusted:
      return f'{place} belongs to another user (uid {seen.st_uid}); next:'
  return ''


def read_private(path: pathlib.Path) -> bytes:
  """Reads a file that this user owns and that no other user can write. Raises OSError for any other."""
  with path.open('rb') as file:
    seen = os.fstat(file.fileno())
    if hasattr(os, 'getuid') and (not is_own(seen) or seen.st_mode & OTHERS_WRITE):
      raise PermissionError(errno.EPERM, 'another user can write it', str(path))
    return file.read()


def is_own(seen: os.stat_result) -> bool:
  """Whether this user owns a file; always true on systems without owners."""
  return not hasattr(os, 'getuid') or seen.st_uid == os.getuid()


@functools.cache
def warn_once(text: str) -> None:
  """Prints a warning on standard error, once in a process."""
  print(f'warning: {words.shown(text)}', file=sys.stderr, flush=True)

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
  for seen in map(os.stat, paths):  # two files with equal names, sizes and times that swap places keep their inodes
    yield seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
