"""Reads the fields of a parsed JSON object and collects what is wrong with them, so that one error lists it all."""

import json
import math
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tlx import words

SIDE = 4096  # largest height and width of an input, pixels; published backbones stop at 2048
RESIZED = 2 * SIDE  # the same before a crop
CHANNELS = 1024
VALUES = 1 << 28  # largest height * width * channels: 1 GiB of float32
CLASSES = 1_000_000
SCALE = 1e4  # largest mean and standard deviation; those for pixels in [0, 255] stay below 256
DIVISOR = 1e-6  # smallest standard deviation
LONGEST = 60  # characters of a value in a message


class Fields:
  """The fields of one JSON object. Each method reads one field, and notes a problem if its value has another form.

  A method returns its default for a field that is missing, null or wrong. timm and transformers too take their own
  default for null.
  """

  def __init__(self, record: Mapping[str, Any], problems: list[str], place: str) -> None:
    """Reads `record`; `place` comes before the field's name in a problem, such as 'config.json: pretrained_cfg.'."""
    self.record, self.problems, self.place = record, problems, place

  def wrong(self, name: str, wanted: str) -> None:
    """Notes that a field does not have the wanted form."""
    self.problems.append(f'{self.place}{words.shown(name)} {shown(self.record.get(name))}: {wanted}')

  def lacks(self, name: str, reason: str) -> None:
    """Notes a field that is well formed, but asks for something that tlx does not do."""
    file, _, path = self.place.rpartition(': ')
    self.problems.append(f'{file}: cannot honour {path}{words.shown(name)} {shown(self.record.get(name))}: {reason}')

  def flag(self, name: str, default: bool) -> bool:
    """Reads true or false."""
    value = self.record.get(name)
    if value is None or isinstance(value, bool):
      return default if value is None else value
    self.wrong(name, 'it must be true or false')
    return default

  def integer(self, name: str, default: int, low: int, high: int) -> int:
    """Reads an integer in [low, high]."""
    value = self.record.get(name)
    if value is None or (type(value) is int and low <= value <= high):
      return default if value is None else value
    self.wrong(name, f'it must be an integer from {low} to {high:,}')
    return default

  def number(self, name: str, default: float, low: float, high: float) -> float:
    """Reads a number in [low, high]."""
    value = self.record.get(name)
    if value is None or (is_number(value) and low <= value <= high):
      return default if value is None else float(value)
    self.wrong(name, f'it must be a number from {low:g} to {high:g}')
    return default

  def text(self, name: str, default: str, choices: Collection[str] = ()) -> str:
    """Reads a text; one of `choices`, if there are any."""
    value = self.record.get(name)
    if value is None or (isinstance(value, str) and (value in choices or not choices)):
      return default if value is None else value
    self.wrong(name, f'tlx has {", ".join(choices)}' if choices else 'it must be a text')
    return default

  def inside(self, name: str, *, null: bool = True) -> 'Fields':
    """Reads an object: its fields; those of an empty one if the field is missing or wrong."""
    value = self.record.get(name)
    if not isinstance(value, Mapping) and (value is not None or (not null and name in self.record)):
      self.wrong(name, 'it must be an object')
    return Fields(value if isinstance(value, Mapping) else {}, self.problems, f'{self.place}{name}.')

  def statistics(self, name: str, default: tuple[float, ...], channels: int, low: float) -> tuple[float, ...]:
    """Reads a mean or a standard deviation of at least `low`: one number, or a list with one per channel.

    A list for RGB is right whatever the channels: libraries keep it when they adapt the first layer.
    """
    value = self.record.get(name)
    if value is None:
      return default
    values = [value] * channels if is_number(value) else value
    if isinstance(value, list) and len(value) == 1:
      values = value * channels
    fits = isinstance(values, list) and len(values) in (channels, 3)
    if fits and all(is_number(each) and low <= each <= SCALE for each in values):
      return tuple(float(each) for each in values)
    wanted = f'a number from {low:g} to {SCALE:g}, or a list with one for each of {channels} channels'
    self.wrong(name, f'it must be {wanted}')
    return default

  def ends(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
    """A list of two numbers, the smaller one first."""
    value = self.record.get(name)
    if value is None:
      return default
    if are(is_number, value, 2) and value[0] < value[1]:
      return float(value[0]), float(value[1])
    self.wrong(name, 'it must be two numbers, the smaller one first')
    return default

  def names(self, name: str, *, listed: bool = True) -> tuple[str, ...]:
    """Reads names of classes: an object from ids to names, or a list if `listed`; () if there are none or a problem."""
    value = self.record.get(name)
    if value is None:
      return ()
    if isinstance(value, Mapping):
      ids = {int(i): each for i, each in value.items() if str(i).isdecimal() and len(str(i)) < 10}
      if len(ids) != len(value) or (ids and max(ids) != len(ids) - 1):
        self.wrong(name, f'its ids must be the integers from 0 to {len(value) - 1}')
        return ()
      value = [ids[i] for i in range(len(ids))]
    elif not listed:
      value = None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
      self.wrong(name, f'it must be {"a list of texts, or " * listed}an object from ids to texts')
      return ()
    if odd := [each for each in value if not speakable(each)]:
      self.problems.append(
        f'{self.place}{name}: {len(odd)} of {len(value)} names contain control characters or halves of characters, '
        f'such as {shown(odd[0])}'
      )
      return ()
    return tuple(value)


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
  """Adapts RGB values to another number of channels: their mean for one channel, else the values repeated in turn."""
  if len(values) == channels:
    return values
  return (sum(values) / len(values),) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))


def is_number(value: Any) -> bool:
  """Whether a value is a finite number; true and false are not numbers.

  >>> is_number(2), is_number(float('nan')), is_number(True)
  (True, False, False)
  """
  return type(value) is int or (type(value) is float and math.isfinite(value))


def is_side(value: Any) -> bool:
  """Whether a value can be the height or width of an input in pixels."""
  return type(value) is int and 1 <= value <= SIDE


def are(check: Callable[[Any], bool], values: Any, count: int) -> bool:
  """Whether a value is a list of `count` elements that all pass a check."""
  return isinstance(values, list | tuple) and len(values) == count and all(map(check, values))


def speakable(name: str) -> bool:
  """Whether a name can be printed and encoded: no control characters (terminal escapes) and no lone surrogates.

  >>> speakable('Käse'), speakable('red\\x1b[31m'), speakable('\\ud800')
  (True, False, False)
  """
  return name.isprintable() or not any(unicodedata.category(each) in ('Cc', 'Cs') for each in name)


def shown(value: Any) -> str:
  """A value as JSON in ASCII, shortened.

  >>> shown([None, True, float('nan')]), shown('x' * 99)[-6:]
  ('[null, true, NaN]', 'xxx...')
  """
  try:
    text = json.dumps(value)
  except (RecursionError, ValueError, TypeError):
    text = type(value).__name__
  return text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'
