"""FLOPs of a compiled program. The compiler counts the body of a loop once; this file adds the other iterations."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

_COMPUTATION = re.compile(r'^(ENTRY )?%(\S+) \(.*\{$')
_RESULT = re.compile(r'%(\S+) = \w+\[([\d,]*)\]')
_PRODUCT = re.compile(r'%(\S+) = .* dot\(%(\S+), .*lhs_contracting_dims=\{([\d,]*)\}')
_CALLED = re.compile(r'(?:calls|to_apply|body)=%([^\s,)]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Computation(NamedTuple):
  """One function of the program."""

  products: int  # FLOPs of its own matrix products
  calls: tuple[tuple[str, int], ...]  # (computation it calls, number of calls)


def flops(program: jax.stages.Compiled) -> float:
  """FLOPs per device. The matrix products in loops of known length count once per iteration."""
  found = program.cost_analysis()
  return (found[0] if isinstance(found, list) else found)['flops'] + repeated_products(program.as_text())


def repeated_products(text: str) -> int:
  """FLOPs of matrix products in all loop iterations after the first, found in the text of an HLO module."""
  computations, entry = {}, ''
  for is_entry, name, lines in _computations(text):
    computations[name] = _read(lines)
    entry = name if is_entry else entry

  def total(name: str, loops: bool) -> int:
    here = computations[name]
    return here.products + sum((trips if loops else 1) * total(other, loops) for other, trips in here.calls)

  return total(entry, True) - total(entry, False)


def _computations(text: str) -> Iterator[tuple[bool, str, list[str]]]:
  """Yields (whether it is the entry, name, instructions) of each computation."""
  header, lines = None, []
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      header, lines = found, []
    elif line == '}' and header:
      yield bool(header[1]), header[2], lines
    else:
      lines.append(line)


def _read(lines: list[str]) -> Computation:
  shapes = {m[1]: [int(n) for n in m[2].split(',') if n] for m in map(_RESULT.search, lines) if m}
  products, calls = 0, []
  for line in lines:
    if product := _PRODUCT.search(line):
      summed = [shapes[product[2]][int(axis)] for axis in product[3].split(',') if axis]
      products += 2 * math.prod(shapes[product[1]]) * math.prod(summed)
    trips = _TRIPS.search(line)
    calls += [(name, int(trips[1]) if trips else 1) for name in _CALLED.findall(line)]
  return Computation(products, tuple(calls))
