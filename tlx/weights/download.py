"""Downloads one file over http(s): it streams, resumes after a broken connection, and verifies before it renames."""

import contextlib
import errno
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Mapping

from tlx import files, words
from tlx.types import TlxError
from tlx.weights import kinds, web

CHUNK = 1 << 20
UNDECLARED = 8 << 30  # maximum bytes of a file whose length the server does not declare
NAME_DIGEST = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # torchvision's file names end in part of their sha256
DIGEST = re.compile(r'"?([0-9a-f]{64})"?')


def download(url: str, sha256: str | None = None) -> pathlib.Path:
  """Downloads a file of weights, unless the cache has it.

  It verifies the checksum each time, also of a cached file, if one is given or the file's name ends in one. It keeps no
  file that is not a file of weights, such as the login page of a network.

  Args:
    url: http(s) address.
    sha256: checksum of the file, 64 hexadecimal digits.

  Returns:
    The path of the file in the cache folder.

  Raises:
    TlxError: if the file cannot be downloaded or saved, is not a file of weights, or if its checksum differs (then the
      file is deleted).
  """
  address = url.partition('?')[0].partition('#')[0]  # a query may hold a secret, so errors leave it out
  name = re.sub(r'[^\w.+-]', '_', urllib.parse.unquote(address).rpartition('/')[2])[-100:].lstrip('.') or 'file'
  in_name = NAME_DIGEST.search(name)
  wanted = (sha256 or (in_name[1] if in_name else '')).lower()
  cache = files.cache_folder()
  if problem := files.make_private(cache / 'downloads'):
    raise TlxError(f'{words.shown(address)}: cannot be kept: {words.shown(problem)}')
  # the path contains a digest of the address, because many files are called model.safetensors
  target = cache / 'downloads' / hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:12] / name
  with saving(address, target.parent, 'XDG_CACHE_HOME'), alone(target.with_name('lock')):
    if target.exists() and kinds.not_weights(target):
      target.unlink()
    if not target.exists():
      save(url, target, target.with_name(target.name + '.part'), check=kinds.not_weights, sha256=wanted)
    else:
      _verify(words.shown(address), target, wanted)
  return target


@contextlib.contextmanager
def saving(address: str, folder: pathlib.Path, variable: str):
  """Inside the block, an OSError becomes a TlxError that says what to free or to set."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    way_out = 'free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'make that folder writable'
    reason = f'{error.strerror or error}; {way_out}, or set {variable} to another folder'
    raise TlxError(f'{words.shown(address)}: cannot be saved in {words.shown(str(folder))}: {reason}') from None


@contextlib.contextmanager
def alone(lock: pathlib.Path):
  """Lets one process at a time into the block, on systems that have file locks."""
  with lock.open('w') as file:
    try:
      import fcntl
    except ImportError:
      pass
    else:
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def save(
  url: str,
  target: pathlib.Path,
  part: pathlib.Path,
  *,
  check: Callable[[pathlib.Path], str],
  headers: Mapping[str, str] = {},
  sha256: str = '',
  largest: int | None = None,
  way_out: str = 'run it again to go on from there, or pass a local file',
) -> None:
  """Downloads a file; it has its final name only when it is complete and checked.

  Args:
    url: http(s) address.
    target: path of the file.
    part: path of the partial file, from which a later call goes on if the server still has the same file.
    check: says of a complete file what is wrong with it; '' if nothing is.
    headers: of the request.
    sha256: checksum, or its first digits; '' verifies only what the hub's headers name.
    largest: maximum bytes; None is UNDECLARED, and only if the server does not declare a length.
    way_out: what the user can do after a failure.

  Raises:
    TlxError: if the download fails, or the file is not what it should be. The partial file is kept only in the first
      case.
    OSError: if the file cannot be written.
  """
  address = words.shown(url.partition('?')[0].partition('#')[0])
  try:
    declared = web.persist(address, lambda: _attempt(url, part, headers, largest, check), way_out)
    _verify(address, part, sha256)
    _verify(address, part, declared)
    if problem := check(part):
      raise TlxError(f'{address}: {problem}; nothing was kept. Open the address in a browser, or pass a local file')
  except (web.Refused, web.Unreachable):
    raise
  except TlxError:
    part.unlink(missing_ok=True)
    raise
  os.replace(part, target)
  _validator(part).unlink(missing_ok=True)


def _verify(address: str, path: pathlib.Path, wanted: str) -> None:
  if not wanted:
    return
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if not found.startswith(wanted):
    path.unlink()
    raise TlxError(f'{address}: the sha256 is {found}, not {wanted}; deleted: try again, or correct the checksum')


def _validator(part: pathlib.Path) -> pathlib.Path:
  """The path of a file that holds the ETag or the date of the partial download.

  The server continues the download only if they still match.
  """
  return part.with_name(part.name + '.of')


def _attempt(
  url: str, part: pathlib.Path, headers: Mapping[str, str], largest: int | None, check: Callable[[pathlib.Path], str]
) -> str:
  """Downloads the bytes that the part lacks; returns the SHA-256 that the hub declares, or ''.

  Raises ConnectionError if the connection ends too early.
  """
  validator = _validator(part)
  have = part.stat().st_size if part.exists() and validator.exists() else 0
  resume = {'Range': f'bytes={have}-', 'If-Range': validator.read_text('latin-1')} if have else {}
  try:
    response, hops = web.ask(url, {**headers, **resume})
  except web.HTTPError as error:
    if error.code != 416:
      raise
    error.close()  # range not satisfiable: the part does not belong to this file
    part.unlink(missing_ok=True)
    raise ConnectionError('the server has no such range') from None
  with response:
    tag = _tag(response)
    if response.status != 206 or not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
      if response.status == 206:
        part.unlink(missing_ok=True)
        raise ConnectionError('the server sent another range than tlx asked for')
      have = 0
    elif tag and resume and tag != resume['If-Range']:  # it did not look at If-Range
      part.unlink(missing_ok=True)
      raise ConnectionError('the file on the server has changed')
    if not have:
      validator.unlink(missing_ok=True)
      if tag:
        validator.write_text(tag, 'latin-1')
    total = None if response.length is None else have + response.length
    most = largest or (UNDECLARED if total is None else total)
    _fits(part.parent, have, total, most)
    response.source.left = web.HEAD_BYTES + most - have
    with part.open('r+b' if have else 'wb') as file:
      file.seek(have)
      size = _copy(response, file, have, total, check)
      file.flush()
      os.fsync(file.fileno())
  if total is not None and size < total:
    raise ConnectionError(f'only {size:,} of {total:,} bytes arrived')
  linked = [hop.get('X-Linked-ETag', '') for hop in hops] or [response.headers.get('ETag', '')]
  return next((found[1] for found in map(DIGEST.fullmatch, linked) if found), '')


def _tag(response: http.client.HTTPResponse) -> str:
  """What identifies the version of the file on the server: a strong ETag, or its date."""
  etag = response.headers.get('ETag', '')
  tag = etag if etag and not etag.startswith('W/') else response.headers.get('Last-Modified', '')
  return tag if tag.isprintable() and tag.isascii() else ''


def _fits(folder: pathlib.Path, have: int, total: int | None, most: int) -> None:
  free = shutil.disk_usage(folder).free
  if (total or 0) > most:
    raise TlxError(f'the server declares {total:,} bytes, where at most {most:,} are due')
  if total is not None and total - have > free:
    raise OSError(errno.ENOSPC, f'the server declares {total:,} bytes, and {free:,} are free')


def _copy(response, file, have: int, total: int | None, check: Callable) -> int:
  """Streams the response to the file, with a progress bar on a terminal; returns the file's new size in bytes."""
  from rich.console import Console
  from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

  name = words.shown(pathlib.PurePath(file.name).name.removesuffix('.part'))
  columns = (
    TextColumn(name, markup=False),
    BarColumn(),
    DownloadColumn(),
    TransferSpeedColumn(),
    TimeRemainingColumn(),
  )
  first = {kinds.not_weights: kinds.other_kind, kinds.not_whole: kinds.page}.get(check)
  head = b'' if first and not have else None
  with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
    task = progress.add_task(name, total=total, completed=have)
    while block := _read(response):
      file.write(block)
      have += len(block)
      progress.update(task, completed=have)
      if head is not None and len(head := head + block[: kinds.HEAD]) >= kinds.HEAD:
        if problem := first(head):
          raise TlxError(f'{words.shown(response.url.partition("?")[0])}: {problem}; nothing was kept')
        head = None
  return have


def _read(response: http.client.HTTPResponse) -> bytes:
  """Reads the next bytes. An OSError becomes a ConnectionError, because here the network causes it and not the disk."""
  try:
    return response.read1(CHUNK)
  except OSError as error:
    raise ConnectionError(error.strerror or str(error)) from None
