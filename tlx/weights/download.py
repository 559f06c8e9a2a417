"""Downloads one file over http(s): it streams, resumes after a broken connection, and verifies before it renames."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException, HTTPResponse, InvalidURL

from tlx.types import TlxError

ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; each further pause is twice as long
TIMEOUT = 30.0  # seconds without a byte from the server
CHUNK = 1 << 20
NAME_DIGEST = re.compile(r'-([0-9a-f]{8,64})\.\w+$')  # torchvision's file names end in part of their sha256
TRANSIENT = {408, 429, 500, 502, 503, 504}


def cache_folder() -> pathlib.Path:
  """tlx's cache folder: $XDG_CACHE_HOME/tlx, or ~/.cache/tlx."""
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'tlx'


def download(url: str, sha256: str | None = None) -> pathlib.Path:
  """Downloads a file, unless the cache has it.

  It verifies the checksum each time, also of a cached file, if one is given or the file's name ends in one.

  Args:
    url: http(s) address.
    sha256: checksum of the file, 64 hexadecimal digits.

  Returns:
    The path of the file in the cache folder.

  Raises:
    TlxError: if the file cannot be downloaded or saved, or if its checksum differs (then the file is deleted).
  """
  address = url.partition('?')[0].partition('#')[0]  # a query may hold a secret, so errors leave it out
  name = re.sub(r'[^\w.+-]', '_', urllib.parse.unquote(address).rpartition('/')[2])[-100:].lstrip('.') or 'file'
  # the path contains a digest of the address, because many files are called model.safetensors
  target = cache_folder() / 'downloads' / hashlib.sha256(url.encode()).hexdigest()[:12] / name
  part = target.with_name(target.name + '.part')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name('lock')):
      if not target.exists():
        _stream(url, address, part)
        _verify(address, part, target.name, sha256)
        os.replace(part, target)
        _validator(part).unlink(missing_ok=True)
      else:
        _verify(address, target, target.name, sha256)
  except OSError as error:
    way_out = 'free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else 'make that folder writable'
    reason = f'{error.strerror or error}; {way_out}, or set XDG_CACHE_HOME to another folder'
    raise TlxError(f'{address}: cannot be saved in {target.parent}: {reason}') from None
  return target


@contextlib.contextmanager
def _alone(lock: pathlib.Path):
  """Lets one process at a time download a file, on systems that have file locks."""
  with lock.open('w') as file:
    try:
      import fcntl
    except ImportError:
      pass
    else:
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _verify(address: str, path: pathlib.Path, name: str, sha256: str | None) -> None:
  in_name = NAME_DIGEST.search(name)
  wanted = (sha256 or (in_name[1] if in_name else '')).lower()
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


def _stream(url: str, address: str, part: pathlib.Path) -> None:
  for attempt in range(ATTEMPTS):
    try:
      return _attempt(url, address, part)
    except urllib.error.HTTPError as error:
      problem = f'HTTP {error.code} {error.reason}'
      error.close()
      if error.code == 416:  # range not satisfiable: the part does not belong to this file
        part.unlink(missing_ok=True)
      elif error.code not in TRANSIENT:
        raise TlxError(f'{address}: {problem}; check the address') from None
    except urllib.error.URLError as error:
      problem = f'cannot be reached ({error.reason})'
    except (InvalidURL, ValueError) as error:
      raise TlxError(f'{address}: not an address ({error})') from None
    except (HTTPException, ConnectionError, TimeoutError) as error:
      problem = f'the connection broke ({error or type(error).__name__})'
    if attempt + 1 < ATTEMPTS:
      time.sleep(PAUSE * 2**attempt)
  raise TlxError(f'{address}: {problem}, {ATTEMPTS} times; run it again to go on from there, or pass a local file')


def _attempt(url: str, address: str, part: pathlib.Path) -> None:
  """Downloads the bytes that the part lacks. Raises ConnectionError if the connection ends too early."""
  validator = _validator(part)
  request = urllib.request.Request(url, headers={'User-Agent': 'tlx', 'Accept-Encoding': 'identity'})
  have = part.stat().st_size if part.exists() and validator.exists() else 0
  if have:
    request.add_header('Range', f'bytes={have}-')
    request.add_header('If-Range', validator.read_text())
  with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
    if response.status != 206 or not response.headers.get('Content-Range', '').startswith(f'bytes {have}-'):
      if response.status == 206:
        part.unlink(missing_ok=True)
        raise ConnectionError('the server sent another range than tlx asked for')
      have = 0
      etag = response.headers.get('ETag', '')
      tag = etag if etag and not etag.startswith('W/') else response.headers.get('Last-Modified')
      validator.unlink(missing_ok=True)
      if tag:
        validator.write_text(tag)
    length = response.headers.get('Content-Length')
    total = have + int(length) if length else None
    with part.open('r+b' if have else 'wb') as file:
      file.seek(have)
      size = _copy(response, file, have, total, pathlib.PurePosixPath(address).name)
      file.flush()
      os.fsync(file.fileno())
  if total is not None and size < total:
    raise ConnectionError(f'only {size:,} of {total:,} bytes arrived')


def _copy(response: HTTPResponse, file, have: int, total: int | None, name: str) -> int:
  """Streams the response to the file, with a progress bar on a terminal; returns the file's new size in bytes."""
  from rich.console import Console
  from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

  columns = (
    TextColumn(name, markup=False),
    BarColumn(),
    DownloadColumn(),
    TransferSpeedColumn(),
    TimeRemainingColumn(),
  )
  with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
    task = progress.add_task(name, total=total, completed=have)
    while block := _read(response):
      file.write(block)
      have += len(block)
      progress.update(task, completed=have)
  return have


def _read(response: HTTPResponse) -> bytes:
  """Reads the next bytes. An OSError becomes a ConnectionError, because here the network causes it and not the disk."""
  try:
    return response.read(CHUNK)
  except OSError as error:
    raise ConnectionError(error.strerror or str(error)) from None
