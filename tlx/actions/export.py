"""`tlx export`: a run's model as another library reads it."""

from pathlib import Path

from tlx import catalog, pretrained, words
from tlx.actions.runs import load_run
from tlx.types import UsageError


def export(run: Path, out: Path, layout: str | None = None) -> Path:
  """Writes the run's model to `out` in a layout of its family; by default its source's own, or else timm's."""
  known = {name for family in catalog.names('models') for name in catalog.find('models', family).LAYOUTS}
  if layout is not None and layout not in known:
    raise UsageError(f'no layout {layout!r}{words.suggest(layout, sorted(known))}')
  model = load_run(run)
  if blocked := next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None):
    raise UsageError(f'--out {out}: {blocked} is a file; choose a folder')
  return pretrained.save(out, model, layout=layout)
