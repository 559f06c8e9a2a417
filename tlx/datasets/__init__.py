"""Data sets, one file each. `load(argument, *, seed)` returns a tlx.types.Dataset."""
