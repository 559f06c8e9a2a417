"""Programs outlive the process: the second run loads what the first compiled, to the same bits and without a word."""

import errno
import json
import os
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import pytest
from conftest import environment
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import tlx
from tlx.cache import compiled_steps, identity, programs
from tlx.train import compile_ahead

OPTIONS = ['--strategy', 'full', '--epochs', '1', '--batch-size', '8', '--image-size', '32', '--augment', 'light']


@pytest.fixture
def settings():
  """Puts the process's own back."""
  names = [name for name in jax.config.values if 'cache' in name]
  before = {name: jax.config.values[name] for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def train(model, images, out, cache, seed, warnings=0, **more):
  """The process that ran, and where no machine's settings reach it."""
  command = [sys.executable, '-m', 'tlx', 'finetune', '--model', model, '--data', f'folder:{images}', *OPTIONS]
  env = {k: v for k, v in environment().items() if not k.startswith(('JAX_COMP', 'JAX_PERS'))}
  env |= {'XDG_CACHE_HOME': str(cache), 'PYTHONHASHSEED': str(seed), **more}
  done = subprocess.run([*command, '--out', str(out)], capture_output=True, text=True, timeout=280, env=env)
  assert (done.returncode, done.stderr.count('\n')) == (0, warnings), done.stderr
  return {k: v for k, v in json.loads((out / 'result.json').read_text()).items() if 'second' not in k}


@pytest.mark.slow
def test_a_second_run_loads_the_programs_of_the_first_and_ends_with_the_same_bits(tiny_model, tiny_images, tmp_path):
  def run(name, seed, **more):
    found = train(tiny_model, tiny_images, tmp_path / name, tmp_path / 'cache', seed, **more)
    return found.pop('data_wait') and found, (tmp_path / name / 'model/model.safetensors').read_bytes()

  entries = lambda: {path.name for path in (tmp_path / 'cache/tlx/compiled').glob('*/*-cache')}
  steps = lambda: {path: path.read_bytes() for path in (tmp_path / 'cache/tlx/compiled').glob('*-steps/*')}
  first, kept, whole = run('first', 1), entries(), steps()
  assert len(whole) == 2  # the step, and a count of FLOPs
  assert run('second', 2) == first
  assert steps() == whole  # another order of sets would have made another program
  programs = lambda names: {name.partition('-')[0] for name in names}
  assert not programs(entries() - kept) & programs(kept)
  largest = max(whole, key=lambda path: len(whole[path]))
  largest.write_bytes(whole[largest][:-1] + b'!')  # a bad disk
  assert run('third', 3, warnings=1) == first and len(largest.read_bytes()) > 1000 and steps() != {}
  assert run('fourth', 4, JAX_ENABLE_COMPILATION_CACHE='false') == first


@pytest.fixture
def shelf(settings, tmp_path, monkeypatch):
  """The folder of steps that this test keeps."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  programs.keep()
  yield compiled_steps.folder()
  reset_cache()


def program(calls):
  calls.append(1)
  return jax.jit(lambda x: jnp.sin(x).sum()).lower(jnp.ones(5)).compile()


def test_a_step_is_built_once_for_its_facts(shelf):
  calls = []
  build = lambda: program(calls)
  values = [compiled_steps.kept(build, *facts)(jnp.ones(5)) for facts in ((1, 'a'), (1, 'a'), (2, 'a'))]
  assert len(calls) == 2 and values[0] == values[1] == values[2] and len(list(shelf.iterdir())) == 2
  assert jax.config.jax_enable_compilation_cache
  assert compiled_steps.kept(build, object()) and compiled_steps.kept(build, object())  # a repr with an address
  assert len(calls) == 4 and len(list(shelf.iterdir())) == 2
  assert compiled_steps.kept(lambda: len, 'pmap gives no program') is len
  counts = [compiled_steps.number(lambda: calls.append(1) or 7.5, 'x') for _ in range(2)]
  assert counts == [7.5, 7.5] and len(calls) == 5


@pytest.mark.parametrize(
  'spoil', [lambda x: x[:20], lambda x: x[:-1], lambda x: x[:99] + b'x' + x[100:], lambda x: b'']
)
def test_a_damaged_step_is_built_again_and_never_unpickled(shelf, spoil, monkeypatch):
  calls, unpickled = [], []
  compiled_steps.kept(lambda: program(calls), 'facts')
  (entry,) = shelf.iterdir()
  entry.write_bytes(spoil(entry.read_bytes()))
  with monkeypatch.context() as patch:
    patch.setattr(compiled_steps.pickle, 'loads', lambda content: unpickled.append(content))
    compiled_steps.kept(lambda: program(calls), 'facts')
  compiled_steps.kept(lambda: program(calls), 'facts')
  assert len(calls) == 2 and not unpickled


def test_the_steps_used_longest_ago_go_first(shelf, monkeypatch):
  for i in range(3):
    compiled_steps.number(lambda i=i: float(i), i)
  oldest = shelf / identity.key(('number', (0,)))
  for age, path in enumerate(sorted(shelf.iterdir(), key=lambda path: path != oldest)):
    os.utime(path, (1e9 + age, 1e9 + age))
  monkeypatch.setattr(compiled_steps, 'LARGEST', 4 * oldest.stat().st_size - 1)
  compiled_steps.number(lambda: 3.0, 3)
  assert not oldest.exists() and len(list(shelf.iterdir())) == 3


def test_a_folder_that_cannot_be_written_keeps_nothing(shelf, monkeypatch):
  monkeypatch.setattr(compiled_steps.files, 'replacing', full_disk)
  assert compiled_steps.number(lambda: 1.0, 'x') == 1.0 and not list(shelf.iterdir())


def full_disk(path):
  raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.slow
def test_the_program_compiled_aside_is_the_one_that_the_next_phase_takes(
  settings, tiny_model, tiny_images, tmp_path, monkeypatch
):
  def entries():
    return {path.name for path in programs.folder().glob('jit_step-*-cache')}

  monkeypatch.setattr(compiled_steps, '_entry', lambda facts: None)  # as beside an accelerator

  def at_once(build):
    before = entries()
    build()
    added.append(entries() - before)

  def run(name):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / name))
    jax.config.update('jax_compilation_cache_dir', None)
    reset_cache()  # JAX opens it once
    jax.clear_caches()
    where = {'model': tiny_model, 'data': f'folder:{tiny_images}', 'out': str(tmp_path / f'{name}_run')}
    options = {'augment': 'light', 'image_size': 32, 'batch_size': 8, 'epochs': 4, 'eval_every': 1}
    tlx.finetune(tlx.Experiment(**where, strategy='gradual', **options))
    return entries()

  added = []
  monkeypatch.setattr(compile_ahead, 'compile_aside', at_once)
  monkeypatch.setattr(compile_ahead, 'gains', lambda: True)
  entries_aside = run('aside')
  monkeypatch.setattr(compile_ahead, 'compile_aside', lambda build: None)
  assert len(added) > 1 and all(added) and len(entries_aside) == len(run('plain'))  # of another one there would be more


def test_what_a_killed_process_left_half_written_goes(settings, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = programs.folder()
  folder.mkdir(parents=True)
  for name in ('half-cache', 'whole-cache', 'whole-atime', 'damaged-cache', 'damaged-atime'):
    (folder / name).write_bytes(zlib.compress(b'x') if name == 'whole-cache' else b'x')
  programs.keep()
  assert 'damaged-cache is damaged; JAX compiles it again' in capsys.readouterr().err
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert {path.name for path in folder.glob('*-cache')} == {'whole-cache'}


def test_a_folder_that_cannot_be_made_and_a_choice_of_the_user_leave_jax_as_it_is(settings, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  (tmp_path / 'file').touch()
  programs.keep()
  assert jax.config.jax_compilation_cache_dir is None
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_compilation_cache_dir', '/elsewhere')
  programs.keep()
  assert jax.config.jax_compilation_cache_dir == '/elsewhere'
