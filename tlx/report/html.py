"""Pages that need no network: one file, whose content policy lets nothing but its own script run."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any


def render(
  package: str, page: str, script: str, context: Mapping[str, Any], filters: Mapping[str, Callable] = {}
) -> str:
  """The template `page` of a package, every value escaped; `script` is a template too, included in the page.

  The page is given the script's hash as `digest`, for its policy. Undefined names print as nothing.
  """
  import jinja2

  load = lambda name: resources.files(package).joinpath(name).read_text('utf-8')
  environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(load), autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters |= filters
  hashed = hashlib.sha256(environment.get_template(script).render().encode()).digest()
  return environment.get_template(page).render(context, digest=base64.b64encode(hashed).decode())
