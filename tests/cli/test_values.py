"""Values of options that cannot work: refused at the start, all at once, one line each."""

import pytest

from tlx import pretrained
from tlx.actions import defaults, tasks
from tlx.experiment import Experiment
from tlx.types import UsageError

REFUSED = [
  ({'seed': 2**63}, '--seed 9223372036854775808: must be at most 9,223,372,036,854,775,807'),
  ({'seed': -1}, '--seed -1: must be 0 or more'),
  ({'seed': 1.5}, '--seed 1.5: must be a whole number'),
  ({'randaugment': 1000}, '--randaugment 1000: must be at most 10'),
  ({'image_size': 0}, '--image-size 0: give one or two sides above 0'),
  ({'image_size': 2.5}, '--image-size 2.5: give one or two sides above 0'),
  ({'image_size': 10**6}, '--image-size 1000000: give sides of at most 16,384 pixels'),
  ({'image_size': '1' * 5000}, 'give a side such as 224'),
  ({'epochs': 10**400}, 'must be at most 1,000,000,000'),
  ({'workers': 10**6, 'cache_views': 10**9}, '--cache-views 1000000000: must be at most'),
  ({'lr': float('inf')}, '--lr inf: must be finite'),
]


@pytest.mark.parametrize('options, line', REFUSED, ids=lambda value: str(value)[:40])
def test_impossible_values(options, line):
  with pytest.raises(UsageError) as error:
    defaults.check(Experiment(**options))
  lines = str(error.value).splitlines()
  assert len(lines) == len(options) and any(line in each for each in lines)


def test_largest_values_that_work():
  defaults.check(Experiment(seed=2**63 - 1, randaugment=10, image_size='16x16384'))


@pytest.mark.parametrize('name, size, least', [('vit_test', 7, 16), ('vit_test', 1, 16), ('convnext_test', 15, 32),
                                               ('squeezenet_test', 16, 32), ('mobilenetv1_test', 1, None)])  # fmt: skip
def test_sizes_of_which_nothing_would_be_left(name, size, least):
  check = lambda: tasks.check_input(pretrained.resolve(name), None, (size, size))
  if least is None:
    return check()
  with pytest.raises(UsageError, match=f'--image-size {size}: too small for {name}; next: give {least} or more'):
    check()
