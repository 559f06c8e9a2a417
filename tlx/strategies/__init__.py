"""Strategies: what learns, and when. Each file has a dataclass Strategy; `phases(layers)` returns Phase tuples."""
