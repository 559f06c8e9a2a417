"""Weights from and to files: fetch (where from), read and write (which bytes), rules (whose names), resample (fit)."""

from tlx.weights.fetch import at_hand, fetch, read_config, read_processor
from tlx.weights.read import read_tensors
from tlx.weights.resample import input_channels
from tlx.weights.write import write_safetensors

__all__ = [
  'at_hand', 'fetch', 'input_channels', 'read_config', 'read_processor', 'read_tensors', 'write_safetensors',
]  # fmt: skip
