"""Did you mean: the nearest of the words that are known."""

import difflib
from collections.abc import Iterable


def near(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
  """At most three known words that look like `word`, the nearest first."""
  return difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
  """': did you mean X?' where something is near, else ''."""
  close = near(word, known, cutoff=cutoff)
  return f': did you mean {" or ".join(close)}?' if close else ''


def suggest(word: str, known: Iterable[str]) -> str:
  """': did you mean X?' where something is near, else '; there are ...' with the first forty."""
  known = list(known)
  return did_you_mean(word, known) or f'; there are {", ".join(known[:40])}'
