"""Draws charts as SVG text, without a library. Their colours come from the page's style, for dark mode and print.

Every function escapes its text, so that the result is safe in HTML.
"""

import base64
import html
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

MOST_POINTS = 400  # maximum points of a line: about one per pixel, and the page of a long run stays small
_WIDTH, _HEIGHT = 520, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34


def number(value: float | None, digits: int = 4) -> str:
  """Formats a number for people.

  Args:
    value: the number; None, NaN and infinities give a dash.
    digits: significant digits.

  Returns:
    The text.

  Examples:
    >>> number(1234567), number(0.123456), number(1.5e-7)
    ('1,234,567', '0.1235', '1.5e-7')
  """
  if value is None or not math.isfinite(value):
    return '–'
  if float(value).is_integer() and abs(value) < 1e15:
    return f'{int(value):,}'
  if abs(value) >= 10 ** (digits - 1):
    return f'{value:,.0f}'
  text = f'{value:.{digits}g}'
  mantissa, _, exponent = text.partition('e')
  return f'{mantissa}e{int(exponent)}' if exponent else text


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers between two values, about `most` of them. Their distance is 1, 2 or 5 times a power of ten.

  >>> ticks(0, 1)
  [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  """
  rough = (high - low) / most
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
  """Reduces a line to at most `most` points: means of neighbours, and the last point.

  Args:
    x: coordinates.
    y: values, as many.
    most: maximum number of points.

  Returns:
    (x, y).
  """
  if len(x) <= most:
    return list(x), list(y)
  edges = np.linspace(0, len(x) - 1, most).astype(int)
  middle = [(float(np.mean(x[a:b])), float(np.mean(y[a:b]))) for a, b in itertools.pairwise(edges)]
  return [point[0] for point in middle] + [x[-1]], [point[1] for point in middle] + [y[-1]]


def lines(
  title: str,
  series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  borders: Sequence[tuple[float, str]] = (),
  log: bool = False,
  percent: bool = False,
) -> str:
  """Draws a line chart over steps. The page's script shows the values under the pointer.

  Args:
    title: for screen readers.
    series: name -> (steps, finite values); the first three have different colours and dashes.
    borders: (first step, name) of each phase; a single phase is not marked.
    log: whether the y axis is logarithmic; smaller values are raised to 1e-4 of the largest.
    percent: whether values are shares, shown as per cent.

  Returns:
    SVG; '' if no series has a point.
  """
  series = {name: thin(*points) for name, points in series.items() if len(points[0])}
  if not series:
    return ''
  if log:
    floor = max(max(y) for _, y in series.values()) * 1e-4
    series = {name: (x, [max(value, floor) for value in y]) for name, (x, y) in series.items()}
  scale = math.log10 if log else float
  x_low, x_high = _range([x for xs, _ in series.values() for x in xs], pad=0)
  y_low, y_high = _range([scale(y) for _, ys in series.values() for y in ys], pad=0.06)
  if percent:
    y_low, y_high = max(y_low, 0.0), min(y_high, 1.0)
  place_x, place_y = _axis(x_low, x_high, _LEFT, _WIDTH - _RIGHT), _axis(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
  show = (lambda v: f'{v * 100:.4g} %') if percent else number
  parts = [_grid_y(y, place_y(y), show(10**y if log else y)) for y in _ticks_y(y_low, y_high, log)]
  parts += [_text(place_x(x), _HEIGHT - 18, number(x), 'middle') for x in ticks(x_low, x_high)]
  parts += [_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 3, 'step', 'middle')]
  parts += _phase_marks(borders, place_x, x_low, x_high)
  for index, (xs, ys) in enumerate(series.values()):
    points = [(place_x(x), place_y(scale(y))) for x, y in zip(xs, ys, strict=True)]
    parts.append(_line(points, index))
  return _framed(title, parts, series, (x_low, x_high), (y_low, y_high), log, percent)


def reliability(confidence: Sequence[float], accuracy: Sequence[float], share: Sequence[float]) -> str:
  """Draws a reliability diagram: accuracy against confidence for each bin, and the share of examples below it.

  The bins have equal widths over [0, 1]. Bins without examples are not drawn.

  Args:
    confidence: mean confidence of each bin.
    accuracy: of each bin.
    share: of all examples, for each bin.

  Returns:
    SVG.
  """
  size, base, bins = 300, 260, len(share)
  x, y = _axis(0, 1, 40, size - 10), _axis(0, 1, base, 10)
  parts = [_grid_y(t, y(t), f'{t * 100:.0f} %', right=size - 10) for t in (0, 0.25, 0.5, 0.75, 1)]
  parts += [_text(x(t), base + 62, f'{t * 100:.0f} %', 'middle') for t in (0, 0.25, 0.5, 0.75, 1)]
  parts += [_text(x(0.5), base + 78, 'confidence', 'middle')]
  most = max(share) or 1
  for i in range(bins):
    left, wide = x(i / bins) + 1, x(1 / bins) - x(0) - 2
    if share[i] > 0:
      low, high = sorted((confidence[i], accuracy[i]))
      tip = f'{number(share[i] * 100, 3)} % of images: confidence {confidence[i]:.1%}, accuracy {accuracy[i]:.1%}'
      parts.append(
        f'<g><title>{tip}</title>{_box(left, y(low), wide, base - y(low), "bar")}'
        f'{_box(left, y(high), wide, y(low) - y(high), "gap")}{_box(left, y(accuracy[i]) - 1, wide, 2, "level")}'
        f'{_box(left, base + 48 - 40 * share[i] / most, wide, 40 * share[i] / most, "count")}</g>'
      )
  parts.append(f'<line class="ideal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>')
  return _svg('Accuracy against confidence', size, base + 84, parts, 'square')


def confusion(matrix: np.ndarray, names: Sequence[str]) -> str:
  """Draws a confusion matrix of few classes. Rows are labels, columns are predictions, the shade is the share of a row.

  Args:
    matrix: int [k, k].
    names: of the classes.

  Returns:
    SVG.
  """
  k, share = len(matrix), matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  cell = max(24, min(130 if k < 4 else 56, 480 // k))
  labels = [short(name, 20) for name in names]
  margin = 14 + 6.6 * max(map(len, labels))
  slanted = max(map(len, labels)) * 6.6 > cell
  top = 22 + (margin * 0.72 if slanted else 12)
  parts = [_text(margin - 8, top - 8, 'label ↓  prediction →', 'end')] if margin > 110 else []
  for i in range(k):
    parts.append(_text(margin - 6, top + cell * (i + 0.5) + 4, labels[i], 'end'))
    x = margin + cell * (i + 0.5)
    turn = f' transform="rotate(-45 {x:.1f} {top - 8:.1f})"' if slanted else ''
    parts.append(_text(x, top - 8, labels[i], 'start' if slanted else 'middle', turn))
  for i, j in np.argwhere(matrix):
    tip = (
      f'{names[i]} taken for {names[j]}: {matrix[i, j]:,} ({share[i, j]:.1%})'
      if i != j
      else (f'{names[i]} recognised: {matrix[i, j]:,} ({share[i, j]:.1%})')
    )
    x, y, kind = margin + cell * j, top + cell * i, 'hit' if i == j else 'miss'
    parts.append(
      f'<g><title>{html.escape(tip)}</title><rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" '
      f'height="{cell - 1}" rx="2" fill-opacity="{0.12 + 0.88 * share[i, j] ** 0.7:.2f}"/>'
    )
    strong = ' class="on"' if share[i, j] > 0.75 else ''
    wide = 7 * len(str(matrix[i, j])) > cell
    value = '' if wide else _text(x + cell / 2, y + cell / 2 + 4, str(matrix[i, j]), 'middle', strong)
    parts.append(f'{value}</g>')
  right = margin * 0.72 if slanted else 8
  parts.append(_box(margin - 0.5, top - 0.5, cell * k, cell * k, 'frame'))
  return _svg('Confusion matrix', margin + cell * k + right, top + cell * k + 4, parts, 'matrix')


def confusion_picture(matrix: np.ndarray, most: int = 340) -> str:
  """Draws a confusion matrix of many classes. The shade is the root of the share of a row, so that 1 % is visible.

  Args:
    matrix: int [k, k].
    most: maximum rows; of more classes, neighbours are merged.

  Returns:
    A transparent PNG as a data URL.
  """
  from PIL import Image

  merge = math.ceil(len(matrix) / most)
  side = math.ceil(len(matrix) / merge)
  merged = np.zeros((side * merge, side * merge))
  merged[: len(matrix), : len(matrix)] = matrix
  merged = merged.reshape(side, merge, side, merge).sum(axis=(1, 3))
  share = merged / np.maximum(merged.sum(axis=1, keepdims=True), 1)
  pixels = np.zeros((side, side, 4), np.uint8)
  pixels[..., :3] = (217, 119, 66)
  pixels[np.arange(side), np.arange(side), :3] = (64, 128, 191)
  pixels[..., 3] = np.round(255 * np.sqrt(share))
  scale = max(1, 680 // side)
  image = Image.fromarray(np.repeat(np.repeat(pixels, scale, axis=0), scale, axis=1))
  content = io.BytesIO()
  image.save(content, 'PNG', optimize=True)
  return 'data:image/png;base64,' + base64.b64encode(content.getvalue()).decode()


def profile(counts: Sequence[int]) -> str:
  """Draws the number of examples of each class, largest first, as one area; for data sets with many classes.

  Args:
    counts: examples of each class.

  Returns:
    SVG.
  """
  counts = sorted(counts, reverse=True)
  width, base = 520, 130
  y, step = _axis(0, max(counts) or 1, base, 10), (width - 62) / len(counts)
  path = f'M52,{base}' + ''.join(f'V{y(count):.1f}h{step:.3f}' for count in counts) + f'V{base}Z'
  parts = [_grid_y(t, y(t), number(t)) for t in ticks(0, max(counts) or 1, 3)]
  parts += [f'<path class="count" d="{path}"/>', _text(width / 2, base + 18, 'classes, largest first', 'middle')]
  return _svg('Examples of each class, largest first', width, base + 24, parts)


def short(text: str, most: int) -> str:
  """Cuts a text to `most` characters. The last one is then an ellipsis.

  >>> short('Abyssinian', 5)
  'Abys…'
  """
  return text if len(text) <= most else text[: most - 1] + '…'


def _range(values: Sequence[float], pad: float) -> tuple[float, float]:
  low, high = min(values), max(values)
  room = (high - low) * pad if high > low else abs(high) * 0.1 or 1.0
  return low - room, high + room


def _axis(low: float, high: float, start: float, end: float):
  return lambda value: round(start + (value - low) / (high - low) * (end - start), 2)


def _ticks_y(low: float, high: float, log: bool) -> list[float]:
  if not log:
    return ticks(low, high, 6)
  whole = [float(p) for p in range(math.ceil(low), math.floor(high) + 1)]
  return whole if len(whole) > 1 else ticks(low, high, 6)


def _grid_y(value: float, y: float, text: str, right: float = _WIDTH - _RIGHT) -> str:
  left = 40 if right < _WIDTH - _RIGHT else _LEFT
  return f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>' + _text(left - 6, y + 4, text, 'end')


def _phase_marks(borders, place, low, high) -> list[str]:
  parts, borders = [], list(borders) if len(borders) > 1 else []
  for index, (step, name) in enumerate(borders):
    start = place(min(max(step, low), high))
    end = place(min(borders[index + 1][0], high)) if index + 1 < len(borders) else place(high)
    if index and step <= high:
      parts.append(f'<line class="border" x1="{start}" x2="{start}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    if end - start > 7 * len(name) * 0.8 and step <= high:
      parts.append(_text((start + end) / 2, _TOP + 8, name, 'middle', ' class="phase"'))
  return parts


def _line(points, index: int) -> str:
  path = 'M' + 'L'.join(f'{x:g},{y:g}' for x, y in points)
  dots = points if len(points) <= 40 else points[-1:]
  marks = ''.join(f'<circle class="s{index % 3}" cx="{x:g}" cy="{y:g}" r="2.4"/>' for x, y in dots)
  return f'<path class="line s{index % 3}" d="{path}"/>{marks}'


def _framed(title, parts, series, x_range, y_range, log, percent) -> str:
  data = {
    'x': x_range,
    'y': y_range,
    'log': log,
    'percent': percent,
    'left': _LEFT,
    'right': _WIDTH - _RIGHT,
    'top': _TOP,
    'bottom': _HEIGHT - _BOTTOM,
    'series': [[name, [_float(v) for v in x], [_float(v) for v in y]] for name, (x, y) in series.items()],
  }
  text = html.escape(json.dumps(data, separators=(',', ':')))
  return _svg(title, _WIDTH, _HEIGHT, parts, 'curves', f' data-curves="{text}"')


def _float(value: float) -> float | int:
  value = float(f'{value:.5g}') if abs(value) < 1e5 else round(value)
  return int(value) if float(value).is_integer() else value


def _box(x, y, width, height, kind) -> str:
  return f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{max(height, 0):.2f}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = '') -> str:
  return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{html.escape(text)}</text>'


def _svg(title: str, width: float, height: float, parts: Sequence[str], kind: str = '', more: str = '') -> str:
  size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px"'
  return f'<svg class="chart {kind}" {size} role="img" aria-label="{html.escape(title)}"{more}>{"".join(parts)}</svg>'
