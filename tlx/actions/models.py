"""`tlx models`: lists the models, or the layers of one model with their cost."""

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
  """Lists models, one row per model: their figures, licence and source of weights. None means unknown.

  The figures of segmenters are unknown here, because counting takes seconds; see `with_layers`.

  Args:
    pattern: shell pattern of names.
    sort: key of the rows. 'top1' puts the most accurate first, other keys the smallest; unknown values come last.
    max_parameters: leaves out larger models.
    license: shell pattern of licences; upper and lower case are equal.

  Returns:
    The rows.

  Raises:
    UsageError: if no model matches.
  """
  names = catalog.list_models(pattern)
  if not names:
    raise UsageError(f'no model matches {pattern!r}{words.suggest(pattern, catalog.list_models())}')
  rows = [_row(name) for name in names]
  if license:
    known = {row['license'] or 'none' for row in rows}
    rows = [row for row in rows if fnmatch.fnmatch((row['license'] or 'none').lower(), license.lower())]
    if not rows:
      raise UsageError(f'no model matches --license {license}{words.suggest(license, sorted(known))}')
  if max_parameters is not None:
    least = min(row['parameters'] or math.inf for row in rows)
    rows = [row for row in rows if (row['parameters'] or math.inf) <= max_parameters]
    if not rows:
      raise UsageError(f'no model fits --max-parameters {max_parameters:,.0f}; the smallest here has {least:,}')
  return sorted(rows, key=lambda row: _rank(row, sort))


def with_layers(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """A row of `model_table` whose unknown figures are counted, and the layers of the model."""
  layers = layer_table(row['name'])
  counted = {key: sum(layer[key] for layer in layers) for key in ('parameters', 'gmacs') if row[key] is None}
  return {**row, **counted}, layers


def layer_table(name: str) -> list[dict[str, Any]]:
  """Lists the layers of a model in order, the head last: output shape and cost for one image of the native size."""
  found = pretrained.resolve(name)
  classes = found.whole.num_classes if found.whole else 1000
  costs = flops.layers(pretrained.build(found.variant, classes, head=found.head), _row(name)['size'])
  return [
    {'layer': c.name, 'output': c.shape, 'parameters': c.parameters, 'gmacs': c.multiply_adds / 1e9} for c in costs
  ]


def _row(name: str) -> dict[str, Any]:
  """The row of a backbone, or of a backbone that was trained together with a head."""
  if name in catalog.variants():
    return _model_row(catalog.variant(name))
  _, whole = catalog.wholes()[name]
  row = _model_row(catalog.variant(whole.backbone))
  made, checkpoint = dict.fromkeys(('parameters', 'gmacs', 'top1')), whole.checkpoint
  shape = checkpoint.preprocess.shape if checkpoint else (row['size'],)
  about = {'license': checkpoint and checkpoint.license, 'source': (checkpoint and checkpoint.location) or None}
  return {**row, **made, 'name': name, 'size': max(shape), **about}


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
  """Sort key of a row: the value, then the name, with its numbers compared as numbers."""
  value = row[key] if key != 'name' else 0
  name = [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', row['name'])]
  return value is None, -(value or 0) if key == 'top1' else value or 0, name
