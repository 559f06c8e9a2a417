"""The table of a file that holds a backbone and a head, from the backbone's own table and the head's."""

from collections.abc import Collection, Iterable
from typing import Any

from tlx.labels import HEAD, layer_of
from tlx.types import WholeLayout
from tlx.weights.rules import Rule


def table(
  layout: WholeLayout, backbone: Iterable[Rule], head: Any, layers: Collection[str] | None = None
) -> tuple[Rule, ...]:
  """One rule for each tensor of the file.

  Args:
    layout: how the library names the two.
    backbone: the backbone's table in the layout `layout.backbone`; its classifier is left out.
    head: the head's module.
    layers: the backbone's layers that the model has, None for all; tensors of others are dropped, and so kept for
      writing.
  """
  rules = []
  for rule in backbone:
    layer = rule.target and layer_of(rule.target.partition('/')[2])
    if layer != HEAD:
      source = layout.prefix + layout.rename(rule.source)
      rules.append(rule._replace(source=source, target=rule.target if layers is None or layer in layers else None))
  return (*rules, *layout.head(head))
