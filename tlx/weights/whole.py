"""Makes the table of a file with a backbone and a head from the tables of the two."""

from collections.abc import Iterable
from typing import Any

from tlx.labels import HEAD, layer_of
from tlx.types import WholeLayout
from tlx.weights.rules import Rule


def table(layout: WholeLayout, backbone: Iterable[Rule], head: Any) -> tuple[Rule, ...]:
  """Makes one rule for each tensor of the file.

  Args:
    layout: how the library names backbone and head.
    backbone: the backbone's table in the layout `layout.backbone`; its classifier is left out.
    head: the head's module.

  Returns:
    The rules.
  """
  mine = [rule for rule in backbone if not (rule.target and layer_of(rule.target.partition('/')[2]) == HEAD)]
  name = lambda source: layout.prefix + layout.rename(source.removeprefix(layout.strip))
  return (*(rule._replace(source=name(rule.source)) for rule in mine), *layout.head(head))
