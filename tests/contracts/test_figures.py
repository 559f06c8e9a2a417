"""What every family states of its variants is what its models are.

A trace takes 0.4 seconds of processor time (0.04 to 1.4; parameters alone take as long), so the smallest variant of
each family is traced and the others belong to the full matrix. A new family's FIGURES can be copied from the failures'
messages.
"""

import pytest

from tlx import catalog, pretrained
from tlx.cost import flops
from tlx.nn import conv
from tlx.types import Figures

DIGITS = 3  # of gmacs
NAMES = {
  family: sorted(name for name in catalog.find('models', family).VARIANTS if not name.endswith('_test'))
  for family in catalog.names('models')
}
SMALLEST = {
  family: min(names, key=lambda name: figures[name].parameters if name in figures else 0)
  for family, names in NAMES.items()
  for figures in [getattr(catalog.find('models', family), 'FIGURES', {})]
}


def counted(variant: catalog.Variant) -> Figures:
  """The variant's figures with what can be counted, counted."""
  native = variant.config.size or (variant.checkpoint and variant.checkpoint.preprocess.size)
  stated = catalog_figures(variant) or Figures(0, 0, native or 224)
  parameters, total = flops.model_cost(pretrained.build(variant, 1000), stated.size)
  return stated._replace(parameters=parameters, gmacs=round(total / 1e9, DIGITS))


def catalog_figures(variant: catalog.Variant) -> Figures | None:
  return getattr(variant.family, 'FIGURES', {}).get(variant.name)


def check(name: str) -> None:
  variant = catalog.variant(name)
  expected = counted(variant)
  line = f'{name!r}: Figures({expected.parameters:_}, {expected.gmacs:.{DIGITS}f}, {expected.size}, {expected.top1}),'
  assert catalog_figures(variant) == expected, f'the FIGURES of {variant.family.__file__} need\n  {line}'


@pytest.mark.full
@pytest.mark.parametrize('name', [name for names in NAMES.values() for name in names])
def test_figures_are_the_models(name, monkeypatch):
  # One of a convolution's forms is traced, not all: half the time.
  monkeypatch.setattr(conv, 'by_platform', lambda cpu, library, a, b, *static: library(a, b, *static))
  check(name)


@pytest.mark.parametrize('family', NAMES)
def test_every_form_of_a_convolution_gives_the_same_figures(family):
  """Of the smallest variant, with a form for each platform."""
  check(SMALLEST[family])


@pytest.mark.parametrize('family', NAMES)
def test_figures_are_plausible(family):
  module = catalog.find('models', family)
  assert sorted(module.FIGURES) == NAMES[family]
  for name, figures in module.FIGURES.items():
    assert figures.size == (module.VARIANTS[name].size or figures.size)
    assert figures.top1 is None or (name in module.CHECKPOINTS and 40 < figures.top1 < 95)
