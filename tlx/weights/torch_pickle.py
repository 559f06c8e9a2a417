"""Reads the pickles inside torch checkpoints with a machine that only builds data and calls nothing.

`pickletools` splits the bytes into opcodes, and the loop below acts on the few that torch.save writes. It keeps a
global as its name. REDUCE recognises a dozen names and builds inert records from them. Every other opcode and every
other global is refused. Python's own unpickler would call what a file names; even with a guarded `find_class` it skips
the guard for cached EXT codes and lets BUILD set attributes on whatever the guard returned.

The number of opcodes (`OPCODES`) and of bytes (`PICKLE_BYTES`) bound time and memory; a number that the file declares
never does. Dictionary keys are strings and small integers only, because a hostile file could make others collide.
"""

import pickletools
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

OPCODES = 2_000_000  # a tensor takes about 30, so it is enough for 60,000 tensors
PICKLE_BYTES = 32 << 20
RANK = 32
ARGUMENTS = 16
LARGEST = 2**62  # upper bound of sizes, strides and offsets

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


class Unsafe(ValueError):
  """The pickle asks for something that a file of tensors never needs. The message says what."""


class Global(NamedTuple):
  """One of the ALLOWED names, which the pickle asked for."""

  name: str


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


MAPPINGS = {'collections.OrderedDict', 'collections.Counter'}
TENSORS = {f'torch._utils._rebuild_tensor{suffix}' for suffix in ('', '_v2', '_v3')}
PARAMETERS = {'torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state'}
SUBCLASS = 'torch._tensor._rebuild_from_type_v2'  # of (function, class, arguments, state): a tensor with attributes
OTHERS = {'torch.Size', 'torch.device', 'torch.Tensor', 'torch.nn.parameter.Parameter', SUBCLASS}
STORAGE_DTYPES = (
  {f'torch.{name}Storage': DTYPES[dtype] for name, dtype in STORAGES.items()}
  | {f'torch.cuda.{name}Storage': DTYPES[dtype] for name, dtype in STORAGES.items()}
  | {f'torch.storage.{name}': DTYPES['uint8'] for name in ('UntypedStorage', '_UntypedStorage')}
)
TORCH_DTYPES = {f'torch.{name}': dtype for name, dtype in DTYPES.items()}
ALLOWED = {*MAPPINGS, *TENSORS, *PARAMETERS, *OTHERS, *STORAGE_DTYPES, *TORCH_DTYPES}

CONSTANTS = {
  'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False,
  'EMPTY_TUPLE': tuple, 'EMPTY_LIST': list, 'EMPTY_DICT': dict,
}  # fmt: skip
LITERALS = {
  'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
  'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8',
}  # fmt: skip
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def _expect(condition: bool, problem: str) -> None:
  if not condition:
    raise ValueError(problem)


def _sizes(values: Any) -> tuple[int, ...]:
  _expect(type(values) in (tuple, list) and len(values) <= RANK, f'a shape is not a tuple of at most {RANK} numbers')
  return tuple(_size(value) for value in values)


def _size(value: Any) -> int:
  _expect(type(value) is int and 0 <= value < LARGEST, 'a size, stride or offset is negative, huge or not an integer')
  return value


def _text(value: Any) -> str:
  if type(value) is int and abs(value) < LARGEST:  # Python 2 writes such keys
    value = str(value)
  _expect(type(value) is str, 'the name of a storage is not text')
  return value


class Machine:
  """Runs the pickles of one file. `storages` collects the dtypes and sizes that their persistent ids declare."""

  def __init__(self) -> None:
    self.storages: dict[str, tuple[np.dtype, int]] = {}
    self.budget = OPCODES

  def load(self, stream: BinaryIO) -> Any:
    """Builds the object that the pickle at the stream's position describes. The stream then stands after the pickle.

    Args:
      stream: of the file's bytes.

    Returns:
      The object.

    Raises:
      Unsafe: if the pickle asks for an opcode or a global that is not allowed.
      ValueError, IndexError, KeyError, TypeError: if the stream is damaged.
    """
    self.stack: list[Any] = []
    self.below: list[list[Any]] = []  # one stack for each open MARK
    self.memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
      self._spend(1)
      if opcode.name == 'STOP':
        _expect(len(self.stack) == 1 and not self.below, 'the pickle ends with items left on its stack')
        return self.stack.pop()
      self._step(opcode.name, argument)
    raise ValueError('the pickle has no end')

  def _spend(self, work: int) -> None:
    self.budget -= work
    _expect(self.budget >= 0, f'its pickle takes more than {OPCODES} steps')

  def _to_mark(self) -> list[Any]:
    items, self.stack = self.stack, self.below.pop()
    return items

  def _step(self, name: str, argument: Any) -> None:
    stack = self.stack
    if name in CONSTANTS:
      stack.append(CONSTANTS[name]())
    elif name in LITERALS:
      stack.append(argument)
    elif name in ('BINSTRING', 'SHORT_BINSTRING'):  # str of Python 2
      stack.append(argument.encode('latin-1').decode('utf-8'))
    elif name in ('BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      self.memo[len(self.memo) if name == 'MEMOIZE' else argument] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(self.memo[argument])
    elif name in TUPLES:
      count = TUPLES[name]
      _expect(len(stack) >= count, 'the stack is too short for a tuple')
      stack[-count:] = [tuple(stack[-count:])]
    elif name == 'MARK':
      self.below.append(stack)
      self.stack = []
    elif name == 'TUPLE':
      items = self._to_mark()
      self.stack.append(tuple(items))
    elif name in ('APPEND', 'APPENDS'):
      items = [stack.pop()] if name == 'APPEND' else self._to_mark()
      _expect(type(self.stack[-1]) is list, 'an item is appended to something that is not a list')
      self.stack[-1].extend(items)
    elif name in ('SETITEM', 'SETITEMS'):
      items = [stack.pop(-2), stack.pop()] if name == 'SETITEM' else self._to_mark()
      _expect(len(items) % 2 == 0, 'a key has no value')
      self._set(self.stack[-1], zip(items[::2], items[1::2], strict=True))
    elif name == 'GLOBAL':
      stack.append(self._global(*argument.split(' ', 1)))
    elif name == 'STACK_GLOBAL':
      attribute, module = stack.pop(), stack.pop()
      _expect(type(module) is str and type(attribute) is str, 'the name of a global is not text')
      stack.append(self._global(module, attribute))
    elif name == 'REDUCE':
      arguments, function = stack.pop(), stack.pop()
      stack.append(self._reduce(function, arguments))
    elif name == 'BINPERSID':
      stack.append(self._storage(stack.pop()))
    elif name == 'BUILD':  # attributes, such as the `_metadata` of a state dict; the reader does not need them
      stack.pop()
      _expect(type(stack[-1]) is dict or isinstance(stack[-1], View), 'attributes are set on a non-tensor')
    elif name not in ('PROTO', 'FRAME'):
      what = f' for {argument.replace(" ", ".", 1)!r:.80}' if name == 'INST' else ''
      raise Unsafe(f'opcode {name}{what}')

  def _set(self, target: Any, items: Any) -> None:
    _expect(type(target) is dict, 'an item is set on something that is not a dictionary')
    for key, value in items:
      _expect(type(key) is str or (type(key) is int and abs(key) < LARGEST), 'a key is neither text nor small integer')
      target[key] = value

  def _global(self, module: str, attribute: str) -> Global:
    name = f'{module}.{attribute}'
    if name not in ALLOWED:
      raise Unsafe(f'{name!r:.80}'.strip('\'"'))
    return Global(name)

  def _reduce(self, function: Any, arguments: Any) -> Any:
    _expect(isinstance(function, Global), 'something is called that is not a global')
    _expect(type(arguments) is tuple and len(arguments) <= ARGUMENTS, f'{function.name} has odd arguments')
    name = function.name
    if name in MAPPINGS:
      return self._mapping(*arguments)
    if name in TENSORS:
      return self._tensor(name, *arguments)
    if name in PARAMETERS:
      _expect(isinstance(arguments[0], View), 'a parameter holds no tensor')
      return arguments[0]
    if name == SUBCLASS:
      inner, _, inner_arguments, _ = arguments
      _expect(isinstance(inner, Global) and inner.name in TENSORS | PARAMETERS, f'{SUBCLASS} of a non-tensor')
      return self._reduce(inner, inner_arguments)
    if name == 'torch.Size':
      return _sizes(*arguments)
    if name == 'torch.device':
      return None
    raise ValueError(f'{name} is called, which no checkpoint does')

  def _mapping(self, items: Any = ()) -> dict[Any, Any]:
    """Builds an OrderedDict. Python 2 wrote its items as a list of pairs."""
    mapping: dict[Any, Any] = {}
    if type(items) is dict:
      items = list(items.items())
    _expect(type(items) in (list, tuple), 'a dictionary is made of something other than pairs')
    self._spend(len(items))  # a pickle may ask for the same list many times
    for item in items:
      _expect(type(item) in (list, tuple) and len(item) == 2, 'a dictionary is made of something other than pairs')
    self._set(mapping, items)
    return mapping

  def _storage(self, identity: Any) -> Storage:
    _expect(type(identity) is tuple and 5 <= len(identity) <= 6 and identity[0] == 'storage', 'an odd persistent id')
    _, kind, key, _, count, *view = identity
    _expect(isinstance(kind, Global) and kind.name in STORAGE_DTYPES, 'a storage of unknown type')
    key, total, dtype = _text(key), _size(count), STORAGE_DTYPES[kind.name]
    _expect(self.storages.setdefault(key, (dtype, total)) == (dtype, total), f'storage {key!r:.40} is declared twice')
    if not view or view[0] is None:
      return Storage(key, dtype, total, 0, total)
    _expect(type(view[0]) is tuple and len(view[0]) == 3, 'an odd view of a storage')
    start, length = _size(view[0][1]), _size(view[0][2])
    _expect(start + length <= total, f'a view reaches outside of storage {key!r:.40}')
    return Storage(key, dtype, total, start, length)

  def _tensor(self, name: str, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
    _expect(isinstance(storage, Storage), 'a tensor has no storage')
    dtype = storage.dtype
    if name.endswith('_v3'):
      _expect(len(rest) >= 3 and isinstance(rest[2], Global), 'a tensor has no type')
      dtype = TORCH_DTYPES[rest[2].name]
    view = View(storage, dtype, _size(offset), _sizes(shape), _sizes(strides))
    _expect(len(view.shape) == len(view.strides), 'a tensor has more strides than dimensions, or fewer')
    return view
