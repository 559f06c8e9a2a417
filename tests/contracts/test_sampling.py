"""The share of the full matrix that a commit draws: the same for the same commit, and in the end every test."""

from fractions import Fraction

import pytest
import sampling

pytest_plugins = ['pytester']
SHARE = Fraction(1, 6)
TESTS = [f'tests/test_models.py::test_it[{i}]' for i in range(300)]
COMMITS = [f'{i:040x}' for i in range(200)]
MATRIX = """
import pytest

@pytest.mark.parametrize('i', range(40))
@pytest.mark.full
def test_drawn(i): pass

@pytest.mark.parametrize('kind', [pytest.param(k, marks=pytest.mark.xdist_group(f'group{k}')) for k in range(20)])
@pytest.mark.parametrize('i', range(3))
@pytest.mark.full
def test_together(i, kind): pass

def test_always(): pass
"""


def test_a_commit_draws_its_share_of_the_tests_and_a_test_its_share_of_the_commits():
  chosen = {commit: {test for test in TESTS if sampling.drawn(commit, test, SHARE)} for commit in COMMITS}
  counts = [len(tests) for tests in chosen.values()]
  deviation = (len(TESTS) * SHARE * (1 - SHARE)) ** 0.5  # 6.5 of 50
  assert abs(sum(counts) / len(counts) - len(TESTS) * SHARE) < 5 * deviation / len(COMMITS) ** 0.5
  assert all(abs(count - len(TESTS) * SHARE) < 5 * deviation for count in counts)
  missing, left = [], set(TESTS)
  for commit in COMMITS:
    left -= chosen[commit]
    missing.append(len(left))
  assert not left  # after 200 commits none is left of which one would be with a probability of 1e-13
  for after in (1, 6, 12):  # 250, 101 and 34 are expected
    expected = (1 - SHARE) ** after
    assert abs(missing[after - 1] - len(TESTS) * expected) < 5 * (len(TESTS) * expected * (1 - expected)) ** 0.5


def test_what_is_drawn_depends_on_the_commit_and_the_name_alone():
  of = lambda commit, tests: [test for test in tests if sampling.drawn(commit, test, SHARE)]
  first, second = COMMITS[:2]
  assert of(first, TESTS[:50]) == of(first, TESTS)[: len(of(first, TESTS[:50]))]
  assert of(first, TESTS) != of(second, TESTS)
  assert set(of(first, TESTS)) < {test for test in TESTS if sampling.drawn(first, test, Fraction(1, 3))}
  assert not of(first, TESTS) or all(sampling.drawn(first, test, Fraction(1)) for test in TESTS)


@pytest.fixture
def pytest_run(pytester, monkeypatch):
  """A function of options: the result of pytest over the matrix, with the tests that ran."""
  pytester.makepyfile(test_matrix=MATRIX)
  pytester.makeini('[pytest]\nmarkers =\n  full\n  xdist_group')
  monkeypatch.setenv(sampling.VARIABLE, 'a')

  def call(*options):
    monkeypatch.setenv(sampling.VARIABLE, call.seed)
    result = pytester.runpytest_inprocess('-p', 'sampling', '-p', 'no:xdist', '-v', *options)
    return result, {line.split()[0] for line in result.outlines if ' PASSED' in line}

  call.seed = 'a'
  return call


def test_pytest_runs_the_share_and_says_how_to_repeat_it(pytest_run):
  result, ran = pytest_run('--sample', '1/4')
  assert 'test_matrix.py::test_always' in ran and 10 < len(ran) < 50
  assert 'sample: 1/4 of the tests marked full; the same ones again: TLX_SAMPLE=a pytest -m "" --sample 1/4' in (
    result.outlines
  )
  for kind in range(20):  # tests that share a fixture are drawn together
    assert len([name for name in ran if 'test_together' in name and name.endswith(f'-{kind}]')]) in (0, 3)
  assert pytest_run('--sample', '1/4')[1] == ran
  pytest_run.seed = 'b'
  assert pytest_run('--sample', '1/4')[1] != ran
  assert len(pytest_run('-m', 'full')[1]) == 100 and len(pytest_run('--sample', '1')[1]) == 101


@pytest.mark.parametrize('share', ['0', '7/6', 'some', '1/0', '-1/6'])
def test_a_share_that_is_none_is_refused(pytest_run, share):
  result, ran = pytest_run(f'--sample={share}')
  assert result.ret == pytest.ExitCode.USAGE_ERROR and not ran
  assert f'--sample {share}: expected a share above 0 and up to 1, such as 1/6' in '\n'.join(result.errlines)


def test_without_a_commit_the_variable_is_asked_for(monkeypatch):
  monkeypatch.delenv(sampling.VARIABLE, raising=False)
  monkeypatch.setenv('PATH', '')
  with pytest.raises(pytest.UsageError, match='git names no commit here; choose a draw with TLX_SAMPLE=WORD'):
    sampling.seed()
