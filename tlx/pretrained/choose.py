"""Chooses the tensors of a file that are the model's, and says which ones are left out."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from tlx import words
from tlx.labels import HEAD
from tlx.types import UsageError, Variables
from tlx.weights import fit, rules
from tlx.weights.contents import Contents, Tensor

OLD_HEAD = (HEAD, 'logits')  # names of modules that a new head replaces
MOST = 64  # prefixes whose shapes are compared; a file of more copies of a model is refused all the same
log = logging.getLogger(__name__)
Tensors = Mapping[str, np.ndarray]


class File(NamedTuple):
  """A file of weights and what the user asks of it."""

  location: str  # without the key
  key: str  # of the tensors that the user chose; '' for the ones that fit
  model: str  # name of the variant
  contents: Contents


def choose(
  file: File,
  tables: Mapping[str, Sequence[rules.Rule]],
  like: Callable[[str], Variables],
  fresh: bool = False,
) -> tuple[str, dict[str, np.ndarray]]:
  """Reads the tensors under the one prefix after which names and shapes fit.

  Args:
    file: the file.
    tables: of the model, by layout.
    like: layout -> the model's variables, shapes only; it is called if several prefixes fit by name.
    fresh: whether the model gets a new head, so that the file's does not count.

  Returns:
    The layout, and {name without the prefix: array}.

  Raises:
    WeightMismatchError: if no prefix fits.
    UsageError: if several fit equally.
  """
  wanted = {layout: [rule.source for rule in table if _needed(rule)] for layout, table in tables.items()}
  found = fit.places(file.contents.tensors, wanted)
  good = [place for place in found if 2 * place.shared >= place.wanted]
  if not good:
    raise _foreign(file, found[0].shared if found else 0, file.contents.tensors)
  if file.key:
    good = fit.under(file.key, good) or _no_key(file, good)
  best = _best(file, good[:MOST], tables, like, fresh) if good[1:] else good
  place = _the_one(file, best)
  taken = _under(file, place.prefix)
  _say(file, place, [other for other in best if other != place], taken)
  return place.layout, file.contents.read(taken)


def _in_head(rule: rules.Rule) -> bool:
  return rule.target is not None and not {*OLD_HEAD, 'aux'}.isdisjoint(rule.target.split('/'))


def _needed(rule: rules.Rule) -> bool:
  return rule.target is not None and rule.absent is None


def _under(file: File, prefix: str) -> dict[str, Tensor]:
  """{name without the prefix: tensor}."""
  return {name[len(prefix) :]: x for name, x in file.contents.tensors.items() if name.startswith(prefix)}


def _best(
  file: File,
  places: list[fit.Place],
  tables: Mapping[str, Sequence[rules.Rule]],
  like: Callable[[str], Variables],
  fresh: bool,
) -> list[fit.Place]:
  """The places that fit best by names and shapes, without repetitions of the same tensors."""
  counts, bodies = [], []
  for place in places:
    shapes = {name: tuple(x.shape) for name, x in _under(file, place.prefix).items()}
    table = [rule for rule in tables[place.layout] if rule.target]
    body = [rule for rule in table if not _in_head(rule)]  # the shapes of the head depend on the number of classes
    head = 0 if fresh else sum(rule.source in shapes for rule in table if _in_head(rule))
    counts.append(head + fit.fitting(shapes, body, like(place.layout)))
    bodies.append([place.prefix + rule.source for rule in body if rule.source in shapes])
  best: list[fit.Place] = []
  kept: list[list[str]] = []
  for place, count, names in zip(places, counts, bodies):
    if count == max(counts) and not any(_same(file, names, other) for other in kept):
      best.append(place)
      kept.append(names)
  return best


def _same(file: File, one: list[str], two: list[str]) -> bool:
  """Whether two layouts read the same tensors, or two prefixes have tensors of the same values."""
  tensors = file.contents.tensors
  equal = lambda x, y: x is y or (np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y)
  return set(one) == set(two) or (len(one) == len(two) and all(equal(tensors[x], tensors[y]) for x, y in zip(one, two)))


def _the_one(file: File, best: list[fit.Place]) -> fit.Place:
  """The only place, or the one that timm would load."""
  as_timm = [place for place in best if file.contents.preferred and place.prefix.startswith(file.contents.preferred)]
  chosen = best if not best[1:] else as_timm
  if len(chosen) == 1:
    return chosen[0]
  listed = ', '.join(repr(_key(place)) for place in best[:5]) + (', ...' if best[5:] else '')
  raise UsageError(
    f'{words.shown(file.location)}: the tensors under each of {listed} fit {file.model} equally well; '
    f'next: choose one, such as --weights {words.shown(f"{file.location}:{_key(best[0])}")}'
  )


def _key(place: fit.Place) -> str:
  """What the user types for a place."""
  return place.prefix.rstrip('./') or '.'


def _say(file: File, place: fit.Place, equal: list[fit.Place], taken: Mapping[str, Tensor]) -> None:
  if not place.prefix:
    return
  text = f'{file.location}: tensors under {place.prefix!r} are taken'
  if others := [name for name in file.contents.tensors if not name.startswith(place.prefix)]:
    text += f'; {len(others)} other{"s are" if others[1:] else " is"} left out: {_some(others)}'
  if equal:
    also = ' and '.join(repr(other.prefix) for other in equal[:3])
    text += f'; those under {also} fit as well: --weights {file.location}:{_key(equal[0])}'
  log.warning('%s', words.shown(text))


def say_old_head(file: File, old: Mapping[str, tuple[int, ...]], has_head: bool) -> None:
  """Says which tensors of the file's head are left out."""
  if old:
    (name, shape), more = next(iter(old.items())), f' and {len(old) - 1} more' if len(old) > 1 else ''
    why = 'this run has a fresh head' if has_head else 'no head was asked for'
    text = f'{file.location}: the head of the file, {name} {shape}{more}, is left out: {why}'
    log.warning('%s', words.shown(text))


def _some(names: Iterable[str]) -> str:
  names = list(names)
  return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _foreign(file: File, shared: int, names: Iterable[str]) -> rules.WeightMismatchError:
  return rules.WeightMismatchError(
    words.shown(
      f'{file.location} -> {file.model}: weights of another architecture, which share {shared} tensor names with it '
      f'(they hold {_some(names) or "nothing"}); choose the model that they belong to'
    )
  )


def _no_key(file: File, good: list[fit.Place]) -> NoReturn:
  near = words.did_you_mean(file.key, [_key(place) for place in good])
  there = ', '.join(repr(_key(place)) for place in good[:5])
  raise UsageError(
    words.shown(f'{file.location}: no tensors under {file.key!r} fit {file.model}{near}; those under {there} do')
  )
