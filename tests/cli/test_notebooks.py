"""The notebooks hold no logic of their own, show their pictures, and run from top to bottom."""

import ast
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat', reason='the extra `notebooks` is not installed')
NOTEBOOKS = sorted((Path(__file__).parents[2] / 'notebooks').glob('*.ipynb'))
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While, ast.If, ast.Try)


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def outputs(notebook):
  return [output for cell in code(notebook) for output in cell.outputs]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
  return nbformat.read(request.param, as_version=4)


def test_there_are_some():
  assert {path.stem for path in NOTEBOOKS} >= {'transfer_learning', 'see_inside'}


def test_no_logic(notebook):
  for cell in code(notebook):
    found = [type(node).__name__ for node in ast.walk(ast.parse(cell.source)) if isinstance(node, LOGIC)]
    assert not found, cell.source


def test_as_it_was_run(notebook):
  """In order, without errors and warnings, and with pictures."""
  assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
  assert not [output for output in outputs(notebook) if output.output_type == 'error' or output.get('name') == 'stderr']
  assert sum('image/png' in output.get('data', {}) for output in outputs(notebook)) >= 3


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_runs_from_top_to_bottom(notebook, tmp_path):
  nbclient = pytest.importorskip('nbclient')
  kinds = lambda: [[output.output_type for output in cell.outputs] != [] for cell in code(notebook)]
  before = kinds()
  nbclient.NotebookClient(notebook, timeout=1200, resources={'metadata': {'path': str(tmp_path)}}).execute()
  assert kinds() == before
