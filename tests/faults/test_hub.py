"""The hub for real: a local server that answers what huggingface_hub asks, and a process that is sent there.

What is downloaded, resumed after a broken connection, refused and found in the cache is what a user would see.
"""

import hashlib
import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import environment

COMMIT = '0123456789abcdef0123456789abcdef01234567'
LOAD = 'import sys, tlx; m = tlx.load(sys.argv[1]); print(m.source.variant, m.module.head.num_classes)'


class Hub(http.server.BaseHTTPRequestHandler):
  """owner/good is public, owner/gated asks for consent, owner/private for a login; nothing else is there."""

  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    self.server.asked.append((self.command, self.path, self.headers.get('Range')))
    api = re.fullmatch(r'/api/models/owner/(\w+)(?:/(revision|tree)/([\w.]+))?(?:/?\?.*)?', self.path)
    file = re.fullmatch(r'/owner/(\w+)/resolve/([\w.]+)/([\w.-]+)', self.path)
    name, revision = api.group(1, 3) if api else file.group(1, 2) if file else ('', None)
    if name == 'gated' and file:
      return self._refuse(403, 'GatedRepo')
    if name == 'private':
      return self._refuse(401, 'RepoNotFound')
    if name not in ('good', 'gated'):
      return self._refuse(404, 'RepoNotFound')
    if revision not in (None, 'main', COMMIT):
      return self._refuse(404, 'RevisionNotFound')
    if api and api[2] == 'tree':
      tree = [
        {'type': 'file', 'path': path, 'size': len(data), 'oid': hashlib.sha1(data).hexdigest()}
        for path, data in self.server.files.items()
      ]
      return self._send(json.dumps(tree).encode(), {})
    if api:
      siblings = [{'rfilename': path} for path in self.server.files]
      return self._send(json.dumps({'id': f'owner/{name}', 'sha': COMMIT, 'siblings': siblings}).encode(), {})
    if file[3] not in self.server.files:
      return self._refuse(404, 'EntryNotFound')
    data = self.server.files[file[3]]
    headers = {'ETag': f'"{hashlib.sha256(data).hexdigest()}"', 'X-Repo-Commit': COMMIT, 'Accept-Ranges': 'bytes'}
    return self._send(data, headers)

  do_HEAD = do_GET

  def _refuse(self, status, code):
    self.send_response(status)
    self.send_header('X-Error-Code', code)
    self.send_header('Content-Length', '0')
    self.end_headers()

  def _send(self, data, headers):
    start = int((self.headers.get('Range') or 'bytes=0-')[6:].split('-')[0])
    self.send_response(206 if start else 200)
    for name, value in headers.items():
      self.send_header(name, value)
    if start:
      self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
    self.send_header('Content-Length', str(len(data) - start))
    self.end_headers()
    if self.command == 'HEAD':
      return
    breaks = 'safetensors' in self.path and not start and self.server.breaks
    if breaks:
      self.server.breaks -= 1
    self.wfile.write(data[start : len(data) // 2 if breaks else None])
    if breaks:
      self.wfile.flush()
      self.connection.shutdown(2)
      self.close_connection = True

  def log_message(self, *_):
    pass


@pytest.fixture
def hub(tiny_model):
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  server.files = {file.name: file.read_bytes() for file in Path(tiny_model).iterdir()}
  server.asked, server.breaks = [], 0
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield server
  server.shutdown()
  server.server_close()


def ask(hub, cache, *command, **variables):
  """A process that sees this hub and nothing else."""
  place = {'HF_ENDPOINT': f'http://127.0.0.1:{hub.server_port}', 'HF_HOME': str(cache), 'HF_HUB_DISABLE_XET': '1'}
  return subprocess.run(
    [sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment() | place | variables
  )


def loaded(hub, cache, location, **variables):
  return ask(hub, cache, '-c', LOAD, location, **variables)


def transfers(hub):
  return [(path, start) for method, path, start in hub.asked if method == 'GET' and 'safetensors' in path]


def test_a_model_is_downloaded_once_and_then_used_offline(hub, tmp_path):
  first = loaded(hub, tmp_path, 'hf-hub:owner/good')
  assert first.returncode == 0 and first.stdout.split() == ['mobilenetv1_test', '7'], first.stderr
  assert len(transfers(hub)) == 1 and all('/owner/good/' in path for _, path, _ in hub.asked)  # and nothing else
  again = loaded(hub, tmp_path, f'hf-hub:owner/good@{COMMIT}')
  assert again.stdout == first.stdout and len(transfers(hub)) == 1, again.stderr
  hub.asked.clear()
  offline = loaded(hub, tmp_path, 'hf-hub:owner/good', HF_HUB_OFFLINE='1')
  assert offline.stdout == first.stdout and not hub.asked, offline.stderr


def test_a_broken_connection_is_resumed_where_it_broke(hub, tmp_path):
  hub.breaks, whole = 1, bytes(range(256)) * (96 << 10)  # 24 MiB; the client keeps pieces of 10
  hub.files['model.safetensors'] = whole
  fetch = 'import sys; from tlx.weights import fetch; print(fetch("hf-hub:owner/good") / "model.safetensors")'
  done = ask(hub, tmp_path, '-c', fetch)
  assert done.returncode == 0, done.stderr
  assert Path(done.stdout.strip()).read_bytes() == whole
  (_, first), (_, rest) = transfers(hub)
  assert first is None and int(rest.removeprefix('bytes=').partition('-')[0]) > 0


@pytest.mark.parametrize(
  'location, problem',
  [
    ('hf-hub:owner/none', 'not on the hub, or private'),
    pytest.param('hf-hub:owner/private', 'not on the hub, or private', marks=pytest.mark.full),
    ('hf-hub:owner/gated', 'accept the terms'),
    pytest.param('hf-hub:owner/good@v9', 'no such revision', marks=pytest.mark.full),
  ],
)
def test_a_refusal_is_one_line(hub, tmp_path, location, problem):
  photo = tmp_path / 'photo.jpg'
  photo.write_bytes(b'')
  done = ask(hub, tmp_path / 'cache', '-m', 'tlx', 'predict', location, str(photo))
  *progress, line = done.stderr.splitlines()
  assert all(not text or text.startswith('Fetching') for text in progress), done.stderr
  assert done.returncode == 1 and line.startswith(f'error: {location.partition("@")[0]}') and problem in line


def test_a_file_that_is_not_what_was_pinned_is_refused(hub, tmp_path):
  fetch = 'import sys; from tlx.weights import fetch; fetch(sys.argv[1], revision=sys.argv[2], sha256="0" * 64)'
  done = ask(hub, tmp_path, '-c', fetch, 'hf-hub:owner/good', COMMIT)
  assert done.returncode == 1 and 'its sha256 is' in done.stderr.splitlines()[-1]


def test_without_the_hub_and_without_a_copy_there_is_one_line(hub, tmp_path):
  for variables in ({'HF_HUB_OFFLINE': '1'}, {'HF_ENDPOINT': 'http://127.0.0.1:9'}):
    done = ask(hub, tmp_path, '-m', 'tlx', 'predict', 'hf-hub:owner/good', str(tmp_path), **variables)
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
