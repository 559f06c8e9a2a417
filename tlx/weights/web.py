"""Asks web servers, and bounds what an answer may cost: seconds without progress, bytes, redirects and attempts.

The bounds count what arrives at the socket, so that no part of an answer escapes them: not the headers, the chunks of
a body, nor the body of a redirect. urllib has a timeout for one silence only; a byte now and then evades it.
"""

import contextlib
import http.client
import io
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any, TypeVar
from urllib.error import HTTPError

from tlx import words
from tlx.types import TlxError

STALL = 20.0  # seconds of waiting within which PROGRESS bytes must arrive
PROGRESS = 16 << 10
HEAD_BYTES = 1 << 20  # maximum bytes of everything before a body, with the bodies of redirects
JSON_BYTES = 16 << 20
JSON_SECONDS = 60.0
REDIRECTS = 5
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; each further pause is twice as long
TRANSIENT = {408, 429, 500, 502, 503, 504}

Found = TypeVar('Found')


class Refused(TlxError):
  """The server answered with an HTTP error."""

  def __init__(self, text: str, code: int, headers: Message):
    super().__init__(text)
    self.code, self.headers = code, headers


class Unreachable(TlxError):
  """No complete answer came."""


class _Limit(Exception):
  """An answer that exceeds a bound, in words. It is not an OSError: those are tried again."""


class _Source(io.RawIOBase):
  """The bytes of one answer, as they arrive. `left` and `deadline` bound what may still come."""

  def __init__(self, sock: socket.socket):
    self._socket, self._raw = sock, sock.makefile('rb', buffering=0)  # it keeps the socket open
    self._waited, self._arrived = 0.0, 0
    self.left, self.deadline = HEAD_BYTES, float('inf')

  def makefile(self, *_: Any) -> io.BufferedReader:
    """What HTTPResponse asks a socket for."""
    return io.BufferedReader(self)

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    began = time.monotonic()
    try:
      self._socket.settimeout(max(1e-3, min(STALL - self._waited, self.deadline - began)))
      count = self._raw.readinto(buffer) or 0
    except TimeoutError:
      count = -1
    self._arrived += max(count, 0)
    self._waited += time.monotonic() - began  # waiting alone: a slow disk is not a slow server
    if time.monotonic() > self.deadline:
      raise _Limit('the answer takes too long')
    if self._arrived >= PROGRESS:
      self._waited, self._arrived = 0.0, 0
    elif count < 0 or self._waited > STALL:
      raise _Limit(f'the download stalls: {self._arrived:,} bytes came in {STALL:g} s')
    self.left -= count
    if self.left < 0:
      raise _Limit('the server sends more than it may')
    return count

  def close(self) -> None:
    if not self.closed:
      self._raw.close()
    super().close()


class _Response(http.client.HTTPResponse):
  def __init__(self, sock: socket.socket, *arguments: Any, **options: Any):
    self.source = _Source(sock)
    super().__init__(self.source, *arguments, **options)


class _Http(http.client.HTTPConnection):
  response_class = _Response


class _Https(http.client.HTTPSConnection):
  response_class = _Response


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
  def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
    return self.do_open(_Http, request)

  def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):  # some builds of Python find no certificates of the system
      import certifi

      context.load_verify_locations(certifi.where())
    return self.do_open(_Https, request, context=context)


class _Redirect(urllib.request.HTTPRedirectHandler):
  max_redirections = REDIRECTS

  def redirect_request(self, request, answer, code, reason, headers, target):
    new = super().redirect_request(request, answer, code, reason, headers, target)
    if new is not None:
      old, now = urllib.parse.urlsplit(request.full_url), urllib.parse.urlsplit(new.full_url)
      if now.scheme not in ('http', 'https') or (old.scheme, now.scheme) == ('https', 'http'):
        raise _Limit(f'it redirects to {words.shown(now.scheme)}://{words.shown(now.netloc)}')
      if (old.scheme, old.netloc) != (now.scheme, now.netloc):
        new.remove_header('Authorization')  # a token of the hub is not for its storage
      request.hops.append(headers)
      new.hops = request.hops
    return new


def ask(url: str, headers: Mapping[str, str] = {}) -> tuple[http.client.HTTPResponse, list[Message]]:
  """Opens an address.

  Args:
    url: http(s) address.
    headers: of the request.

  Returns:
    (response, headers of the redirects that led to it). Set `response.source.left` before you read a long body.
  """
  url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
  request = urllib.request.Request(url, headers={'User-Agent': 'tlx', 'Accept-Encoding': 'identity', **headers})
  request.hops = []
  opener = urllib.request.OpenerDirector()
  for handler in (
    urllib.request.ProxyHandler(), _Handler(), _Redirect(), urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
  ):  # fmt: skip
    opener.add_handler(handler)
  response = opener.open(request, timeout=STALL)
  encoding = response.headers.get('Content-Encoding', 'identity')
  if encoding.strip().lower() not in ('', 'identity'):
    response.close()
    raise _Limit(f'the server sends it compressed ({words.shown(encoding)[:40]}), which tlx did not ask for')
  return response, request.hops


def persist(address: str, once: Callable[[], Found], way_out: str) -> Found:
  """Calls `once` until an attempt succeeds, ATTEMPTS times.

  Args:
    address: names the file in errors, without secrets.
    once: one attempt.
    way_out: what the user can do if no attempt succeeds.

  Returns:
    The value of `once`.

  Raises:
    Refused: for an HTTP error.
    Unreachable: if the server does not answer, or its answer breaks off, stalls or exceeds a bound.
    TlxError: if the address is not one.
  """
  for attempt in range(ATTEMPTS):
    if attempt:
      time.sleep(PAUSE * 2 ** (attempt - 1))
    try:
      return once()
    except HTTPError as error:
      problem: TlxError = _refused(address, error, f', {attempt + 1} times; {way_out}' if attempt else '')
      error.close()
      if error.code not in TRANSIENT:
        raise problem from None
    except _Limit as error:
      raise Unreachable(f'{address}: {error}; {way_out}') from None
    except urllib.error.URLError as error:
      problem = Unreachable(f'{address}: cannot be reached ({_line(error.reason)}), {ATTEMPTS} times; {way_out}')
    except (http.client.InvalidURL, ValueError) as error:
      raise TlxError(f'{address}: not an address ({_line(error)})') from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
      problem = Unreachable(f'{address}: the connection broke ({_line(error)}), {ATTEMPTS} times; {way_out}')
  raise problem


def _refused(address: str, error: HTTPError, rest: str) -> Refused:
  if 300 <= error.code < 400:
    return Refused(f'{address}: it redirects in a circle, or more than {REDIRECTS} times', error.code, error.headers)
  said = _line(error.reason)
  return Refused(f'{address}: HTTP {error.code} {said}{rest or "; check the address"}', error.code, error.headers)


def _line(reason: object) -> str:
  return words.shown(' '.join(str(reason).split()))[:160] or type(reason).__name__


def json_of(url: str, headers: Mapping[str, str], way_out: str) -> dict[str, Any]:
  """Asks for a JSON object of at most JSON_BYTES, which arrives within JSON_SECONDS.

  Args:
    url: http(s) address.
    headers: of the request.
    way_out: what the user can do if it fails.

  Returns:
    The object.

  Raises:
    TlxError: as `persist`, or if the answer is not a JSON object.
  """

  def once() -> bytes:
    response, _ = ask(url, headers)
    with response:
      response.source.left, response.source.deadline = JSON_BYTES, time.monotonic() + JSON_SECONDS
      if (response.length or 0) > JSON_BYTES:
        raise _Limit(f'the answer would take {response.length:,} bytes')
      return response.read()

  content = persist(url, once, way_out)
  try:
    record = json.loads(content)
  except (ValueError, RecursionError):
    record = None
  if not isinstance(record, dict):
    what = 'a web page' if content.lstrip()[:1] == b'<' else f'something else ({content[:16]!r})'
    raise Unreachable(f'{url}: {what} came where a JSON object was due; does a login page stand between? {way_out}')
  return record
