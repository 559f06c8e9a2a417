"""Pictures for people: heat over photographs, and grids with a line of text under each."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tlx.report.charts import ticks

GAP, TEXT = 6, 18  # pixels between pictures, and of a line of text
WHITE, INK, RULE = (255, 255, 255), (30, 30, 30), (215, 215, 215)
LINES = ((0, 114, 178), (213, 94, 0), (90, 90, 90), (0, 158, 115))  # apart for the colour-blind (Okabe & Ito 2008)
# From cold to hot, evenly spread; anchors of matplotlib's inferno, dark to light, for those who see no colours too.
HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)


def to_bytes(pixels) -> np.ndarray:
  """float [..., 3] in [0, 1], clipped there, -> uint8."""
  return np.rint(np.clip(np.nan_to_num(np.asarray(pixels, np.float32)), 0, 1) * 255).astype(np.uint8)


def to_floats(picture: np.ndarray) -> np.ndarray:
  """uint8 -> float32 in [0, 1]."""
  return np.asarray(picture, np.float32) / 255


def png(picture: np.ndarray) -> bytes:
  """uint8 [h, w, 3] as a file."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'PNG')
  return file.getvalue()


def resized(picture: np.ndarray, height: int, width: int, *, smooth: bool = True) -> np.ndarray:
  """uint8 [h, w, 3] -> uint8 [height, width, 3]; without `smooth` each pixel stays a square."""
  how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
  return np.array(Image.fromarray(picture).resize((width, height), how))


def spread(values) -> np.ndarray:
  """float [h, w] -> the same shifted and scaled to [0, 1]; what is constant becomes 0."""
  values = np.nan_to_num(np.asarray(values, np.float32))
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)


def coloured(heat) -> np.ndarray:
  """float [h, w] in [0, 1] -> uint8 [h, w, 3], from black over red to light yellow."""
  places = np.clip(np.asarray(heat), 0, 1) * (len(HEAT) - 1)
  return to_bytes(np.stack([np.interp(places, range(len(HEAT)), HEAT[:, c]) for c in range(3)], -1) / 255)


def overlay(picture: np.ndarray, heat, cold: float = 0.3, hot: float = 0.65) -> np.ndarray:
  """Heat float [h', w'] in [0, 1] over a photograph uint8 [h, w, 3], resized to it; it hides from `cold` to `hot`."""
  colours = resized(coloured(heat), *picture.shape[:2])
  shades = resized(np.repeat(to_bytes(heat)[..., None], 3, axis=-1), *picture.shape[:2])
  share = cold + (hot - cold) * to_floats(shades)
  return to_bytes((share * colours + (1 - share) * picture) / 255)


def grid(pictures: Sequence[np.ndarray], texts: Sequence[str] = (), columns: int | None = None) -> np.ndarray:
  """Pictures uint8 [h, w, 3] of one size in rows, each with its text below, cut where it is too long."""
  columns = min(columns or len(pictures), len(pictures))
  height, width = pictures[0].shape[:2]
  rows, line = -(-len(pictures) // columns), TEXT if any(texts) else 0
  sheet = Image.new('RGB', (columns * (width + GAP) + GAP, rows * (height + line + GAP) + GAP), WHITE)
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
  for i, picture in enumerate(pictures):
    x, y = GAP + i % columns * (width + GAP), GAP + i // columns * (height + line + GAP)
    sheet.paste(Image.fromarray(picture), (x, y))
    if i < len(texts):
      draw.text((x, y + height + 2), _cut(texts[i], width, font), INK, font)
  return np.array(sheet)


def curves(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str) -> np.ndarray:
  """A chart of lines {name: (x, y)}, finite, from 0 up to the largest of each; `across` and `up` name the axes."""
  wide, high, left, top, right, bottom = 640, 400, 60, 34, 20, 52
  xs, ys = (np.concatenate([np.asarray(line[axis], float) for line in series.values()]) for axis in (0, 1))
  x_most, y_most = xs.max() or 1, ys.max() * 1.05 or 1
  sheet = Image.new('RGB', (2 * wide, 2 * high), WHITE)  # drawn at twice its size, for smooth lines
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
  place_x = lambda x: 2 * (left + x / x_most * (wide - left - right))
  place_y = lambda y: 2 * (high - bottom - y / y_most * (high - top - bottom))
  for y in ticks(0, y_most):
    draw.line([(2 * left, place_y(y)), (2 * (wide - right), place_y(y))], RULE, 2)
    draw.text((2 * left - 12, place_y(y)), f'{y:g}', INK, font, anchor='rm')
  for x in ticks(0, x_most):
    draw.text((place_x(x), 2 * (high - bottom) + 8), f'{x:g}', INK, font, anchor='mt')
  draw.text((2 * wide - 2 * right, 2 * high - 12), across, INK, font, anchor='rs')
  draw.text((12, 8), up, INK, font)
  start = 2 * wide - 2 * right - sum(font.getlength(name) + 70 for name in series)
  for colour, (name, (x, y)) in zip(LINES, series.items()):
    draw.line([(place_x(a), place_y(b)) for a, b in zip(x, y)], colour, 5, joint='curve')
    draw.line([(start, 22), (start + 40, 22)], colour, 6)
    draw.text((start + 48, 8), name, INK, font)
    start += font.getlength(name) + 70
  return np.array(sheet.resize((wide, high), Image.Resampling.LANCZOS))


def _cut(text: str, width: int, font) -> str:
  """As much of a text as fits."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + '…') > width:
    text = text[:-1]
  return text + '…'


def legend(texts: Sequence[str], colours: Sequence[tuple[int, int, int]], height: int) -> np.ndarray:
  """A dot of its colour before each text, as many as fit: uint8 [height, w, 3]."""
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
