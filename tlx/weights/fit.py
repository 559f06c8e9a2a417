"""Finds the tensors of a model in a file: the prefix after which names and shapes fit a table of rules."""

import collections
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tlx import trees
from tlx.types import Variables
from tlx.weights.rules import Rule, by_target, joined

ENDINGS = ('.pth', '.pt', '.ckpt', '.bin', '.tar', '.safetensors', '.npz')
LARGEST = 2**32  # elements of a tensor; a file may declare any number
BORDER = re.compile(r'[^A-Za-z0-9_]')  # a prefix ends with such a character: '.' of torch, '/' of npz files


class Place(NamedTuple):
  """Tensors of a file that may be a model's: those under a prefix, with the names of a layout."""

  prefix: str  # '' for the file itself
  layout: str
  shared: int  # how many names of the layout it has
  wanted: int  # how many there are


def places(names: Iterable[str], tables: Mapping[str, Collection[str]]) -> list[Place]:
  """Lists the prefixes after which at least one name is in a table, the one with the most names first.

  Args:
    names: of the file's tensors.
    tables: layout -> names that it needs. Of several layouts that fit a prefix equally, the first counts.

  Returns:
    One place for each prefix.

  Examples:
    >>> places(['n', 'net.a', 'net.b', 'old.a'], {'timm': ['a', 'b']})[0]
    Place(prefix='net.', layout='timm', shared=2, wanted=2)
  """
  layouts: dict[str, list[str]] = {}  # name -> the layouts that need it
  for layout, wanted in tables.items():
    for name in set(wanted):
      layouts.setdefault(name, []).append(layout)
  longest = max(map(len, layouts), default=0)
  shared: collections.Counter[tuple[str, str]] = collections.Counter()
  for name in names:
    for cut in _cuts(name, longest):
      shared.update((name[:cut], layout) for layout in layouts.get(name[cut:], ()))
  order = {layout: i for i, layout in enumerate(tables)}
  best: dict[str, Place] = {}
  for (prefix, layout), count in sorted(shared.items(), key=lambda item: order[item[0][1]]):
    if prefix not in best or count > best[prefix].shared:
      best[prefix] = Place(prefix, layout, count, len(set(tables[layout])))
  return sorted(best.values(), key=lambda place: (-place.shared, len(place.prefix)))


def split_key(location: str) -> tuple[str, str]:
  """Splits FILE:KEY. A path that exists, an address and a hub's name without a file keep their colons.

  Args:
    location: of weights, as the user writes it.

  Returns:
    (location, key); the key is '' if there is none.

  Examples:
    >>> split_key('last.pth:state_dict_ema'), split_key('https://host:80/last.pth:model.net')
    (('last.pth', 'state_dict_ema'), ('https://host:80/last.pth', 'model.net'))
    >>> split_key('https://host:80/last.pth'), split_key('hf-hub:timm/resnet18.a1_in1k')
    (('https://host:80/last.pth', ''), ('hf-hub:timm/resnet18.a1_in1k', ''))
  """
  file, colon, key = location.rpartition(':')
  if not colon or not key or '/' in key or pathlib.Path(location).expanduser().exists():
    return location, ''
  is_file = file.endswith(ENDINGS) or ('://' not in file and pathlib.Path(file).expanduser().exists())
  return (file, key) if is_file else (location, '')


def under(key: str, found: Iterable[Place]) -> list[Place]:
  """Selects the places that the user names: by the beginning of the prefix, or else by a part such as 'teacher'.

  Args:
    key: 'state_dict', 'model.teacher', or '.' for tensors without a prefix.
    found: the places.

  Returns:
    Those places.
  """
  dotted = {place: '.' + place.prefix.replace('/', '.') for place in found}
  sought = '.' + key.strip('./').replace('/', '.') + '.' if key.strip('./') else ''
  if not sought:
    return [place for place in dotted if not place.prefix]
  return [place for place, at in dotted.items() if at.startswith(sought)] or [
    place for place, at in dotted.items() if sought in at
  ]


def _cuts(name: str, longest: int) -> Iterator[int]:
  """Where a prefix of the name may end: at its beginning and after each border, if what follows is not too long."""
  start = max(0, len(name) - longest - 1)
  if len(name) <= longest:
    yield 0
  yield from (found.end() for found in BORDER.finditer(name, start) if found.end() < len(name))


def fitting(shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule], like: Variables) -> int:
  """Counts the leaves of a model that tensors of these shapes would fill.

  Args:
    shapes: {name of a tensor: its shape}.
    rules: the table.
    like: variables of the model, or some of them.

  Returns:
    Number of leaves.
  """
  wanted = trees.flatten(like)
  small = {name: shape for name, shape in shapes.items() if math.prod(shape) < LARGEST}
  zeros = {name: np.broadcast_to(np.zeros((), np.int8), shape) for name, shape in small.items()}
  return sum(
    path in wanted and all(rule.source in zeros for rule in parts) and joined(parts, zeros, wanted[path]) is not None
    for path, parts in by_target(rules).items()
  )


def replaced(names: Iterable[str], rules: Sequence[Rule], fresh: Sequence[str]) -> list[str]:
  """Selects the tensors of the modules that are replaced, also of those whose form the user changed.

  A changed module lies below the table's name for it, such as 'fc.1.weight' for 'fc.weight', or after it in the same
  sequence of layers, such as 'classifier.7.weight' for 'classifier.6.weight'.

  Args:
    names: of the file's tensors.
    rules: the table.
    fresh: names of the modules, as for `rules.read`.

  Returns:
    Those names.
  """
  is_fresh = lambda rule: rule.target is not None and not set(fresh).isdisjoint(rule.target.split('/'))
  others = {start for rule in rules if not is_fresh(rule) for start in _starts(rule.source)}
  alone = ([start for start in _starts(rule.source) if start not in others] for rule in rules if is_fresh(rule))
  regions = {starts[0] for starts in alone if starts}
  sequences = [found.groups() for region in regions if (found := re.fullmatch(r'(.*[./])(\d+)[./]', region))]

  def follows(name: str, parent: str, last: str) -> bool:
    starts = _starts(name.removeprefix(parent)) if name.startswith(parent) else []
    if not starts or parent + starts[0] in others:
      return False
    layer = starts[0][:-1]
    return not layer.isdecimal() or int(layer[:9]) > int(last[:9])

  return [
    name
    for name in names
    if name.startswith(tuple(regions)) or any(follows(name, parent, last) for parent, last in sequences)
  ]


def _starts(name: str) -> list[str]:
  """The beginnings of a name, from short to long: 'head.fc.weight' has 'head.' and 'head.fc.'."""
  return [name[: found.end()] for found in re.finditer('[./]', name)]
