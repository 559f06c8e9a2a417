"""Answers that no server should give: each costs little, ends with one line, and leaves nothing under a final name."""

import contextlib
import gzip
import hashlib
import http.server
import json
import os
import threading
import time

import numpy as np
import pytest

from tlx.types import TlxError
from tlx.weights import download, fetch, web, write_safetensors

COMMIT = '0123456789abcdef0123456789abcdef01234567'
API = '/api/models/owner/name/revision/main'
FILES = f'/owner/name/resolve/{COMMIT}'
WEIGHTS, CONFIG = f'{FILES}/model.safetensors', f'{FILES}/config.json'
PAGE = b'<!DOCTYPE html><html><body>Please log in to the hotel network</body></html>'


class Server(http.server.BaseHTTPRequestHandler):
  """Answers as `server.answers` says: {path: bytes written as they are, or a function of this handler}."""

  def do_GET(self):
    self.server.asked.append((self.path, dict(self.headers)))
    answer = self.server.answers.get(self.path.partition('?')[0])
    with contextlib.suppress(OSError):  # the client has seen enough
      if callable(answer):
        answer(self)
      else:
        self.wfile.write(answer or http_answer(b'', '404 Not Found'))
    self.close_connection = True

  do_HEAD = do_GET

  def log_message(self, *_):
    pass


def http_answer(body, status='200 OK', length=None, **headers):
  lines = {'Content-Length': len(body) if length is None else length} | headers
  head = ''.join(f'{name.replace("_", "-")}: {value}\r\n' for name, value in lines.items() if value != '')
  return f'HTTP/1.1 {status}\r\n{head}\r\n'.encode('latin-1') + body


def in_json(value):
  return http_answer(json.dumps(value).encode())


def listing(*names, sha=COMMIT):
  return in_json({'sha': sha, 'siblings': [{'rfilename': name} for name in names]})


def endless(block, head=b'HTTP/1.1 200 OK\r\n\r\n', pause=0.0):
  def answer(handler):
    handler.wfile.write(head)
    for _ in range(10**6):
      handler.wfile.write(block)
      time.sleep(pause)

  return answer


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
  write_safetensors(path, {'x': np.arange(20_000, dtype=np.float32)})
  return path.read_bytes()


@pytest.fixture
def server(tmp_path, monkeypatch, weights):
  from huggingface_hub import constants

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as running:
    running.url, running.asked = f'http://127.0.0.1:{running.server_port}', []
    running.answers = {API: listing('config.json', 'model.safetensors'), CONFIG: in_json({}),
                       WEIGHTS: http_answer(weights)}  # fmt: skip
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '*')
    for name, value in (('ENDPOINT', running.url), ('HF_HUB_CACHE', str(tmp_path / 'hub')), ('HF_HUB_OFFLINE', False)):
      monkeypatch.setattr(constants, name, value)
    for name, value in (('PAUSE', 0.0), ('STALL', 0.4), ('JSON_SECONDS', 0.6), ('JSON_BYTES', 100_000)):
      monkeypatch.setattr(web, name, value)
    threading.Thread(target=running.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    yield running
    running.shutdown()


def refused(location, problem, **options):
  """One printable line that says the problem, within seconds."""
  began = time.monotonic()
  with pytest.raises(TlxError, match=problem) as caught:
    fetch(location, **options)
  text = str(caught.value)
  assert text.isprintable() and len(text) < 500 and time.monotonic() - began < 6, text
  return text


def kept(folder, *names):
  """Files that look complete: the weights and records, not partial files and locks."""
  return sorted(path.name for path in folder.rglob('*') if path.name in names)


CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'


def chunked(block):
  return endless(f'{len(block):x}\r\n'.encode() + block + b'\r\n', CHUNKED)


BOMB = gzip.compress(bytes(10**7))
HUB = {
  'a login page': (http_answer(PAGE, Content_Type='text/html'), 'a web page came'),
  'not an object': (in_json(['x']), 'JSON object'),
  'no commit': (in_json({'siblings': []}), 'no commit'),
  'no files': (in_json({'sha': COMMIT}), 'lists no files'),
  'null files': (in_json({'sha': COMMIT, 'siblings': [None, 3, {'rfilename': 7}]}), 'lists no files'),
  'a commit that leads elsewhere': (listing('config.json', sha='../../../../etc'), 'no commit'),
  'a commit in capitals': (listing('config.json', sha=COMMIT.upper()), 'no commit'),
  'deep JSON': (http_answer(b'[' * 90_000), 'JSON object'),
  'a large length': (http_answer(b'{}', length=10**18), 'would take'),
  'a negative length': (http_answer(b'{', length=-5), 'JSON object'),
  'cut short': (http_answer(b'{"sha"', length=50), 'the connection broke'),
  'endless': (endless(b' ' * 10_000), 'more than it may'),
  'endless chunks': (chunked(b' ' * 10_000), 'more than it may'),
  'endless headers': (endless(b'X-Y: ' + b'z' * 1000 + b'\r\n', b'HTTP/1.1 200 OK\r\n'), 'broke|more than it may'),
  'endless 100 Continue': (endless(b'HTTP/1.1 100 Continue\r\n\r\n' * 100, b''), 'more than it may'),
  'endless trailers': (endless(b'X: y\r\n' * 1000, CHUNKED + b'2\r\n{}\r\n0\r\n'), 'more than it may'),
  'a byte now and then': (endless(b' ', http_answer(b'', length=1000), 0.1), 'stalls|too long'),
  'a header byte now and then': (endless(b'H', b'', 0.1), 'stalls'),
  'silence': (lambda handler: time.sleep(3), 'stalls: 0 bytes'),
  'slow, but never a stall': (endless(b' ' * 2000, b'HTTP/1.1 200 OK\r\n\r\n', 0.03), 'too long'),
  'no HTTP': (b'SSH-2.0-OpenSSH_9.6\r\n', 'the connection broke'),
  'a bomb': (http_answer(BOMB, Content_Encoding='gzip'), 'compressed'),
  'a circle': (http_answer(b'', '302 Found', Location=API), 'in a circle'),
  'a circle with endless bodies': (endless(b'x' * 9999, f'HTTP/1.1 302 F\r\nLocation: {API}\r\n\r\n'.encode()), 'more'),
  'to a file': (http_answer(b'', '302 Found', Location='file:///etc/passwd'), 'HTTP 302|circle|redirects'),
  'to ftp': (http_answer(b'', '302 Found', Location='ftp://127.0.0.1/x'), 'redirects to ftp'),
  'escapes': (http_answer(b'', '418 \x1b[31mI am\x07 red\x1b[2J'), r'\\x1b\[31mI am\\x07 red'),
  '401': (http_answer(b'', '401 Unauthorized'), 'not on the hub, or private'),
  '403': (http_answer(b'', '403 Forbidden'), 'gated'),
  '404': (http_answer(b'', '404 Not Found'), 'not on the hub, or private'),
  '429': (http_answer(b'', '429 Too Many Requests', Retry_After=10**9), 'too many requests'),
  '500': (http_answer(b'', '500 Internal Server Error'), 'HTTP 500'),
  '503': (http_answer(b'', '503 Busy', Retry_After=10**9), 'HTTP 503'),
}


@pytest.mark.parametrize('case', HUB)
def test_answers_of_the_hub(server, tmp_path, case):
  server.answers[API], problem = HUB[case]
  text = refused('hf-hub:owner/name', problem)
  assert text.startswith('hf-hub:owner/name: ')
  assert not kept(tmp_path, 'config.json', 'model.safetensors')


@pytest.mark.parametrize('case', ['a login page', 'no commit', 'a byte now and then', '404', '503'])
def test_a_copy_from_before_is_used_when_the_hub_is_out_of_order(server, case):
  folder = fetch('hf-hub:owner/name')
  server.answers[API], _ = HUB[case]
  assert fetch('hf-hub:owner/name') == folder


def test_names_that_lead_elsewhere_are_never_asked_for(server, tmp_path):
  hostile = ('../../x', '/etc/model.safetensors', '..\\model.safetensors', 'a/../model.safetensors', 'x\x00', '.', '..',
             'model-1-of-../../../x.safetensors', '/model.safetensors', 'sub/model.safetensors')  # fmt: skip
  server.answers[API] = listing(*hostile, 'config.json', 'model.safetensors')
  folder = fetch('hf-hub:owner/name')
  assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']
  assert [path for path, _ in server.asked] == [API, CONFIG, WEIGHTS]
  server.answers[API] = listing(*hostile)
  refused('hf-hub:owner/other', 'not on the hub')
  server.answers[API.replace('name', 'third')] = listing(*hostile)
  refused('hf-hub:owner/third', r'no model\.safetensors and no pytorch_model\.bin on the hub; it has')


def cut(body):
  return http_answer(body[: len(body) // 2], length=len(body))


FILE = {  # {case: (answer made of the whole file, problem)}
  'a login page': (lambda w: http_answer(PAGE), 'a web page came'),
  'a message': (lambda w: http_answer(b'{"error": "x", "padding": "' + b'x' * 99 + b'"}'), 'JSON came'),
  'nothing': (lambda w: http_answer(b''), 'an empty file'),
  'a short file': (lambda w: http_answer(w[:-1]), 'cut short'),
  'a short body': (cut, 'the connection broke .only .* bytes arrived'),
  'a large length': (lambda w: http_answer(w, length=10**18), 'declares 1,000,000,000,000,000,000 bytes'),
  'another checksum': (lambda w: http_answer(w, ETag=f'"{"0" * 64}"'), 'sha256 is .* not 000'),
  'a bomb': (lambda w: http_answer(BOMB, Content_Encoding='gzip'), 'compressed'),
  'endless chunks': (lambda w: chunked(w[:50] + bytes(9000)), 'more than it may'),
  'a page without end': (lambda w: endless(PAGE), 'a web page came'),
  'a byte now and then': (lambda w: endless(b'\x00', http_answer(w[:99], length=10**6), 0.1), 'stalls: .* in 0.4 s'),
  'a circle': (lambda w: http_answer(b'', '302 Found', Location='?again'), 'in a circle'),
}


@pytest.mark.parametrize('case', FILE)
def test_answers_in_place_of_a_file(server, tmp_path, monkeypatch, weights, case):
  monkeypatch.setattr(download, 'UNDECLARED', 200_000)
  make, problem = FILE[case]
  server.answers[WEIGHTS] = server.answers['/w.safetensors'] = make(weights)
  refused('hf-hub:owner/name', problem)
  if case != 'another checksum':  # an address has no such promise
    refused(f'{server.url}/w.safetensors', problem)
  assert not kept(tmp_path, 'model.safetensors', 'w.safetensors')
  server.answers[WEIGHTS] = server.answers['/w.safetensors'] = http_answer(weights)  # the server is mended
  assert (fetch('hf-hub:owner/name') / 'model.safetensors').read_bytes() == weights
  assert fetch(f'{server.url}/w.safetensors').read_bytes() == weights


@pytest.mark.parametrize('junk', [PAGE, b'', b'\x00' * 99, b'{"a": 1}'])
def test_an_address_gives_weights_or_nothing(server, weights, junk):
  server.answers['/w.pth'] = http_answer(junk)
  refused(f'{server.url}/w.pth', 'came|not a file of weights')
  server.answers['/w.pth'] = http_answer(weights)
  path = fetch(f'{server.url}/w.pth')
  path.write_bytes(junk)  # as an earlier version of tlx kept it
  assert fetch(f'{server.url}/w.pth') == path and path.read_bytes() == weights


def test_config_that_is_a_page_is_not_kept(server, tmp_path):
  whole, server.answers[CONFIG] = server.answers[CONFIG], http_answer(PAGE)
  refused('hf-hub:owner/name', 'a web page came, not JSON')
  server.answers[CONFIG] = http_answer(b'{}', length=10**9)
  refused('hf-hub:owner/name', 'where at most')
  assert not kept(tmp_path, 'config.json')
  server.answers[CONFIG] = whole
  assert fetch('hf-hub:owner/name')


def test_a_stalled_download_goes_on_in_the_next_run(server, weights):
  half = len(weights) // 2

  def answer(handler):
    start = int((handler.headers.get('Range') or 'bytes=0-')[6:-1])
    status = '206 Partial' if start else '200 OK'
    span = f'bytes {start}-{len(weights) - 1}/{len(weights)}' if start else ''
    head = http_answer(b'', status, len(weights) - start, ETag=server.tag, Content_Range=span)
    handler.wfile.write(head + weights[start : None if start else half])
    time.sleep(0 if start else 2)

  server.answers[WEIGHTS], server.tag = answer, '"1"'
  refused('hf-hub:owner/name', 'stalls: .* run it again to go on from there')
  assert (fetch('hf-hub:owner/name') / 'model.safetensors').read_bytes() == weights
  assert [h.get('Range') for path, h in server.asked if path == WEIGHTS] == [None, f'bytes={half}-']


def test_a_part_of_another_version_is_not_continued(server, weights):
  def answer(handler):  # it sends ranges without a look at If-Range
    start = int((handler.headers.get('Range') or 'bytes=0-')[6:-1])
    first, status = len(server.asked) == 1, '206 Partial' if start else '200 OK'
    span = f'bytes {start}-{len(weights) - 1}/{len(weights)}' if start else ''
    sent = weights[:99] + bytes(len(weights) - 99) if first else weights
    whole = http_answer(sent[start:], status, ETag='"1"' if first else '"2"', Content_Range=span)
    handler.wfile.write(whole[:-1000] if first else whole)

  server.answers['/w.safetensors'] = answer
  assert fetch(f'{server.url}/w.safetensors', sha256=hashlib.sha256(weights).hexdigest()).read_bytes() == weights
  assert [h.get('Range') for _, h in server.asked] == [None, f'bytes={len(weights) - 1000}-', None]


def test_a_token_stays_with_the_hub(server, monkeypatch, weights):
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as storage:
    storage.asked, storage.answers = [], {'/blob': http_answer(weights, ETag='"other"')}
    threading.Thread(target=storage.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
    place = f'http://127.0.0.1:{storage.server_port}/blob'
    linked = f'"{hashlib.sha256(weights).hexdigest()}"'
    server.answers[WEIGHTS] = http_answer(b'', '302 Found', Location=place, X_Linked_ETag=linked)
    assert fetch('hf-hub:owner/name')
    ((_, headers),) = storage.asked
    storage.shutdown()
  assert 'Authorization' not in headers
  assert all(headers['Authorization'] == 'Bearer hf_secret' for _, headers in server.asked)


@pytest.mark.skipif(os.name != 'posix', reason='the hub keeps links elsewhere')
def test_what_the_library_downloaded_is_found(server, tmp_path, weights):
  blobs = tmp_path / 'hub' / 'models--owner--name' / 'blobs'
  snapshot = blobs.parent / 'snapshots' / COMMIT
  for folder in (blobs, snapshot):
    folder.mkdir(parents=True)
  for name, content in (('config.json', b'{}'), ('model.safetensors', weights)):
    (blobs / name).write_bytes(content)
    (snapshot / name).symlink_to(blobs / name)
  assert fetch(f'hf-hub:owner/name@{COMMIT}') == snapshot and not server.asked
  assert fetch('hf-hub:owner/name') == snapshot and [path for path, _ in server.asked] == [API]  # and nothing else
  assert (blobs.parent / 'refs' / 'main').read_text() == COMMIT
