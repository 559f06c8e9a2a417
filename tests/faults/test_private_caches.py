"""Caches trust no other user, and do without a folder: what another could have written is neither run nor kept."""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import environment
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from tlx import files
from tlx.cache import compiled_steps, programs
from tlx.prefix import store
from tlx.types import TlxError
from tlx.weights import fetch

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='owners and modes are of POSIX')
STRANGER = 12345


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
  """Warnings are said again, and JAX's settings come back."""
  files.warn_once.cache_clear()
  monkeypatch.delenv(store.VARIABLE, raising=False)
  before = {name: value for name, value in jax.config.values.items() if 'cache' in name}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  reset_cache()


def opened(mode):
  def harm(path, monkeypatch):
    path.chmod(mode)

  return harm


def given_away(path, monkeypatch):
  if os.getuid() == 0:
    os.chown(path, STRANGER, -1)
  else:
    monkeypatch.setattr(os, 'getuid', lambda: STRANGER)


def linked(path, monkeypatch):
  shutil.move(path, other := path.with_name('other'))
  path.symlink_to(other)
  other.chmod(0o777)


EXPOSED = {
  'others write': (opened(0o707), 'other users can write'),
  'the group writes': (opened(0o770), 'other users can write'),
  'all write': (opened(0o777), 'other users can write'),
  'another owner': (given_away, 'belongs to another user'),
  'a link to where all write': (linked, 'other users can write .*other'),
}


@pytest.mark.parametrize('depth', [0, 2])
@pytest.mark.parametrize('case', EXPOSED)
def test_a_folder_that_others_could_change_is_refused(tmp_path, monkeypatch, case, depth):
  folder = tmp_path / 'a' / 'b' / 'c'
  assert files.make_private(folder) == ''
  harm, problem = EXPOSED[case]
  harm(folder if not depth else folder.parents[depth - 1], monkeypatch)
  said = files.make_private(folder, 'SOME_FOLDER')
  assert said.startswith(('other', str(tmp_path))) and '; next: ' in said and said.endswith('only you can write')
  assert re.search(problem, said) and 'set SOME_FOLDER to' in said


def test_a_sticky_parent_and_a_link_of_ones_own_are_fine(tmp_path):
  (tmp_path / 'shared').mkdir()
  (tmp_path / 'shared').chmod(0o1777)
  (tmp_path / 'link').symlink_to(tmp_path / 'shared' / 'mine')
  assert files.make_private(tmp_path / 'shared' / 'mine') == ''
  assert files.make_private(tmp_path / 'link' / 'tlx') == ''
  assert 'other users' in files.make_private(tmp_path / 'shared')


@pytest.mark.parametrize('umask', [0o000, 0o002, 0o077])
def test_new_folders_are_private_whatever_the_umask(tmp_path, umask):
  before = os.umask(umask)
  try:
    assert files.make_private(tmp_path / 'a' / 'b') == ''
  finally:
    os.umask(before)
  assert {(tmp_path / name).stat().st_mode & 0o777 for name in ('a', 'a/b')} == {0o700}


def test_places_where_nothing_can_be_kept(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  assert 'Not a directory; next: set' in files.make_private(tmp_path / 'file' / 'x')
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  assert 'next: set' in files.make_private(tmp_path / 'loop')
  monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert files.cache_folder() == tmp_path / '.cache' / 'tlx'
  for home in ('/nonexistent/home', 'relative'):
    monkeypatch.setenv('HOME', home)
    assert files.make_private(files.cache_folder()) == (
      'there is no home folder; next: set XDG_CACHE_HOME to a folder of yours'
    )
  monkeypatch.setattr(os, 'access', lambda *_: False)  # a read-only file system
  assert 'is not writable; next: set' in files.make_private(tmp_path / 'new')


class Evil:
  def __reduce__(self):
    return pytest.fail, ('unpickled',)


def sealed(content):
  return hashlib.sha256(content).digest() + content


def program(calls):
  calls.append(1)
  return jax.jit(lambda x: x + 1).lower(jnp.ones(2)).compile()


def planted(tmp_path, monkeypatch, content):
  """A step is in the cache, with this in its place."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  programs.keep()
  assert compiled_steps.kept(lambda: program([]), 'facts')
  (entry,) = compiled_steps.folder().iterdir()
  assert entry.stat().st_mode & 0o777 == 0o600
  entry.write_bytes(content)
  return entry


@pytest.mark.parametrize('case', EXPOSED)
def test_what_another_user_could_have_put_there_is_never_unpickled(tmp_path, monkeypatch, capsys, case):
  planted(tmp_path, monkeypatch, sealed(pickle.dumps(Evil())))
  EXPOSED[case][0](tmp_path / 'tlx', monkeypatch)
  calls = []
  assert compiled_steps.kept(lambda: program(calls), 'facts') and calls  # harmed while this process ran
  jax.config.update('jax_compilation_cache_dir', None)
  programs.keep()
  programs.keep()
  assert jax.config.jax_compilation_cache_dir is None
  assert compiled_steps.kept(lambda: program(calls), 'facts') and len(calls) == 2
  assert capsys.readouterr().err.count('warning: nothing is kept for later runs: ') == 1


def test_an_entry_that_another_user_wrote_is_never_unpickled(tmp_path, monkeypatch):
  entry, calls = planted(tmp_path, monkeypatch, sealed(pickle.dumps(Evil()))), []
  entry.chmod(0o666)
  assert compiled_steps.kept(lambda: program(calls), 'facts') and calls
  assert entry.stat().st_mode & 0o777 == 0o600  # made again


@pytest.mark.parametrize('content', [b'garbage', b'\x80\x05', b'', pickle.dumps((b'x', 1, 2)), pickle.dumps('text')])
def test_a_valid_hash_over_garbage_is_made_again_and_said(tmp_path, monkeypatch, capsys, content):
  planted(tmp_path, monkeypatch, sealed(content))
  calls = []
  for _ in range(2):
    assert compiled_steps.kept(lambda: program(calls), 'facts')(jnp.ones(2))[0] == 2
  assert len(calls) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert 'is damaged' in line and line.endswith('tlx makes it again')


@pytest.mark.parametrize('content', [b'garbage', b'{}', b'[1]', b'"x"', pickle.dumps(7.5), pickle.dumps(Evil())])
def test_a_number_is_never_a_pickle(tmp_path, monkeypatch, capsys, content):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  programs.keep()
  assert compiled_steps.number(lambda: 7.5, 'x') == 7.5
  (entry,) = compiled_steps.folder().iterdir()
  entry.write_bytes(sealed(content))
  assert compiled_steps.number(lambda: 2.5, 'x') == 2.5 == compiled_steps.number(lambda: 1.0, 'x')
  assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_of_programs_that_the_user_chose(tmp_path, capsys):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'new'))
  programs.keep()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'new')
  jax.config.update('jax_compilation_cache_dir', 'gs://bucket/programs')
  programs.keep()
  assert jax.config.jax_compilation_cache_dir == 'gs://bucket/programs' and not capsys.readouterr().err
  (tmp_path / 'open').mkdir()
  (tmp_path / 'open').chmod(0o777)
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'open'))
  programs.keep()
  assert jax.config.jax_compilation_cache_dir is None
  assert 'chmod go-w' in (said := capsys.readouterr().err) and 'JAX_COMPILATION_CACHE_DIR' in said


def test_features_and_downloads_are_not_kept_in_an_open_folder(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert store.usable()
  (tmp_path / 'tlx').chmod(0o777)
  assert not store.usable() and not store.usable()
  assert len(capsys.readouterr().err.splitlines()) == 1
  with pytest.raises(TlxError, match=r'cannot be kept: other users can write .*; next: chmod go-w .*/tlx, or set XDG'):
    fetch('http://127.0.0.1:9/w.pth')
  monkeypatch.setenv(store.VARIABLE, str(tmp_path / 'tlx' / 'mine'))
  assert not store.usable() and store.VARIABLE in capsys.readouterr().err


NAMELESS = ['unshare', '-U', '--map-user=54321']  # a user without an entry in the list of users


def cannot():
  return not shutil.which('unshare') or subprocess.run([*NAMELESS, 'true'], capture_output=True).returncode


@pytest.mark.skipif(cannot(), reason='this system does not let us become a user without a name')
def test_a_container_with_a_random_user(tmp_path):
  env = {name: value for name, value in environment().items() if name not in ('HOME', 'JAX_COMPILATION_CACHE_DIR')}
  command = [*NAMELESS, sys.executable, '-m', 'tlx', 'models', 'squeeze*']
  done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
  assert done.returncode == 0 and 'squeezenet1_1' in done.stdout
  (line,) = done.stderr.splitlines()
  assert line.endswith('there is no home folder; next: set XDG_CACHE_HOME to a folder of yours')
  assert not list(tmp_path.iterdir())  # no folder that is called ~
