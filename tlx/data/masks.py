"""Reads segmentation masks from image files, and counts the values that many files contain.

The pixels of a mask are numbers (grey of 8 or 16 bits, one bit, or the indices of a palette, as in Pascal VOC) or
colours (RGB, or the colours of a palette). Grey that is stored as RGB counts as numbers. tlx refuses lossy formats,
because they change values at the edges of objects.
"""

import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from tlx.data import decode, orientation
from tlx.types import TlxError

IGNORE = 255  # class index of pixels that neither loss nor metrics count
LOSSY = frozenset({'AVIF', 'JPEG', 'JPEG2000', 'MPO'})
EXTENSIONS = ('.png', '.tif', '.tiff', '.gif', '.bmp')  # of files that may be masks
MANY_COLOURS = 4096  # a file with more colours is a photograph
SHOWN = 3  # maximum number of files that a message names

Colour = tuple[int, int, int]  # red, green, blue in [0, 255]
Value = int | Colour


class Found(NamedTuple):
  """The result of `scan` for one mask."""

  reason: str  # why the mask cannot be read; '' if it can
  size: tuple[int, int]  # height and width in pixels; (0, 0) if unknown
  pixels: Mapping[Value, int] = {}  # value -> number of pixels; empty if they were not counted


def read(
  encoded: bytes, *, values: Mapping[int, int] | None = None, palette: Mapping[Colour, int] | None = None
) -> np.ndarray:
  """Decodes a mask file to numbers, and translates them.

  Args:
    encoded: the whole file.
    values: {number in the file: number in the result}; None keeps the numbers.
    palette: {colour: number in the result} for masks with colours; None: the mask has numbers, which in a file with a
      palette are the indices.

  Returns:
    uint8 or uint16 [h, w].

  Raises:
    TlxError: with the reason, if the file is not an image, is damaged or lossy, or contains a value without a class.

  Examples:
    >>> import io
    >>> file = io.BytesIO()
    >>> Image.fromarray(np.uint8([[0, 7]])).save(file, 'png')
    >>> read(file.getvalue(), values={0: 0, 7: 1}).tolist()
    [[0, 1]]
  """
  try:
    with _open(encoded) as image:
      decode.load(image, encoded)
      if _is_grey(image, palette is not None):
        return _translate(_numbers(image), values)
      colours = _packed(image)
  except TlxError:
    raise
  except Exception as error:  # Pillow's plugins raise nearly anything on damaged input
    raise TlxError(f'the mask cannot be decoded: {decode.reason(error)}') from error
  greys = {(value, value, value): value for value in range(256)}
  if palette is None:
    palette = greys if values is None else {c: values[v] for c, v in greys.items() if v in values}
  return _translate(colours, {r | g << 8 | b << 16: index for (r, g, b), index in palette.items()}, _colour)


def scan(paths: Sequence[pathlib.Path], *, coloured: bool = False, every: int = 1) -> list[Found]:
  """Counts the values in many masks, with several threads.

  Args:
    paths: of the files.
    coloured: whether the values of files with a palette are colours; otherwise they are the indices.
    every: n, to count the pixels of each n-th file. For the others `scan` reads only the header, which is much faster.

  Returns:
    One result per file, in order. An unreadable file has a reason; nothing is raised.
  """
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(lambda item: look(item[1], coloured=coloured, count=item[0] % every == 0), enumerate(paths)))


def look(file: pathlib.Path | BinaryIO, *, coloured: bool = False, count: bool = True) -> Found:
  """Counts the values in one mask.

  Args:
    file: path of the file, or the open file.
    coloured: as in `scan`.
    count: whether to count the pixels; otherwise it reads only the header.

  Returns:
    The result. An unreadable file has a reason; nothing is raised.
  """
  size = (0, 0)
  try:
    path = isinstance(file, str | os.PathLike)
    source = file if path and not count else decode.read(file) if path else file.read()
    with _open(source) as image:
      size = image.height, image.width
      if count:
        decode.load(image, source)
      return Found('', size, _count(image, coloured) if count else {})
  except Exception as error:  # as in `read`
    return Found(decode.reason(error), size)


def pixels(found: Iterable[Found]) -> dict[Value, int]:
  """Adds up the pixels of each value over all files.

  Args:
    found: results of `scan`.

  Returns:
    {value: pixels}, numbers before colours, each in ascending order.

  Examples:
    >>> pixels([Found('', (1, 3), {7: 1, 0: 2}), Found('', (1, 2), {7: 2})])
    {0: 2, 7: 3}
  """
  total = {}
  for each in found:
    for value, count in each.pixels.items():
      total[value] = total.get(value, 0) + count
  return dict(sorted(total.items(), key=lambda item: (isinstance(item[0], tuple), item[0])))


def unknown(found: Mapping[str, Found], known: Iterable[Value]) -> list[str]:
  """Lists the values that have no class, with the files that contain them.

  Args:
    found: {name of a file: its result of `scan`}.
    known: values that have a class or are ignored.

  Returns:
    One line per unknown value, for an error message.

  Examples:
    >>> unknown({'a.png': Found('', (1, 2), {0: 1, 9: 1})}, known=[0, 7])
    ['value 9 has no class: a.png']
  """
  known, holders = set(known), {}
  for name, each in found.items():
    for value in set(each.pixels) - known:
      holders.setdefault(value, []).append(name)
  ordered = sorted(holders, key=lambda value: (isinstance(value, tuple), value))
  return [f'{_name(value)} has no class: {some(holders[value])}' for value in ordered]


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
  """The size of an image as `decode.picture` returns it, with the EXIF orientation applied. It reads only the header.

  Args:
    path: path of the file.

  Returns:
    Height and width, pixels.
  """
  with decode.opened(path) as image:
    turned = orientation.of(image) > 4
    return (image.width, image.height) if turned else (image.height, image.width)


def _open(source: bytes | str | os.PathLike) -> Image.Image:
  """Opens a mask. Raises TlxError for a lossy format and for too many pixels."""
  image = decode.opened(source)
  if image.format in LOSSY:
    raise TlxError(f'a {image.format} file, which changes values at edges; next: save masks as PNG')
  return image


def _is_grey(image: Image.Image, coloured: bool) -> bool:
  """Whether the pixels are numbers, not colours."""
  return image.mode in ('1', 'L', 'LA', 'I') or image.mode.startswith('I;16') or (image.mode == 'P' and not coloured)


def _numbers(image: Image.Image) -> np.ndarray:
  """The pixels of a mask with numbers: uint8 or uint16 [h, w]."""
  values = np.array(image.getchannel('L') if image.mode == 'LA' else image)
  if values.dtype == bool:
    return values.astype(np.uint8)
  if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 65535):
    raise TlxError(f'values from {values.min()} to {values.max()}; masks hold 0 to 65535')
  return values if values.dtype == np.uint8 else values.astype(np.uint16)


def _translate(found: np.ndarray, table: Mapping[int, int] | None, name: Callable[[int], Value] = int) -> np.ndarray:
  """Looks up each value in the table: uint8 or uint16 [h, w]. Raises TlxError for a value that the table lacks."""
  if table is None or not found.size:
    return found
  # np.zeros maps a page of memory only when it is written, so a table for 2**24 colours is as cheap as one for 256.
  places = np.zeros(1 + max(*table, int(found.max())), np.int32)
  places[list(table)] = np.array(list(table.values())) + 1
  entries = places[found]
  if not entries.all():
    raise TlxError(f'{_name(name(int(found[entries == 0][0])))} has no class')
  return (entries - 1).astype(np.uint8 if max(table.values()) < 256 else np.uint16)


def _count(image: Image.Image, coloured: bool) -> dict[Value, int]:
  if image.mode in ('L', 'P') and _is_grey(image, coloured):  # Pillow counts these without a NumPy array
    return {value: count for value, count in enumerate(image.histogram()) if count}
  if _is_grey(image, coloured):
    return dict(zip(*(x.tolist() for x in np.unique(_numbers(image), return_counts=True))))
  colours = _rgb(image).getcolors(MANY_COLOURS)
  if colours is None:
    raise TlxError(f'more than {MANY_COLOURS} colours: a photograph, not a mask')
  if not coloured and all(r == g == b for _, (r, g, b) in colours):
    return {colour[0]: count for count, colour in colours}
  return {colour: count for count, colour in colours}


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode not in ('P', 'RGB', 'RGBA', 'PA', 'RGBX'):
    raise TlxError(f'Pillow mode {image.mode}: neither class numbers nor RGB colours')
  return image.convert('RGB')


def _packed(image: Image.Image) -> np.ndarray:
  """uint32 [h, w]: red + 256 green + 65536 blue."""
  return np.asarray(_rgb(image).convert('RGBA')).view('<u4')[..., 0] & 0xFFFFFF


def _colour(packed: int) -> Colour:
  """Inverts `_packed` for one pixel."""
  return packed & 255, packed >> 8 & 255, packed >> 16


def _name(value: Value) -> str:
  return f'colour [{", ".join(map(str, value))}]' if isinstance(value, tuple) else f'value {value}'


def some(names: Sequence[str]) -> str:
  """Joins names for a message; of many names it states the number and the first `SHOWN`.

  Args:
    names: names of files.

  Returns:
    The text.

  Examples:
    >>> some(['a', 'b'])
    'a, b'
    >>> some(['a', 'b', 'c', 'd'])
    '4 files, such as a, b, c'
  """
  shown = ', '.join(names[:SHOWN])
  return shown if len(names) <= SHOWN else f'{len(names)} files, such as {shown}'
