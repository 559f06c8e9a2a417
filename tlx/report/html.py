"""Renders HTML pages from templates: one file, no network, and a content policy that permits only its own script."""

import base64
import hashlib
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from tlx.report import charts


def render(package: str, page: str, script: str, context: Mapping[str, Any]) -> str:
  """Renders a page. All values are escaped, and undefined names print nothing.

  Args:
    package: that contains the templates.
    page: file name of the page's template; it receives the script's SHA-256 as `digest`, for its content policy.
    script: file name of the script's template, which the page includes.
    context: {name: value} for the template.

  Returns:
    HTML.
  """
  environment = _environment(package)
  hashed = hashlib.sha256(environment.get_template(script).render().encode()).digest()
  return environment.get_template(page).render(context, digest=base64.b64encode(hashed).decode())


def fragment(package: str, template: str, context: Mapping[str, Any]) -> str:
  """Renders a part of a page. All values are escaped.

  Args:
    package: that contains the template.
    template: its file name.
    context: {name: value} for the template.

  Returns:
    HTML.
  """
  return _environment(package).get_template(template).render(context)


def _environment(package: str) -> Any:
  import jinja2

  load = lambda name: resources.files(package).joinpath(name).read_text('utf-8')
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(load), autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  numbers = {'number': charts.number, 'percent': percent, 'duration': duration}
  environment.filters |= {name: _or_dash(show) for name, show in numbers.items()}
  environment.filters |= {'text': text, 'short': charts.short}
  return environment


def percent(share: float, digits: int = 1) -> str:
  """Formats a share as per cent. Only 1 gives 100 %, and only 0 gives 0 %.

  Args:
    share: in [0, 1].
    digits: after the decimal point.

  Returns:
    The text, with a no-break space.
  """
  if share in (0, 1):
    return f'{share * 100:.0f}\u00a0%'
  smallest = 10.0**-digits
  shown = min(max(share * 100, smallest), 100 - smallest) if 0 < share < 1 else share * 100
  return f'{shown:.{digits}f}\u00a0%'


def share(value: Any) -> str:
  """`percent` of a number; a dash for anything else, such as a value that a run did not record."""
  return _or_dash(percent)(value)


def count(value: Any) -> str:
  """`charts.number` of a number; a dash for anything else."""
  return _or_dash(charts.number)(value)


def duration(seconds: float) -> str:
  """Formats seconds in one or two units.

  >>> duration(5.31), duration(90), duration(7260)
  ('5.3 s', '1 min 30 s', '2 h 1 min')
  """
  if seconds < 60:
    return f'{seconds:.1f} s' if seconds < 9.95 else f'{seconds:.0f} s'
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60:,} h {minutes % 60} min'


def text(value: Any) -> str:
  """Formats a JSON value for people.

  >>> text([True, 0.1, None])
  'yes, 0.1, none'
  """
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, (int, float)):
    return f'{value:.6g}' if isinstance(value, float) else str(value)
  if isinstance(value, (list, tuple)):
    return ', '.join(map(text, value)) or 'none'
  if isinstance(value, dict):
    return ', '.join(f'{key} {text(item)}' for key, item in value.items()) or 'none'
  return 'none' if value is None else str(value)


def _or_dash(show):
  """Wraps a formatter of numbers: other values give a dash."""

  def safe(value, *more):
    return show(value, *more) if isinstance(value, (int, float)) and math.isfinite(value) else '–'

  return safe
