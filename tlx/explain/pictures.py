"""Draws pictures: heat over images, grids with text below each image, and charts."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tlx.report.charts import number, ticks

GAP, TEXT = 6, 18  # gap between pictures and height of a line of text, pixels
WHITE, GREY, INK = (255, 255, 255), (222, 222, 222), (30, 30, 30)
# From cold to hot: evenly spaced colours of matplotlib's inferno. It runs from dark to light, so it is legible in grey.
HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)
LINES = ((31, 97, 181), (196, 78, 20), (20, 128, 74), (130, 60, 150))  # colours of a chart's lines; distinct in grey
MARKED = 20  # maximum points of a line that are marked


def to_bytes(pixels) -> np.ndarray:
  """Clips float [..., 3] to [0, 1] and converts it to uint8.

  >>> print(to_bytes([0.0, 0.5, 1.5]))
  [  0 128 255]
  """
  return np.rint(np.clip(np.nan_to_num(np.asarray(pixels, np.float32)), 0, 1) * 255).astype(np.uint8)


def to_floats(picture: np.ndarray) -> np.ndarray:
  """Converts uint8 to float32 in [0, 1]."""
  return np.asarray(picture, np.float32) / 255


def png(picture: np.ndarray) -> bytes:
  """Encodes uint8 [h, w, 3] as a PNG file."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'PNG')
  return file.getvalue()


def resized(picture: np.ndarray, height: int, width: int, *, smooth: bool = True) -> np.ndarray:
  """Resizes uint8 [h, w, 3] to [height, width, 3]: bicubic, or nearest neighbour if not `smooth`."""
  how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
  return np.array(Image.fromarray(picture).resize((width, height), how))


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """Fits a whole picture uint8 [h, w, 3] into the middle of a white one [height, width, 3]."""
  factor = min(height / picture.shape[0], width / picture.shape[1])
  h, w = (max(1, round(factor * side)) for side in picture.shape[:2])
  sheet = np.full((height, width, 3), 255, np.uint8)
  top, left = (height - h) // 2, (width - w) // 2
  sheet[top : top + h, left : left + w] = resized(picture, h, w)
  return sheet


def spread(values) -> np.ndarray:
  """Shifts and scales float values to [0, 1]; a constant array becomes 0."""
  values = np.nan_to_num(np.asarray(values, np.float32))
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)


def coloured(heat) -> np.ndarray:
  """Colours heat float [h, w] in [0, 1]: uint8 [h, w, 3], from black through red to light yellow."""
  places = np.clip(np.asarray(heat), 0, 1) * (len(HEAT) - 1)
  return to_bytes(np.stack([np.interp(places, range(len(HEAT)), HEAT[:, c]) for c in range(3)], -1) / 255)


def overlay(picture: np.ndarray, heat, cold: float = 0.3, hot: float = 0.65) -> np.ndarray:
  """Draws heat over an image.

  Args:
    picture: uint8 [h, w, 3].
    heat: float [h', w'] in [0, 1]; resized to the picture.
    cold: opacity of heat 0.
    hot: opacity of heat 1.

  Returns:
    uint8 [h, w, 3].
  """
  colours = resized(coloured(heat), *picture.shape[:2])
  shades = resized(np.repeat(to_bytes(heat)[..., None], 3, axis=-1), *picture.shape[:2])
  share = cold + (hot - cold) * to_floats(shades)
  return to_bytes((share * colours + (1 - share) * picture) / 255)


def grid(pictures: Sequence[np.ndarray], texts: Sequence[str] = (), columns: int | None = None) -> np.ndarray:
  """Arranges pictures of one size in rows, each with lines of text below; lines that are too long are cut.

  Args:
    pictures: uint8 [h, w, 3] each.
    texts: text of each picture; may have several lines.
    columns: pictures a row; all in one row by default.

  Returns:
    uint8 [h', w', 3].
  """
  columns = min(columns or len(pictures), len(pictures))
  height, width = pictures[0].shape[:2]
  rows, line = -(-len(pictures) // columns), max((TEXT * len(text.splitlines()) for text in texts), default=0)
  sheet = Image.new('RGB', (columns * (width + GAP) + GAP, rows * (height + line + GAP) + GAP), WHITE)
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  for i, picture in enumerate(pictures):
    x, y = GAP + i % columns * (width + GAP), GAP + i // columns * (height + line + GAP)
    sheet.paste(Image.fromarray(picture), (x, y))
    for row, text in enumerate(texts[i].splitlines() if i < len(texts) else ()):
      draw.text((x, y + height + 2 + row * TEXT), _cut(text, width, font), INK, font)
  return np.array(sheet)


def chart(
  lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  across: str = '',
  up: str = '',
  *,
  within: tuple[float, float] | None = None,
  log: bool = False,
  height: int = 340,
  width: int = 560,
) -> np.ndarray:
  """Draws a line chart with axes, ticks and a legend.

  Args:
    lines: name -> (x, y), finite, in ascending x; lines with few points have them marked.
    across: label of the x axis.
    up: label of the y axis.
    within: limits of the y axis; by default the data's.
    log: whether the y axis is logarithmic; y must then be above 0.
    height: pixels.
    width: pixels.

  Returns:
    uint8 [height, width, 3].
  """
  scale = np.log10 if log else np.asarray
  lines = {name: (np.asarray(x, float), scale(np.asarray(y, float))) for name, (x, y) in lines.items()}
  left, right, top, bottom = 62, width - 16, 20 + TEXT * (1 + len(lines)), height - 44
  xs, ys = (np.concatenate([points[axis] for points in lines.values()]) for axis in (0, 1))
  ends = (np.floor(ys.min()), np.floor(ys.max()) + 1) if log else within or _apart(ys)
  x_low, x_high, y_low, y_high = *_apart(xs), *ends
  place_x = lambda x: left + (x - x_low) / (x_high - x_low) * (right - left)
  place_y = lambda y: bottom - (y - y_low) / (y_high - y_low) * (bottom - top)
  sheet = Image.new('RGB', (width, height), WHITE)
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  for y in np.arange(y_low, y_high + 1) if log else ticks(y_low, y_high):
    draw.line([(left, place_y(y)), (right, place_y(y))], GREY)
    draw.text((left - 6, place_y(y)), f'{10.0**y:g}' if log else number(y), INK, font, 'rm')
  for x in ticks(x_low, x_high, 8):
    draw.line([(place_x(x), bottom), (place_x(x), bottom + 4)], INK)
    draw.text((place_x(x), bottom + 6), number(x), INK, font, 'mt')
  draw.line([(left, top), (left, bottom), (right, bottom)], INK)
  draw.text(((left + right) / 2, height - 8), across, INK, font, 'mb')
  draw.text((GAP, GAP), up, INK, font)
  for i, (name, (x, y)) in enumerate(lines.items()):
    colour, level = LINES[i % len(LINES)], 14 + TEXT * (i + 1)
    points = [(place_x(a), place_y(b)) for a, b in zip(x, y, strict=True)]
    draw.line(points, colour, 2)
    for a, b in points if len(points) <= MARKED else ():
      draw.ellipse([a - 3, b - 3, a + 3, b + 3], colour)
    draw.line([(left, level), (left + 20, level)], colour, 2)
    draw.text((left + 26, level), name, INK, font, 'lm')
  return np.array(sheet)


def _apart(values: np.ndarray) -> tuple[float, float]:
  """Minimum and maximum of the values; 0.5 to either side if they are equal."""
  low, high = float(values.min()), float(values.max())
  return (low, high) if high > low else (low - 0.5, high + 0.5)


def _cut(text: str, width: int, font) -> str:
  """Cuts a text to a width in pixels."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + '…') > width:
    text = text[:-1]
  return text + '…'


def legend(texts: Sequence[str], colours: Sequence[tuple[int, int, int]], height: int) -> np.ndarray:
  """Draws a coloured dot before each text, as many as fit: uint8 [height, w, 3]."""
  font, step = ImageFont.load_default(14), 24
  most = len(texts) if step * (len(texts) + 1) <= height else height // step - 2
  rest = [f'and {len(texts) - most} more'] * (most < len(texts))
  sheet = Image.new('RGB', (40 + round(max(map(font.getlength, [*texts[:most], *rest]))), height), WHITE)
  draw = ImageDraw.Draw(sheet)
  for i, text in enumerate([*texts[:most], *rest]):
    if i < most:
      draw.ellipse((12, 12 + step * i, 24, 24 + step * i), tuple(colours[i]))
    draw.text((32, 9 + step * i), text, INK, font)
  return np.array(sheet)
