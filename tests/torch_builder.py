"""Writes torch checkpoints without PyTorch, opcode by opcode, well-formed or not; objects are given as opcodes."""

import pathlib
import pickle
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
  raw = value.encode('utf-8', 'surrogatepass')
  return b'X' + len(raw).to_bytes(4, 'little') + raw


def number(value: int) -> bytes:
  raw = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
  return b'\x8a' + bytes([len(raw)]) + raw


def named(module: str, name: str) -> bytes:
  return f'c{module}\n{name}\n'.encode()


def tuple_of(*items: bytes) -> bytes:
  return b'(' + b''.join(items) + b't'


def numbers(values) -> bytes:
  return tuple_of(*(number(value) for value in values))


def call(function: bytes, *arguments: bytes) -> bytes:
  return function + tuple_of(*arguments) + b'R'


def dictionary(items: dict[str, bytes]) -> bytes:
  return b'}(' + b''.join(text(name) + value for name, value in items.items()) + b'u'


ORDERED = named('collections', 'OrderedDict')
BOOLEANS = {False: b'\x89', True: b'\x88'}


def storage(
  key: str, count: int, kind: str = 'FloatStorage', *, module: str = 'torch', view: bytes | None = None
) -> bytes:
  extra = () if view is None else (view,)
  return tuple_of(text('storage'), named(module, kind), text(key), text('cpu'), number(count), *extra) + b'Q'


def tensor(source: bytes, shape, strides, offset: int = 0) -> bytes:
  parts = (source, number(offset), numbers(shape), numbers(strides), BOOLEANS[False], call(ORDERED))
  return call(named('torch._utils', '_rebuild_tensor_v2'), *parts)


def program(body: bytes) -> bytes:
  return b'\x80\x02' + body + b'.'


def write_zip(
  path: pathlib.Path,
  body: bytes,
  records: dict[str, bytes],
  *,
  root: str = 'archive',
  byteorder: str | None = 'little',
  compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr(f'{root}/data.pkl', program(body))
    if byteorder:
      archive.writestr(f'{root}/byteorder', byteorder)
    for key, raw in records.items():
      archive.writestr(f'{root}/data/{key}', raw)
    archive.writestr(f'{root}/version', '3\n')
  return path


def write_legacy(path: pathlib.Path, body: bytes, records: dict[str, tuple[int, bytes]]) -> pathlib.Path:
  """records: {key: (elements, their bytes)}."""
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
  with path.open('wb') as file:
    for value in (MAGIC, 1001, system):
      pickle.dump(value, file, protocol=2)
    file.write(program(body))
    pickle.dump(list(records), file, protocol=2)
    for count, raw in records.values():
      file.write(count.to_bytes(8, 'little') + raw)
  return path
