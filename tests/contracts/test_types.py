"""A type checker sees the public surface as it is: right calls pass, wrong ones are reported, tlx's own are clean."""

import ast
import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tlx

ROOT = Path(__file__).parents[2]
RIGHT = """
import jax.numpy as jnp
import tlx

names: list[str] = tlx.list_models('resnet*')
pretrained: tlx.Pretrained = tlx.load(names[0], num_classes=37)
module, variables, *_ = pretrained
logits = module.apply(variables, jnp.zeros((1, 224, 224, 3)))
features = tlx.features(module, variables, jnp.zeros((1, 224, 224, 3)))
data: tlx.Dataset = tlx.load_dataset('folder:pets')
classes: tuple[str, ...] = data.info.class_names
result: tlx.Result = tlx.finetune(tlx.Experiment(data='folder:pets', epochs=3), quiet=True)
tlx.save('out/', result.pretrained)
tlx.save('out/', module, variables, class_names=classes)
"""
WRONG = (
  'tlx.load(3)',
  'tlx.lod("resnet50")',
  'tlx.load("resnet50", classes=3)',
  'tlx.finetune(epochs=3)',
  'tlx.finetune("resnet50")',
  'tlx.Experiment(epoch=3)',
  'tlx.Experiment(optimizer="adam")',
  'tlx.Experiment(task=3)',
  'tlx.save("out/", 3)',
  'tlx.load_dataset(3)',
  'tlx.list_models("resnet*").keys()',
  'tlx.Preprocess(sise=224)',
)


@pytest.fixture(scope='module')
def reported(tmp_path_factory) -> dict[str, dict[int, str]]:
  """{file: {line: what mypy says of it}} of tlx, of RIGHT and of WRONG, in one run."""
  pytest.importorskip('mypy')
  folder = tmp_path_factory.mktemp('types')
  (folder / 'right.py').write_text(RIGHT)
  (folder / 'wrong.py').write_text('\n'.join(['import tlx', *WRONG, '']))
  options = ('--config-file', ROOT / 'pyproject.toml', '--cache-dir', folder / 'cache', '--no-error-summary')
  command = [sys.executable, '-m', 'mypy', *options, 'tlx', folder / 'right.py', folder / 'wrong.py']
  env = {name: value for name, value in os.environ.items() if name != 'MYPYPATH'}
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
  assert not done.stderr and done.returncode == 1, done.stderr or done.stdout
  found: dict[str, dict[int, str]] = {}
  for line in done.stdout.splitlines():
    path, number, kind, text = line.split(':', 3)
    if kind.strip() == 'error':
      found.setdefault(Path(path).name if Path(path).is_absolute() or '..' in path else path, {})[int(number)] = text
  return found


def test_the_public_surface_of_tlx_is_clean(reported):
  assert {path: lines for path, lines in reported.items() if path not in ('right.py', 'wrong.py')} == {}


def test_a_user_script_passes(reported):
  assert reported.get('right.py', {}) == {}


def test_wrong_calls_are_reported(reported):
  missed = [call for i, call in enumerate(WRONG) if i + 2 not in reported['wrong.py']]
  assert not missed


def test_a_type_checker_and_python_import_the_same_names():
  tree = ast.parse(Path(tlx.__file__).read_text())
  checked = {}
  for node in next(node for node in tree.body if isinstance(node, ast.If)).body:
    checked |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
  assert set(checked) == set(tlx.__all__) - {'__version__'} == set(tlx._HOMES)
  for name, (module, attribute) in checked.items():
    assert getattr(tlx, name) is getattr(importlib.import_module(module), attribute)


def test_the_marker_file_is_packaged():
  packaged = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['package-data']['tlx']
  assert 'py.typed' in packaged and (ROOT / 'tlx' / 'py.typed').is_file()
