"""What learns, and when: one frozen dataclass a file, named Strategy, whose `phases(layers)` returns Phase tuples."""
