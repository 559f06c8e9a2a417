"""The names that the pickle inside a torch checkpoint uses, and the inert values that stand for its objects."""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
  name: np.dtype(getattr(ml_dtypes, name, name))
  for name in (
    'float16', 'bfloat16', 'float32', 'float64', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32',
    'uint64', 'bool', 'complex64', 'complex128', 'float8_e4m3fn', 'float8_e5m2',
  )
}  # fmt: skip
STORAGES = {
  'Float': 'float32', 'Double': 'float64', 'Half': 'float16', 'BFloat16': 'bfloat16', 'Bool': 'bool',
  'Byte': 'uint8', 'Char': 'int8', 'Short': 'int16', 'Int': 'int32', 'Long': 'int64',
  'ComplexFloat': 'complex64', 'ComplexDouble': 'complex128',
}  # fmt: skip
MAPPINGS = {'collections.OrderedDict', 'collections.Counter', 'collections.defaultdict'}
TENSORS = {f'torch._utils._rebuild_tensor{suffix}' for suffix in ('', '_v2', '_v3')}
PARAMETERS = {'torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state'}
# of (function, class, arguments, state): a tensor of a subclass, or with attributes
SUBCLASSES = {'torch._tensor._rebuild_from_type', 'torch._tensor._rebuild_from_type_v2'}
STORAGE_DTYPES = (
  {f'torch.{name}Storage': DTYPES[dtype] for name, dtype in STORAGES.items()}
  | {f'torch.cuda.{name}Storage': DTYPES[dtype] for name, dtype in STORAGES.items()}
  | {f'torch.storage.{name}': DTYPES['uint8'] for name in ('UntypedStorage', '_UntypedStorage')}
)
TORCH_DTYPES = {f'torch.{name}': dtype for name, dtype in DTYPES.items()}
# No honest checkpoint names these. Nothing would run, but the user should know what the file tries.
ATTACKS = {
  'ctypes', 'importlib.import_module', 'nt', 'os', 'posix', 'pty', 'runpy', 'shutil', 'subprocess', 'webbrowser', *(
    f'{module}.{name}'
    for module in ('builtins', '__builtin__')
    for name in ('__import__', 'breakpoint', 'compile', 'eval', 'exec', 'execfile', 'input', 'open')
  ),
}  # fmt: skip


class Global(NamedTuple):
  """The name of a class or function, which is not imported."""

  name: str


class OddKey(NamedTuple):
  """A dictionary's key that is neither text nor a small integer. `place` tells those of one text apart."""

  text: str
  place: int


class Record:
  """Stands for an object that is not a tensor: the name of its class or function, and what the pickle passed to it."""

  __slots__ = ('arguments', 'entries', 'items', 'name', 'state')

  def __init__(self, name: str, arguments: tuple[Any, ...] = ()):
    self.name = name
    self.arguments = arguments
    self.state: Any = None  # of BUILD: its attributes
    self.entries: dict[Any, Any] | None = None  # of SETITEMS, for a subclass of dict
    self.items: list[Any] | None = None  # of APPENDS and ADDITEMS, for a list, deque or set


class Storage(NamedTuple):
  """A run of `count` elements, beginning at `start`, in a storage that holds `total`."""

  key: str
  dtype: np.dtype
  total: int
  start: int
  count: int


class View(NamedTuple):
  """A tensor that has not been read yet. Strides and offset count elements of the storage."""

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
