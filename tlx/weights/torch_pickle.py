"""Reads the pickles inside torch checkpoints with a machine that only builds data and calls nothing.

`pickletools` splits the bytes into opcodes, and the loop below acts on them. It keeps a global as its name. A dozen
names make tensors and dictionaries; every other class or function becomes a `Record`, which holds what the pickle
passed to it and does nothing. Python's own unpickler would call what a file names; even with a guarded `find_class` it
skips the guard for cached EXT codes and lets BUILD set attributes on whatever the guard returned.

The number of opcodes (`OPCODES`) and of bytes (`PICKLE_BYTES`) bound time and memory; a number that the file declares
never does. Keys of dictionaries are strings, small integers and `OddKey`s, because a hostile file could make the hashes
of others collide.
"""

import pickletools
from typing import Any, BinaryIO

import numpy as np

from tlx.weights import torch_names as known
from tlx.weights.torch_names import Global, OddKey, Record, Storage, View

OPCODES = 2_000_000  # a tensor takes about 30, so it is enough for 60,000 tensors
PICKLE_BYTES = 32 << 20
RANK = 32
NAME_LENGTH = 1000  # of a global; a pickle may join two long texts again and again
LARGEST = 2**62  # upper bound of sizes, strides and offsets

CONSTANTS = {
  'NONE': lambda: None, 'NEWTRUE': lambda: True, 'NEWFALSE': lambda: False,
  'EMPTY_TUPLE': tuple, 'EMPTY_LIST': list, 'EMPTY_DICT': dict, 'EMPTY_SET': lambda: Record('builtins.set'),
}  # fmt: skip
LITERALS = {
  'BININT', 'BININT1', 'BININT2', 'INT', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'UNICODE', 'BINUNICODE',
  'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8',
}  # fmt: skip
TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


class Unsafe(Exception):
  """The pickle asks for something that a file of tensors never needs. The message says what."""


def _expect(condition: bool, problem: str) -> None:
  if not condition:
    raise ValueError(problem)


def _key_text(key: Any) -> str:
  if isinstance(key, float | bool | None):
    return repr(key)
  return key.name if isinstance(key, Record | Global) else type(key).__name__


def _python2_text(value: str) -> str | bytes:
  raw = value.encode('latin-1')
  try:
    return raw.decode('utf-8')
  except UnicodeDecodeError:  # bytes, such as those of a numpy array
    return raw


def _sizes(values: Any) -> tuple[int, ...]:
  if isinstance(values, Record) and values.name == 'torch.Size' and values.arguments:
    values = values.arguments[0]
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
    elif name in ('STRING', 'BINSTRING', 'SHORT_BINSTRING'):  # str of Python 2
      stack.append(_python2_text(argument))
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      self.memo[len(self.memo) if name == 'MEMOIZE' else argument] = stack[-1]
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      stack.append(self.memo[argument])
    elif name in TUPLES:
      count = TUPLES[name]
      _expect(len(stack) >= count, 'the stack is too short for a tuple')
      stack[-count:] = [tuple(stack[-count:])]
    elif name == 'MARK':
      self.below.append(stack)
      self.stack = []
    elif name in ('TUPLE', 'LIST', 'DICT', 'FROZENSET', 'OBJ', 'INST', 'POP_MARK'):
      items = self._to_mark()
      if name != 'POP_MARK':
        self.stack.append(self._collected(name, items, argument))
    elif name in ('APPEND', 'APPENDS', 'ADDITEMS'):
      items = [stack.pop()] if name == 'APPEND' else self._to_mark()
      self._extend(self.stack[-1], items)
    elif name in ('SETITEM', 'SETITEMS'):
      items = [stack.pop(-2), stack.pop()] if name == 'SETITEM' else self._to_mark()
      _expect(len(items) % 2 == 0, 'a key has no value')
      self._set(self.stack[-1], zip(items[::2], items[1::2], strict=True))
    elif name == 'DUP':
      stack.append(stack[-1])
    elif name == 'POP':
      stack.pop()
    elif name == 'GLOBAL':
      stack.append(self._global(*argument.split(' ', 1)))
    elif name == 'STACK_GLOBAL':
      attribute, module = stack.pop(), stack.pop()
      _expect(type(module) is str and type(attribute) is str, 'the name of a global is not text')
      stack.append(self._global(module, attribute))
    elif name in ('REDUCE', 'NEWOBJ'):
      arguments, function = stack.pop(), stack.pop()
      stack.append(self._reduce(function, arguments) if name == 'REDUCE' else self._record(function, arguments))
    elif name == 'NEWOBJ_EX':
      options, arguments, function = stack.pop(), stack.pop(), stack.pop()
      stack.append(self._record(function, (arguments, options)))
    elif name == 'BINPERSID':
      stack.append(self._persistent(stack.pop()))
    elif name == 'BUILD':  # attributes, such as the `_metadata` of a state dict, which the reader does not need
      state, built = stack.pop(), stack[-1]
      _expect(type(built) is dict or isinstance(built, View | Record), 'attributes are set on a non-object')
      if isinstance(built, Record):
        built.state = state
    elif name not in ('PROTO', 'FRAME'):
      raise Unsafe(f'opcode {name}')

  def _collected(self, name: str, items: list[Any], argument: Any) -> Any:
    """What an opcode makes of the items above the last mark."""
    if name == 'TUPLE':
      return tuple(items)
    if name == 'LIST':
      return items
    if name == 'DICT':
      _expect(len(items) % 2 == 0, 'a key has no value')
      mapping: dict[Any, Any] = {}
      self._set(mapping, zip(items[::2], items[1::2], strict=True))
      return mapping
    if name == 'FROZENSET':
      return Record('builtins.frozenset', tuple(items))
    made = self._global(*argument.split(' ', 1)) if name == 'INST' else items.pop(0)
    return self._record(made, tuple(items))

  def _extend(self, target: Any, items: list[Any]) -> None:
    if isinstance(target, Record):
      target.items = target.items if target.items is not None else []
      target = target.items
    _expect(type(target) is list, 'an item is appended to something that is not a list')
    target.extend(items)

  def _set(self, target: Any, items: Any) -> None:
    if isinstance(target, Record):
      target.entries = target.entries if target.entries is not None else {}
      target = target.entries
    _expect(type(target) is dict, 'an item is set on something that is not a dictionary')
    for key, value in items:
      plain = type(key) is str or (type(key) is int and abs(key) < LARGEST)
      target[key if plain else OddKey(_key_text(key), len(target))] = value

  def _global(self, module: str, attribute: str) -> Global:
    module, attribute = module[:NAME_LENGTH], attribute[:NAME_LENGTH]
    name = f'{module}.{attribute}'
    if module.partition('.')[0] in known.ATTACKS or name in known.ATTACKS:
      raise Unsafe(repr(name[:80])[1:-1])
    return Global(name)

  def _record(self, function: Any, arguments: Any) -> Record:
    _expect(isinstance(function, Global | Record), 'something is called that is not a global')
    _expect(type(arguments) is tuple, f'{function.name:.80} has odd arguments')
    return Record(function.name, arguments)

  def _reduce(self, function: Any, arguments: Any) -> Any:
    made = self._record(function, arguments)
    name = made.name if isinstance(function, Global) else ''
    if name in known.MAPPINGS:
      factory = name == 'collections.defaultdict' and arguments and not isinstance(arguments[0], dict)
      return self._mapping(*arguments[1 if factory else 0 :])
    if name in known.TENSORS:
      return self._tensor(name, *arguments)
    if name in known.PARAMETERS:
      _expect(isinstance(arguments[0], View | Record), 'a parameter holds no tensor')
      return arguments[0]
    if name in known.SUBCLASSES:
      inner, _, inner_arguments, *_ = arguments
      _expect(isinstance(inner, Global), f'{name} of a non-tensor')
      return self._reduce(inner, inner_arguments) if inner.name in known.TENSORS | known.PARAMETERS else made
    return made

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

  def _persistent(self, identity: Any) -> Any:
    """The storage of a persistent id; or the class, which PyTorch before 1.6 stored with its source code."""
    _expect(type(identity) is tuple and len(identity) >= 2, 'an odd persistent id')
    if identity[0] == 'module' and isinstance(identity[1], Global):
      return identity[1]
    _expect(5 <= len(identity) <= 6 and identity[0] == 'storage', 'an odd persistent id')
    _, kind, key, _, count, *view = identity
    _expect(isinstance(kind, Global), 'a storage of unknown type')
    if kind.name not in known.STORAGE_DTYPES:  # such as quantised numbers
      return Record(kind.name, identity)
    key, total, dtype = _text(key), _size(count), known.STORAGE_DTYPES[kind.name]
    _expect(self.storages.setdefault(key, (dtype, total)) == (dtype, total), f'storage {key!r:.40} is declared twice')
    if not view or view[0] is None:
      return Storage(key, dtype, total, 0, total)
    _expect(type(view[0]) is tuple and len(view[0]) == 3, 'an odd view of a storage')
    start, length = _size(view[0][1]), _size(view[0][2])
    _expect(start + length <= total, f'a view reaches outside of storage {key!r:.40}')
    return Storage(key, dtype, total, start, length)

  def _tensor(self, name: str, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View | Record:
    if isinstance(storage, Record):
      return storage
    _expect(isinstance(storage, Storage), 'a tensor has no storage')
    dtype = storage.dtype
    if name.endswith('_v3'):
      _expect(len(rest) >= 3 and isinstance(rest[2], Global), 'a tensor has no type')
      dtype = known.TORCH_DTYPES[rest[2].name]
    view = View(storage, dtype, _size(offset), _sizes(shape), _sizes(strides))
    _expect(len(view.shape) == len(view.strides), 'a tensor has more strides than dimensions, or fewer')
    return view
