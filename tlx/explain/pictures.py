"""Pictures for people: heat over photographs, and grids with a line of text under each."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, TEXT = 6, 18  # pixels between pictures, and of a line of text
WHITE, INK = (255, 255, 255), (30, 30, 30)
LINES = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189))  # of curves
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


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [h, w, 3] -> uint8 [height, width, 3]: the whole picture in the middle of white."""
  factor = min(height / picture.shape[0], width / picture.shape[1])
  h, w = (max(1, round(factor * side)) for side in picture.shape[:2])
  sheet = np.full((height, width, 3), 255, np.uint8)
  top, left = (height - h) // 2, (width - w) // 2
  sheet[top : top + h, left : left + w] = resized(picture, h, w)
  return sheet


def spread(values) -> np.ndarray:
  """float [h, w] -> the same shifted and scaled to [0, 1]; what is constant becomes 0."""
  values = np.nan_to_num(np.asarray(values, np.float32))
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)


def coloured(heat) -> np.ndarray:
  """float [h, w] in [0, 1] -> uint8 [h, w, 3], from black over red to light yellow."""
  places = np.clip(np.asarray(heat), 0, 1) * (len(HEAT) - 1)
  return to_bytes(np.stack([np.interp(places, range(len(HEAT)), HEAT[:, c]) for c in range(3)], -1) / 255)


def overlay(picture: np.ndarray, heat, share: float = 0.55) -> np.ndarray:
  """Heat float [h', w'] in [0, 1] over a photograph uint8 [h, w, 3], resized to it."""
  colours = resized(coloured(heat), *picture.shape[:2])
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


def chart(curves: Mapping[str, Sequence[float]], width: int = 480, height: int = 280) -> np.ndarray:
  """Positive values over their number, one line a curve, on a logarithmic scale; uint8 [height, width, 3]."""
  curves = {name: np.log10(np.maximum(np.asarray(values, float), 1e-12)) for name, values in curves.items()}
  both = np.concatenate(list(curves.values()))
  low = math.floor(both.min())
  high = max(math.ceil(both.max()), low + 1)
  longest = max(map(len, curves.values()))
  sheet, font = Image.new('RGB', (width, height), WHITE), ImageFont.load_default(12)
  draw, left, top, right, bottom = ImageDraw.Draw(sheet), 52, 10, width - 12, height - 22
  across, up = (right - left) / max(1, longest - 1), (bottom - top) / (high - low)
  place = lambda x, y: (left + across * x, bottom - up * (y - low))
  for power in range(low, high + 1):
    draw.line([place(0, power), place(longest - 1, power)], (220, 220, 220))
    draw.text((4, place(0, power)[1] - 7), f'{10.0**power:g}', INK, font)
  draw.text((left, bottom + 4), '0', INK, font)
  draw.text((right - font.getlength(str(longest)), bottom + 4), str(longest), INK, font)
  for i, (name, values) in enumerate(curves.items()):
    colour = LINES[i % len(LINES)]
    draw.line([place(x, y) for x, y in enumerate(values)], colour, 2)
    draw.text((right - font.getlength(name) - 4, top + 4 + 16 * i), name, colour, font)
  return np.array(sheet)


def _cut(text: str, width: int, font) -> str:
  """As much of a text as fits."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + '…') > width:
    text = text[:-1]
  return text + '…'
