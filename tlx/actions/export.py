"""`tlx export`: writes a run's model in the layout of another library."""

from pathlib import Path

from tlx import catalog, pretrained, words
from tlx.actions.runs import load_run
from tlx.types import UsageError


def export(run: Path, out: Path, layout: str | None = None) -> Path:
  """Writes a run's model.

  Args:
    run: the run folder.
    out: folder to write.
    layout: a key of the family's LAYOUTS; by default as `tlx.save` does.

  Returns:
    The folder.

  Raises:
    UsageError: for an unknown layout, or if a file is in the way.
  """
  known = {name for family in catalog.names('models') for name in catalog.find('models', family).LAYOUTS}
  if layout is not None and layout not in known:
    raise UsageError(f'no layout {layout!r}{words.suggest(layout, sorted(known))}')
  model = load_run(run)
  if blocked := next((p for p in (out, *out.parents) if p.exists() and not p.is_dir()), None):
    raise UsageError(f'--out {out}: {blocked} is a file; choose a folder')
  return pretrained.save(out, model, layout=layout)
