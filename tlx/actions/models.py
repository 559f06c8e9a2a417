"""`tlx models`: what models there are, and what each layer of one costs."""

import fnmatch
import math
import re
from collections.abc import Mapping
from typing import Any

from tlx import catalog, pretrained, words
from tlx.cost import flops
from tlx.types import Preprocess, UsageError


def model_table(
  pattern: str = '*', *, sort: str = 'name', max_parameters: float | None = None, license: str | None = None
) -> list[dict[str, Any]]:
  """One row a model: what its family states of it, its licence, and where its weights come from; None = unknown.

  sort: a key of the rows; the most accurate comes first, else the smallest, and what is unknown last. license: a shell
  pattern, whatever the case. Raises UsageError where no model fits.
  """
  names = catalog.list_models(pattern)
  if not names:
    raise UsageError(f'no model fits {pattern!r}{words.suggest(pattern, catalog.list_models())}')
  rows = [_model_row(catalog.variant(name)) for name in names]
  if license:
    known = {row['license'] or 'none' for row in rows}
    rows = [row for row in rows if fnmatch.fnmatch((row['license'] or 'none').lower(), license.lower())]
    if not rows:
      raise UsageError(f'no model fits --license {license}{words.suggest(license, sorted(known))}')
  if max_parameters is not None:
    least = min(row['parameters'] or math.inf for row in rows)
    rows = [row for row in rows if (row['parameters'] or math.inf) <= max_parameters]
    if not rows:
      raise UsageError(f'no model fits --max-parameters {max_parameters:,.0f}; the smallest here has {least:,}')
  return sorted(rows, key=lambda row: _rank(row, sort))


def layer_table(name: str) -> list[dict[str, Any]]:
  """One row a layer of a model, in order, the head last: its output for one image of the native size, and its cost."""
  variant = catalog.variant(name)
  costs = flops.layers(pretrained.build(variant, 1000), _model_row(variant)['size'])
  return [
    {'layer': c.name, 'output': c.shape, 'parameters': c.parameters, 'gmacs': c.multiply_adds / 1e9} for c in costs
  ]


def _model_row(variant: catalog.Variant) -> dict[str, Any]:
  figures, checkpoint = getattr(variant.family, 'FIGURES', {}).get(variant.name), variant.checkpoint
  native = checkpoint.preprocess.size if checkpoint else Preprocess().size
  return {
    'name': variant.name,
    'parameters': figures and figures.parameters,
    'gmacs': figures and figures.gmacs,
    'size': figures.size if figures else variant.config.size or native,
    'top1': figures and figures.top1,
    'license': checkpoint and checkpoint.license,
    'source': checkpoint and checkpoint.location,
  }


def _rank(row: Mapping[str, Any], key: str) -> tuple:
  """Of a row among others: by the value, then by the name with its numbers read as numbers."""
  value = row[key] if key != 'name' else 0
  name = [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', row['name'])]
  return value is None, -(value or 0) if key == 'top1' else value or 0, name
