"""A pytest plugin: `--sample 1/6` keeps a sixth of the tests marked `full`, and the commit's hash decides which.

Every commit draws other tests, so that all of them run within a few commits; one commit always draws the same ones.
Tests that are not marked `full` always run. Without the option all of them run: `pytest -m full` is the whole matrix.
"""

import hashlib
import os
import subprocess
from fractions import Fraction

import pytest

VARIABLE = 'TLX_SAMPLE'  # what decides in place of the commit, so that another machine repeats a draw
MARK = 'full'


def drawn(seed: str, name: str, share: Fraction) -> bool:
  """Whether a seed draws a name; of many seeds a share does, whatever other names there are."""
  digest = hashlib.sha256(f'{seed} {name}'.encode()).digest()
  return int.from_bytes(digest) < share * 2 ** (8 * len(digest))


def name_of(item: pytest.Item) -> str:
  """What is drawn: a test, or all tests of one `xdist_group` of a file, because they share a costly fixture."""
  group = item.get_closest_marker('xdist_group')
  return f'{item.nodeid.partition("::")[0]}@{group.args[0]}' if group else item.nodeid


def share_of(config: pytest.Config) -> Fraction | None:
  """The option's value; None without it."""
  text = config.getoption('sample')
  if text is None:
    return None
  try:
    share = Fraction(text)
  except (ValueError, ZeroDivisionError):
    share = Fraction(0)
  if not 0 < share <= 1:
    raise pytest.UsageError(f'--sample {text}: expected a share above 0 and up to 1, such as 1/6')
  return share


def seed() -> str:
  """The variable's value, or the hash of the commit that is checked out."""
  if given := os.environ.get(VARIABLE):
    return given
  command = ['git', '-c', 'safe.directory=*', '-C', os.path.dirname(__file__), 'rev-parse', 'HEAD']
  try:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError) as error:
    raise pytest.UsageError(f'--sample: git names no commit here; choose a draw with {VARIABLE}=WORD') from error


def repeat(config: pytest.Config) -> str:
  """One line: what was drawn, and how to draw it again."""
  share = config.getoption('sample')
  how = f'{VARIABLE}={seed()} pytest -m "{config.getoption("markexpr")}" --sample {share}'
  return f'sample: {share} of the tests marked {MARK}; the same ones again: {how}'


def pytest_addoption(parser):
  about = f'run this share of the tests marked `{MARK}`, such as 1/6, drawn by the hash of the commit'
  parser.addoption('--sample', metavar='SHARE', help=f'{about} or by {VARIABLE}')


def pytest_configure(config):
  if share_of(config) is not None:
    os.environ[VARIABLE] = seed()  # xdist's workers draw the same, whatever happens to the checkout meanwhile


def pytest_collection_modifyitems(config, items):
  if (share := share_of(config)) is None:
    return
  chosen = seed()
  stays = lambda item: not item.get_closest_marker(MARK) or drawn(chosen, name_of(item), share)
  config.hook.pytest_deselected(items=[item for item in items if not stays(item)])
  items[:] = filter(stays, items)


def pytest_sessionstart(session):
  """Says what is drawn, also where `-q` leaves pytest's own header out."""
  reporter = session.config.pluginmanager.get_plugin('terminalreporter')
  if reporter and share_of(session.config) is not None:
    reporter.write_line(repeat(session.config))


def pytest_terminal_summary(terminalreporter, config):
  if share_of(config) is not None and terminalreporter.stats.get('failed'):
    terminalreporter.write_line(repeat(config))
