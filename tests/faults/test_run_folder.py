"""Files of a run folder under kill -9, a full disk and resume; event files are read back without their writer."""

import errno
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tlx.report import EventWriter, MetricsLog, read_json, write_json
from tlx.types import TlxError


def full_disk(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_json_takes_arrays_and_has_no_nan(tmp_path):
  value = {
    'a': np.float32(0.5),
    'b': jnp.arange(3),
    'c': float('nan'),
    'd': [np.inf, (1, True)],
    'e': pathlib.Path('x'),
    'f': None,
    'g': jnp.bfloat16(2),
    'h': np.array([1.0, np.nan]),
    3: np.bool_(True),
  }
  write_json(tmp_path / 'new' / 'value.json', value)
  text = (tmp_path / 'new' / 'value.json').read_text()
  assert 'NaN' not in text and 'Infinity' not in text
  assert read_json(tmp_path / 'new' / 'value.json') == {
    'a': 0.5,
    'b': [0, 1, 2],
    'c': None,
    'd': [None, [1, True]],
    'e': 'x',
    'f': None,
    'g': 2.0,
    'h': [1.0, None],
    '3': True,
  }


def test_a_value_that_json_has_no_word_for_is_an_error_and_writes_nothing(tmp_path):
  with pytest.raises(TypeError):
    write_json(tmp_path / 'value.json', {'a': object()})
  assert list(tmp_path.iterdir()) == []


def test_files_have_the_permissions_of_any_other(tmp_path):
  write_json(tmp_path / 'value.json', 1)
  (tmp_path / 'other').write_text('')
  assert (tmp_path / 'value.json').stat().st_mode == (tmp_path / 'other').stat().st_mode


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
  path = tmp_path / 'result.json'
  write_json(path, {'accuracy': 0.5})
  monkeypatch.setattr(os, call, full_disk)
  with pytest.raises(TlxError, match=r'cannot write .*result\.json: the disk is full.*free some space') as error:
    write_json(path, {'accuracy': 0.6})
  assert '\n' not in str(error.value)
  assert read_json(path) == {'accuracy': 0.5}
  assert [p.name for p in tmp_path.iterdir()] == ['result.json']


@pytest.mark.skipif(os.name == 'nt' or sys.platform == 'darwin', reason='needs RLIMIT_FSIZE to fail a write half-way')
def test_a_write_that_the_system_cuts_short_leaves_whole_files(tmp_path):
  code = """
import resource, sys
from tlx.report.folder import MetricsLog, write_json
from tlx.types import TlxError
log = MetricsLog(sys.argv[1] + '/metrics.jsonl')
log.append({'step': 1})
write_json(sys.argv[1] + '/result.json', {'old': 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
long = 'x' * 500
for write in (lambda: log.append({'step': 2, 'text': long}), lambda: write_json(sys.argv[1] + '/result.json', long)):
  try:
    write()
  except TlxError as error:
    print(error)
log.append({'step': 3})
"""
  done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True)
  assert [line.count('the file size limit is reached') for line in done.stdout.splitlines()] == [1, 1]
  assert MetricsLog.read(tmp_path / 'metrics.jsonl') == [{'step': 1}, {'step': 3}]
  assert read_json(tmp_path / 'result.json') == {'old': 1}


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs the device that is always full')
def test_a_full_disk_under_the_log_and_the_events(tmp_path):
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  with pytest.raises(TlxError, match=r'metrics\.jsonl: the disk is full'):
    MetricsLog(tmp_path / 'metrics.jsonl').append({'step': 1})
  writer = EventWriter(tmp_path)
  writer._records._writer.close()
  refused = pytest.raises(TlxError, match=r'events\.out\.tfevents.* the disk is full')
  with open('/dev/full', 'wb', buffering=0) as writer._records._writer, refused:
    writer.scalars(1, {'loss': 1.0})
  writer.close()


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  for write in (lambda p: write_json(p / 'x.json', 1), lambda p: MetricsLog(p / 'metrics.jsonl'), EventWriter):
    with pytest.raises(TlxError, match=r'cannot write .*choose another with --out'):
      write(tmp_path / 'file' / 'run')


def test_damaged_json_is_named(tmp_path):
  (tmp_path / 'result.json').write_text('{"accuracy": 0.')
  with pytest.raises(TlxError, match=r'result\.json is no JSON'):
    read_json(tmp_path / 'result.json')
  with pytest.raises(TlxError, match=r'cannot read .*gone\.json'):
    read_json(tmp_path / 'gone.json')


def test_log_resumes_at_a_step_byte_for_byte(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  log = MetricsLog(path)
  for step in range(1, 6):
    log.append({'step': step, 'split': 'train', 'phase': 'probe', 'loss': 1 / step})
  log.append({'step': 5, 'split': 'validation', 'loss': float('inf')})
  before = path.read_bytes().splitlines(keepends=True)
  odd = b'{ "step":2,  "note": "spaces stay" }\n'
  path.write_bytes(before[0] + odd + b''.join(before[2:]) + b'{"step": 6, "lo')
  log = MetricsLog(path)
  assert path.read_bytes() == before[0] + odd + b''.join(before[2:])
  log.truncate(3)
  assert path.read_bytes() == before[0] + odd + before[2]
  log.append({'step': 4})
  assert [record['step'] for record in MetricsLog.read(path)] == [1, 2, 3, 4]
  assert MetricsLog.read(tmp_path / 'none.jsonl') == []


@pytest.mark.parametrize(
  'tail', [b'{"step": 2', b'{"step": 2\n', b'\x00\x00\x00', b'"text"\n', b'{"step": 2, "name": "\xc3']
)
def test_a_broken_last_line_is_dropped(tmp_path, tail):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n' + tail)
  assert MetricsLog.read(path) == [{'step': 1}]
  MetricsLog(path).append({'step': 2})
  assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_nothing_that_was_appended_is_lost_by_kill_9(tmp_path):
  code = """
import sys
from tlx.report.folder import MetricsLog
log = MetricsLog(sys.argv[1])
for step in range(10**9):
  log.append({'step': step, 'text': 'x' * 5000})
  print(step, flush=True)
"""
  path = tmp_path / 'metrics.jsonl'
  process = subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, text=True)
  acknowledged = [process.stdout.readline() for _ in range(20)]
  process.send_signal(signal.SIGKILL)
  acknowledged += process.communicate()[0].splitlines()
  last = int(acknowledged[-1] or acknowledged[-2])
  records = MetricsLog.read(path)
  assert [record['step'] for record in records] == list(range(len(records))) and len(records) > last


def test_truncating_keeps_the_log_when_the_disk_is_full(tmp_path, monkeypatch):
  log = MetricsLog(tmp_path / 'metrics.jsonl')
  log.append({'step': 1})
  log.append({'step': 2})
  monkeypatch.setattr(os, 'fsync', full_disk)
  with pytest.raises(TlxError, match=r'the disk is full'):
    log.truncate(1)
  assert len(MetricsLog.read(tmp_path / 'metrics.jsonl')) == 2


def crc32c(data):
  """Castagnoli's CRC, bit by bit (RFC 3720, appendix B.4)."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data):
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data, at):
  value = shift = 0
  while True:
    value |= (data[at] & 0x7F) << shift
    at, shift = at + 1, shift + 7
    if not data[at - 1] & 0x80:
      return value, at


def fields(data):
  """(number, value) of each field of a protocol buffer, by the wire format alone."""
  at, found = 0, []
  while at < len(data):
    tag, at = varint(data, at)
    if tag & 7 == 0:
      value, at = varint(data, at)
    elif tag & 7 == 2:
      size, at = varint(data, at)
      value, at = data[at : at + size], at + size
    else:
      kind, size = {1: ('<d', 8), 5: ('<f', 4)}[tag & 7]
      value, at = struct.unpack_from(kind, data, at)[0], at + size
    found.append((tag >> 3, value))
  return found


def events(path):
  """Events of a file as {'step', 'version', 'session', 'scalars'}; both checksums of every record are checked."""
  data, at = path.read_bytes(), 0
  while at < len(data):
    size, check = struct.unpack_from('<QI', data, at)
    assert check == masked(data[at : at + 8])
    body = data[at + 12 : at + 12 + size]
    assert struct.unpack_from('<I', data, at + 12 + size)[0] == masked(body)
    at += size + 16
    event = dict(fields(body))
    scalars = dict((dict(fields(value))[1].decode(), dict(fields(value))[2]) for _, value in fields(event.get(5, b'')))
    yield {'step': event.get(2, 0), 'version': event.get(3), 'session': event.get(7), 'scalars': scalars}


def test_crc_of_the_standard():
  assert crc32c(b'123456789') == 0xE3069283


def test_events_are_what_tensorboard_reads(tmp_path):
  writer = EventWriter(tmp_path / 'events')
  writer.scalars(10, {'train/loss': np.float32(0.25), 'train/accuracy': jnp.float32(0.5), 'none': None})
  writer.scalars(20, {'train/loss': float('nan'), 'large': 1e300})
  first, *written = events(writer.path)  # before close: every call is on disk
  writer.close()
  writer.close()
  assert first['version'] == b'brain.Event:2'
  assert [event['step'] for event in written] == [10, 20]
  assert written[0]['scalars'] == {'train/loss': 0.25, 'train/accuracy': 0.5}
  assert np.isnan(written[1]['scalars']['train/loss']) and written[1]['scalars']['large'] == np.inf


def test_resume_writes_a_new_file_that_purges(tmp_path):
  paths = []
  for purge in (None, 11, 11):
    writer = EventWriter(tmp_path, purge_step=purge)
    writer.scalars(11, {'loss': 1.0})
    writer.close()
    paths.append(writer.path)
  assert sorted(paths) == paths and len(set(paths)) == 3
  assert all('tfevents' in path.name for path in paths)
  session = list(events(paths[1]))[1]
  assert session['step'] == 11 and dict(fields(session['session'])) == {1: 1}  # SessionLog.START
  assert len(list(events(paths[0]))) == 2


def test_json_lines_are_lines(tmp_path):
  MetricsLog(tmp_path / 'metrics.jsonl').append({'step': 1, 'name': 'two\nlines\u2028', 'loss': float('nan')})
  (line,) = (tmp_path / 'metrics.jsonl').read_bytes().splitlines()
  assert json.loads(line) == {'step': 1, 'name': 'two\nlines\u2028', 'loss': None}
