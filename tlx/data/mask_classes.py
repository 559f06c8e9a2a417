"""The class of each value of a mask: from classes.json, or else one class for each value that the masks contain."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import ImageColor

from tlx.data import masks
from tlx.data.masks import IGNORE, Colour, Value
from tlx.types import UsageError

FILE = 'classes.json'
KEYS = ('classes', 'ignore', 'ignore_index', 'palette')
FORMS = (
  '["sky", "road"], {"sky": 0, "road": 7} or '
  '{"classes": ["sky", "road"], "ignore": 255, "palette": {"sky": [70, 130, 180], "road": "#804080"}}'
)
MOST = 255  # maximum number of classes: their indices and IGNORE fit in 8 bits


@dataclasses.dataclass(frozen=True)
class Legend:
  """Class names, and what each value of a mask means: a class index, or IGNORE for pixels that do not count."""

  class_names: tuple[str, ...]
  values: Mapping[int, int]  # number -> class index or IGNORE
  palette: Mapping[Colour, int] | None = None  # colour -> class index or IGNORE; None: the masks contain numbers

  def known(self) -> tuple[Value, ...]:
    """All values that have a meaning: numbers, then colours."""
    return (*self.values, *(self.palette or ()))

  def index(self, value: Value) -> int:
    """The class index of a known value, or IGNORE. Raises KeyError for an unknown one."""
    return self.palette[value] if isinstance(value, tuple) else self.values[value]

  def counts(self, found: Sequence[masks.Found]) -> np.ndarray:
    """Counts the pixels of each class in each mask: int64 [n, k]. All values must be known."""
    counts = np.zeros((len(found), IGNORE + 1), np.int64)
    for row, mask in zip(counts, found):
      for value, count in mask.pixels.items():
        row[self.index(value)] += count
    return counts[:, : len(self.class_names)]

  def decode(self, encoded: bytes) -> np.ndarray:
    """Decodes a mask file to class indices.

    Args:
      encoded: the whole file.

    Returns:
      uint8 [h, w]: class indices, or IGNORE for pixels that do not count.

    Raises:
      TlxError: if the file cannot be read, or contains a value without a class.
    """
    return masks.read(encoded, values=self.values, palette=self.palette)


def of_file(path: pathlib.Path) -> Legend:
  """Reads a classes.json.

  The file has one of three forms:

  - ["sky", "road"]: a list of names, whose positions are the values.
  - {"sky": 0, "road": 7}: each name with its value.
  - {"classes": one of the above, "ignore": a value, a list of values or null, "palette": {name: colour}, or a list of
    colours in the order of the classes}.

  A colour is [red, green, blue] or "#rrggbb". "ignore" may also be called "ignore_index". Without it, 255 is ignored,
  unless 255 is the value of a class. In the palette, the name "ignore" marks the ignored colour. Without "classes", the
  names in the palette are the classes.

  Args:
    path: path of the file.

  Returns:
    The legend; its class indices follow the order of the values.

  Raises:
    UsageError: it lists all problems of the file, one per line.
  """
  try:
    content = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UsageError(f'{path} cannot be read: {error}; next: write {FORMS}') from error
  if isinstance(content, list) or (isinstance(content, dict) and not set(content) & set(KEYS)):
    content = {'classes': content}
  if not isinstance(content, dict):
    raise UsageError(f'{path} is neither a list nor an object; next: write {FORMS}')
  problems = [f'unknown key {key!r}; there are {", ".join(KEYS)}' for key in content if key not in KEYS]
  classes = _classes(content, problems)
  ignored = _ignored(content, classes, problems)
  palette = _palette(content.get('palette'), list(classes), problems)
  if problems:
    raise UsageError('\n'.join(f'{path}: {problem}' for problem in problems))
  numbers = {value: index for index, value in enumerate(classes.values())}
  return Legend(tuple(classes), numbers | dict.fromkeys(ignored, IGNORE), palette)


def of_values(found: Mapping[Value, int], names: Sequence[str] = ()) -> Legend:
  """Makes a legend for masks without a classes.json. Every number is a class, except 255, which is ignored.

  Args:
    found: {value: pixels}, the values that the masks contain.
    names: names of the classes 0, 1, ...; () = unknown. They are used only if they cover all numbers.

  Returns:
    The legend; without `names` a class is called 'class V' for the number V.

  Raises:
    UsageError: if the masks contain colours, more than 255 classes, or only 255 and perhaps 0: 255 may then be a class.

  Examples:
    >>> of_values({0: 90, 7: 10, 255: 5})
    Legend(class_names=('class 0', 'class 7'), values={0: 0, 7: 1, 255: 255}, palette=None)
  """
  if colours := [value for value in found if isinstance(value, tuple)]:
    some = ', '.join(str(list(colour)) for colour in colours[:5])
    raise UsageError(
      f'the masks hold {len(colours)} colours, such as {some}, and no {FILE} says what they mean; '
      f'next: write {FILE} as {{"palette": {{"NAME": {list(colours[0])}, ...}}}}'
    )
  numbers = sorted(value for value in found if value != IGNORE)
  if IGNORE in found and numbers in ([0], []):
    raise UsageError(
      f'the masks hold {" and ".join(map(str, sorted(found)))} only, and 255 is ignored unless {FILE} says otherwise; '
      f'next: write {FILE} as {{"background": 0, "NAME": 255}}'
    )
  if names and all(value < len(names) for value in numbers):
    return Legend(tuple(names), {index: index for index in range(len(names))} | {IGNORE: IGNORE})
  if len(numbers) > MOST:
    raise UsageError(f'the masks hold {len(numbers)} values; at most {MOST} classes fit; next: write {FILE} as {FORMS}')
  values = {value: index for index, value in enumerate(numbers)}
  return Legend(tuple(f'class {value}' for value in numbers), values | {IGNORE: IGNORE})


def _classes(content: Mapping[str, Any], problems: list[str]) -> dict[str, int]:
  """Reads {name: value}, sorted by value; adds what is wrong to `problems`."""
  classes, palette = content.get('classes'), content.get('palette')
  if classes is None and isinstance(palette, dict):
    classes = [name for name in palette if name != 'ignore']
  if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
    problems += [f'class {name!r} is there twice' for name in sorted({n for n in classes if classes.count(n) > 1})]
    classes = {name: value for value, name in enumerate(classes)}
  elif not isinstance(classes, dict) or not all(_is_number(value, 65535) for value in classes.values()):
    problems.append(f'"classes" is neither a list of names nor names with whole numbers from 0 to 65535: {FORMS}')
    return {}
  if not 0 < len(classes) <= MOST:
    problems.append(f'it has {len(classes)} classes; there can be 1 to {MOST}')
  classes = dict(sorted(classes.items(), key=lambda item: item[1]))
  names = list(classes)
  same = [(a, b) for a, b in zip(names, names[1:]) if classes[a] == classes[b]]
  problems += [f'classes {a!r} and {b!r} have the same value {classes[a]}' for a, b in same]
  return classes


def _ignored(content: Mapping[str, Any], classes: Mapping[str, int], problems: list[str]) -> list[int]:
  """Reads the ignored values; adds what is wrong to `problems`."""
  stated = content.get('ignore', content.get('ignore_index', () if IGNORE in classes.values() else IGNORE))
  values = [] if stated is None else [stated] if isinstance(stated, int) else stated
  if not isinstance(values, list | tuple) or not all(_is_number(value, 65535) for value in values):
    problems.append(f'"ignore" is {json.dumps(stated)}; give a whole number from 0 to 65535, a list of them or null')
    return []
  problems += [f'value {value} is ignored and class {name!r}' for name, value in classes.items() if value in values]
  return list(values)


def _palette(stated: Any, names: Sequence[str], problems: list[str]) -> dict[Colour, int] | None:
  """Reads {colour: class index or IGNORE}, None without a palette; adds what is wrong to `problems`."""
  if stated is None:
    return None
  if isinstance(stated, list):
    if len(stated) != len(names):
      problems.append(f'"palette" has {len(stated)} colours for {len(names)} classes')
    stated = dict(zip(names, stated))
  if not isinstance(stated, dict):
    problems.append('"palette" is neither {name: colour} nor a list of colours')
    return None
  palette, places = {}, {name: index for index, name in enumerate(names)} | {'ignore': IGNORE}
  for name, colour in stated.items():
    if name not in places:
      problems.append(f'"palette" has {name!r}, which is not a class; there are {", ".join(names)} and ignore')
    elif (parsed := _colour(colour)) is None:
      problems.append(f'the colour of {name!r} is {json.dumps(colour)}; give [red, green, blue] or "#rrggbb"')
    elif parsed in palette:
      problems.append(f'"palette" has the colour {list(parsed)} twice')
    else:
      palette[parsed] = places[name]
  problems += [f'"palette" lacks class {name!r}' for name in names if name not in stated]
  return palette


def _colour(stated: Any) -> Colour | None:
  if isinstance(stated, list) and len(stated) == 3 and all(_is_number(value, 255) for value in stated):
    return tuple(stated)
  try:
    return ImageColor.getrgb(stated)[:3] if isinstance(stated, str) else None
  except ValueError:
    return None


def _is_number(value: Any, most: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
