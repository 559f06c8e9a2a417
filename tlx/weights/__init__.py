"""Weights from and to files.

- `fetch` finds or downloads a file.
- `read` and `write` turn files into arrays and back.
- `fit` finds the tensors that are a model's.
- `rules` translates the names of other libraries.
- `resample` adapts arrays to another input size.
"""

from tlx.weights.fetch import at_hand, fetch, read_config, read_processor
from tlx.weights.read import open_tensors, read_tensors
from tlx.weights.resample import input_channels
from tlx.weights.write import write_safetensors

__all__ = [
  'at_hand', 'fetch', 'input_channels', 'open_tensors', 'read_config',
  'read_processor', 'read_tensors', 'write_safetensors',
]  # fmt: skip
