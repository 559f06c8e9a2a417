"""Tells files of weights from what a server sends in their place: login pages, messages, half a file.

Only a file that passes is kept under its final name; what it holds is `read`'s affair.
"""

import json
import pathlib
import zipfile

from tlx.weights.contents import ZIP_MAGIC
from tlx.weights.read import HEADER_BYTES
from tlx.weights.torch_file import LEGACY_MAGIC

HEAD = 64  # bytes that tell what a file is
PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))


def page(head: bytes) -> str:
  """Says what a file is, by its first HEAD bytes, if it is text where weights are due; else ''."""
  if not head:
    return 'an empty file came'
  if head[8:9] == b'{' or head.lstrip()[:1] not in (b'<', b'{'):
    return ''
  what = 'a web page' if head.lstrip()[:1] == b'<' else 'JSON'
  return f'{what} came, not weights; does the address, or the network, ask for a login?'


def other_kind(head: bytes) -> str:
  """Says what a file is, by its first HEAD bytes, if it is not a file of weights; else ''."""
  known = head[:4] == ZIP_MAGIC or LEGACY_MAGIC in head[:32] or head[8:9] == b'{' or head[:2] in PICKLES
  return '' if known else page(head) or f'not a file of weights (it starts with {head[:16]!r})'


def not_weights(path: pathlib.Path) -> str:
  """Says what is wrong with a file that should be weights: safetensors, npz, or torch's; '' if nothing is."""
  with path.open('rb') as file:
    return other_kind(file.read(HEAD)) or not_whole(path)


def not_whole(path: pathlib.Path) -> str:
  """Says what is wrong with a file that is text, or weights that are cut short; '' of what tlx does not know."""
  with path.open('rb') as file:
    head = file.read(HEAD)
    if head[:4] == ZIP_MAGIC:
      return '' if zipfile.is_zipfile(file) else 'the file is cut short'
    if head[8:9] != b'{' or LEGACY_MAGIC in head or head[:2] in PICKLES:
      return page(head)
    file.seek(8)
    length, size = int.from_bytes(head[:8], 'little'), path.stat().st_size
    try:
      entries = json.loads(file.read(min(length, HEADER_BYTES)))
      end = max((e['data_offsets'][1] for name, e in entries.items() if name != '__metadata__'), default=0)
      return '' if 8 + length + end == size else 'the file is cut short, or longer than it says'
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError):
      return 'a damaged safetensors file came'


def not_json(path: pathlib.Path) -> str:
  """Says what is wrong with a file that should be a JSON object; '' if nothing is."""
  content = path.read_bytes()
  try:
    return '' if isinstance(json.loads(content), dict) else 'JSON came, but not an object'
  except (ValueError, RecursionError):
    return 'a web page came, not JSON' if content.lstrip()[:1] == b'<' else 'not JSON'
