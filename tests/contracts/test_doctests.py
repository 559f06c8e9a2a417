"""The examples in the docstrings of tlx give the results that they state."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import tlx

ROOT = Path(tlx.__file__).parent
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def source(name: str) -> str:
  path = ROOT.joinpath(*name.split('.')[1:])
  return (path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text()


NAMES = [module.name for module in pkgutil.walk_packages([str(ROOT)], 'tlx.')]
WITH_EXAMPLES = [name for name in NAMES if '>>> ' in source(name)]


@pytest.mark.parametrize('name', WITH_EXAMPLES)
def test_examples(name):
  try:
    module = importlib.import_module(name)
  except ImportError as error:
    if (error.name or '').split('.')[0] == 'tlx':
      raise
    pytest.skip(f'{name} needs {error.name}')
  found = doctest.testmod(module, optionflags=FLAGS)
  assert found.attempted and not found.failed, f'{found.failed} of {found.attempted} examples fail; see the output'


def test_some_modules_have_examples():
  assert len(WITH_EXAMPLES) >= 10
