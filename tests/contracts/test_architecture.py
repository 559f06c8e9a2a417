"""Imports go down only, machinery never imports an alternative, and nothing heavy or foreign comes along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALTERNATIVES = {'models', 'heads', 'strategies', 'tasks', 'datasets'}
FLOORS = (  # from the ground up: a room imports rooms of its own floor and of those below
  ('', 'types', 'trees', 'files', 'words', 'processes', 'labels', 'schedules', 'metrics'),
  ('nn', 'weights', 'data'),
  (*ALTERNATIVES, 'train', 'prefix', 'cost', 'evaluate', 'explain', 'report', 'cache'),
  ('catalog', 'pretrained', 'experiment'),
  ('actions',),
  ('cli', '__main__'),
)
LEVELS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOT_MODULES = 14  # of `tlx/`: nouns and the way in
FILES = sorted(ROOT.glob('tlx/**/*.py'))


def imports(path: Path) -> set[str]:
  """Dotted names that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def room(dotted: str) -> str:
  """'tlx.nn.conv.Conv' -> 'nn'."""
  return [*dotted.split('.'), ''][1]


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
  own = path.relative_to(ROOT / 'tlx').parts[0].removesuffix('.py')
  if own == '__init__':
    return  # the public names, loaded lazily
  ours = {name for name in imports(path) if name.split('.')[0] == 'tlx' and room(name) in LEVELS}
  above = {name for name in ours if LEVELS[room(name)] > LEVELS[own]}
  assert not above, f'{own} (level {LEVELS[own]}) imports {above}'
  siblings = {name for name in ours if room(name) in ALTERNATIVES}
  if own in ALTERNATIVES:  # an alternative may be a folder, whose files know one another
    kind, name = path.relative_to(ROOT / 'tlx').parts[:2]
    inside = {other for other in siblings if other.split('.')[1:3] == [kind, name]}
    heads = {other for other in siblings if kind == 'tasks' and room(other) == 'heads'}  # a task may use heads
    assert not siblings - inside - heads, f'alternatives import one another: {siblings - inside - heads}'
  elif LEVELS[own] < LEVELS['catalog']:
    assert not siblings, f'machinery imports an alternative: {siblings}'


def test_every_room_has_a_level():
  rooms = {path.relative_to(ROOT / 'tlx').parts[0].removesuffix('.py') for path in FILES} - {'__init__'}
  assert rooms <= set(LEVELS)


def test_the_root_holds_nouns_and_the_way_in():
  assert len([path for path in FILES if path.parent == ROOT / 'tlx']) <= ROOT_MODULES


def test_no_torch_and_no_tensorflow_anywhere():
  named = {
    (path.name, name)
    for path in FILES
    for name in imports(path)
    if name.split('.')[0] in ('torch', 'tensorflow', 'timm', 'torchvision')
  }
  assert not named


def test_importing_everything_brings_nothing_foreign():
  code = (
    'import sys, tlx.actions.finetune, tlx.cli.main\n'
    'print([m for m in ("torch", "tensorflow", "matplotlib", "transformers", "sklearn") if m in sys.modules])'
  )
  found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
  assert found.stdout.strip() == '[]'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_and_stays_readable(path):
  tree = ast.parse(path.read_text())
  assert ast.get_docstring(tree), 'no module docstring'
  assert len(path.read_text().splitlines()) <= 350
