"""Names of strangers: escapes, directions, markup and bytes that are no text are shown, and never obeyed."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlx import words
from tlx.cli import main
from tlx.report.terminal import Console
from tlx.types import DatasetInfo, TlxError, UsageError

HOSTILE = 'a\x1b[31m\x9b2J\r\a\u202eb\u2066\udce9\x7f\u2028'
SHOWN = r'a\x1b[31m\x9b2J\r\x07\u202eb\u2066\udce9\x7f\u2028'
LITERAL = '[bold]:smile: [/] \\[red] [link=x]'
KEPT = 'größe 猫 cafe\u0301 👩‍👩‍👧 ❤️ می‌خواهم'  # with joiners, which words and emoji need


def test_shown_escapes_what_a_terminal_obeys():
  assert words.shown(HOSTILE) == SHOWN
  assert words.shown(KEPT + LITERAL) == KEPT + LITERAL
  assert words.shown('a\nb\tc') == r'a\nb\tc' and words.shown('a\nb\tc', lines=True) == 'a\nb\\tc'


def printed(capsys, show):
  capsys.readouterr()
  show()
  out, err = capsys.readouterr()
  text = out + err
  assert not {c for c in text if c in HOSTILE and not c.isprintable()}, repr(text)
  return text


@pytest.mark.parametrize('name', [HOSTILE, LITERAL, KEPT])
def test_every_table_and_line_shows_names_as_they_are(name, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '300')
  expected, console = words.shown(name), Console()
  info = DatasetInfo(name, (name, 'dog'), {name: (1, 2)}, (8, 8), rejected=((name, name),))
  row = dict(name=name, parameters=1, gmacs=1.0, size=8, top1=1.0, license=name, source=name)
  shows = (
    lambda: console.line(name), lambda: console.warn(name), lambda: console.data(info),
    lambda: console.defaults({name: name}), lambda: console.models([row]),
    lambda: console.model(row, [dict(layer=name, output=(1,), parameters=1, gmacs=1.0)]),
  )  # fmt: skip
  for show in shows:
    text = printed(capsys, show)
    assert expected.replace('_', '-') in text or expected in text
    assert '\N{SMILING FACE WITH OPEN MOUTH AND SMILING EYES}' not in text


@pytest.mark.parametrize(('error', 'code'), [(UsageError, 2), (TlxError, 1), (FileNotFoundError, 1)])
def test_errors_keep_their_lines_and_escape_the_rest(error, code, capsys, monkeypatch):
  monkeypatch.setattr(main, '_known', lambda arguments: (_ for _ in ()).throw(error(f'{HOSTILE}\nsecond')))
  codes = []
  text = printed(capsys, lambda: codes.append(main.run(['models'])))
  assert codes == [code]
  assert SHOWN in text and text.rstrip().endswith('\nsecond' if error is not FileNotFoundError else 'second')


@pytest.mark.parametrize('words_', [
  ['--x' + HOSTILE], ['finetune', '--epochs', HOSTILE], ['evaluate', 'a', HOSTILE], ['models', '--sort', HOSTILE],
  [HOSTILE], ['evaluate', HOSTILE], ['predict', HOSTILE, HOSTILE], ['explain', HOSTILE],
])  # fmt: skip
def test_words_of_the_command_line(words_, capsys):
  assert 'a' in printed(capsys, lambda: main.run(words_))


def test_warnings_of_the_log(capsys, monkeypatch):
  handler = logging.StreamHandler(io.StringIO())
  handler.setFormatter(main._Shown())
  handler.handle(logging.makeLogRecord({'msg': '%s', 'args': (HOSTILE,), 'levelno': logging.WARNING}))
  assert handler.stream.getvalue() == SHOWN + '\n'


RUN = r"""
import sys
from tlx.actions import predict
from tlx.cli import main
names = '\u732b', ':cat: \U0001f600', 'caf\udce9'
found = [{'image': sys.argv[1], 'classes': [{'name': name, 'probability': 0.5} for name in names]},
         {'image': sys.argv[1], 'error': 'bad \x1b[31m'}]
predict.predict = lambda *a, **k: iter(found)
main.main(['predict', 'run', sys.argv[1], *sys.argv[2:]])
"""


@pytest.mark.parametrize('encoding', ['latin-1', 'ascii', 'utf-8:strict', 'cp1252', ''])
def test_names_that_the_output_cannot_encode(encoding):
  """In another process, as its streams and its locale matter; a file name may be no UTF-8."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('LC_', 'LANG', 'PYTHON'))}
  environment |= {'PYTHONPATH': str(Path(__file__).parents[2]), 'LC_ALL': 'C', 'PYTHONUTF8': '0'}
  environment |= {'PYTHONIOENCODING': encoding} if encoding else {'PYTHONCOERCECLOCALE': '0'}
  for more in ([], ['--json']):
    call = [sys.executable, '-c', RUN, b'caf\xe9.jpg', *more]
    done = subprocess.run(call, capture_output=True, env=environment, check=False)
    assert done.returncode == 1 and b'Traceback' not in done.stderr and b'1 of the images' in done.stderr
    if more:
      assert [c['name'] for c in json.loads(done.stdout)[0]['classes']] == ['猫', ':cat: \U0001f600', 'caf\udce9']
    else:
      assert b'caf\\udce9.jpg' in done.stdout and b':cat:' in done.stdout
      assert b'\x1b' not in done.stdout + done.stderr and rb'bad \x1b[31m' in done.stderr
