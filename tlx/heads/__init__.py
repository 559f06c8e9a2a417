"""Heads for dense tasks, one file each: `Head`, how libraries name it with a backbone (LAYOUTS), and whole MODELS."""
