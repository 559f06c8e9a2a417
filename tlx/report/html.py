"""Pages that need no network: one file, whose content policy lets nothing but its own script run."""

import base64
import hashlib
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from tlx.report import charts


def render(package: str, page: str, script: str, context: Mapping[str, Any]) -> str:
  """The template `page` of a package, every value escaped; `script` is a template too, included in the page.

  The page is given the script's hash as `digest`, for its policy. Undefined names print as nothing.
  """
  environment = _environment(package)
  hashed = hashlib.sha256(environment.get_template(script).render().encode()).digest()
  return environment.get_template(page).render(context, digest=base64.b64encode(hashed).decode())


def fragment(package: str, template: str, context: Mapping[str, Any]) -> str:
  """A part of a page from a template of that package, every value escaped."""
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
  """A share as per cent; never rounded up to 100 % or down to 0 %."""
  if share in (0, 1):
    return f'{share * 100:.0f}\u00a0%'
  smallest = 10.0**-digits
  shown = min(max(share * 100, smallest), 100 - smallest) if 0 < share < 1 else share * 100
  return f'{shown:.{digits}f}\u00a0%'


def share(value: Any) -> str:
  """`percent`, and a dash for what a damaged or unfinished run left out."""
  return _or_dash(percent)(value)


def count(value: Any) -> str:
  """A number for people, and a dash likewise."""
  return _or_dash(charts.number)(value)


def duration(seconds: float) -> str:
  """Seconds in the two units that people would use."""
  if seconds < 60:
    return f'{seconds:.1f} s' if seconds < 9.95 else f'{seconds:.0f} s'
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest} s' if minutes < 60 else f'{minutes // 60:,} h {minutes % 60} min'


def text(value: Any) -> str:
  """A value of a JSON file for people."""
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
  """The filter for numbers alone: a dash for what a damaged or unfinished run left out."""

  def safe(value, *more):
    return show(value, *more) if isinstance(value, (int, float)) and math.isfinite(value) else '–'

  return safe
