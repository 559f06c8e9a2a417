"""Data sets: one file each, found by listing this folder; `load(argument, *, seed)` returns a tlx.types.Dataset."""
