"""Files made to run code, to exhaust memory or to hang are refused in one line, and so are damaged ones."""

import os
import pathlib
import pickle
import random
import resource
import sys
import time
import zipfile

import numpy as np
import pytest
import torch_builder as tb

from tlx.types import TlxError
from tlx.weights import read_tensors

VALUES = np.arange(12, dtype=np.float32).tobytes()
SECONDS = 20  # generous: the slowest case takes about 4 on a busy machine


def leaf(shape=(12,), strides=(1,), offset=0, count=12, kind='FloatStorage') -> bytes:
  return tb.tensor(tb.storage('0', count, kind), shape, strides, offset)


def refusal(path: pathlib.Path) -> str:
  """The message; asserts that it is one line that names the file, and came soon, at the cost of little memory."""
  start, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(TlxError) as caught:
    read_tensors(path)
  message = str(caught.value)
  assert str(path) in message and '\n' not in message and len(message) < 700
  assert time.perf_counter() - start < SECONDS
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1_000_000  # KiB
  return message


def write_zip(tmp_path, body: bytes, **options) -> pathlib.Path:
  return tb.write_zip(tmp_path / 'hostile.pth', body, {'0': VALUES}, **options)


def write_either(tmp_path, layout: str, body: bytes) -> pathlib.Path:
  if layout == 'zip':
    return write_zip(tmp_path, body)
  return tb.write_legacy(tmp_path / 'hostile.pth', body, {'0': (12, VALUES)})


ATTACKS = (
  ('os', 'system'), ('posix', 'system'), ('nt', 'system'), ('builtins', 'eval'), ('builtins', 'exec'),
  ('builtins', '__import__'), ('__builtin__', 'eval'), ('subprocess', 'Popen'), ('importlib', 'import_module'),
)  # fmt: skip
OTHERS = (
  ('builtins', 'getattr'), ('numpy.core.multiarray', '_reconstruct'), ('numpy._core.multiarray', 'scalar'),
  ('functools', 'partial'), ('torch', 'load'), ('torch.serialization', 'load'), ('torch.hub', 'load'),
  ('torch._utils', '_import_dotted_name'), ('torch', 'FloatStorage.from_file'), ('torch.storage', '_load_from_bytes'),
  ('copyreg', '_reconstructor'), ('operator', 'attrgetter'), ('collections', 'namedtuple'),
  ('collections', 'OrderedDict.__init__'), ('argparse', 'Namespace'), ('torchvision.models.resnet', 'ResNet'),
  ('tlx.weights', 'fetch'), ('timeit', 'timeit'), ('datetime', 'datetime'), ('pathlib', 'PosixPath'),
  ('omegaconf.dictconfig', 'DictConfig'), ('', ''), ('collections', 'deque'), ('no.such.module', 'Class'),
)  # fmt: skip


def with_payload(tmp_path, layout: str, name: tuple[str, str]) -> tuple[pathlib.Path, pathlib.Path]:
  """A file of weights beside a call of that name, and the file that the call makes if it is carried out."""
  canary = tmp_path / 'canary'
  payload = tb.call(tb.named(*name), tb.text(f'touch {canary}'))
  body = tb.dictionary({'state_dict': tb.dictionary({'w': leaf(), 'extra': payload})})
  return write_either(tmp_path, layout, body), canary


@pytest.mark.parametrize('layout', ['zip', 'legacy'])
@pytest.mark.parametrize('name', ATTACKS, ids='.'.join)
def test_attacks_are_refused(tmp_path, layout, name):
  path, canary = with_payload(tmp_path, layout, name)
  message = refusal(path)
  assert '.'.join(name) in message and 'nothing was run' in message and not canary.exists()


@pytest.mark.parametrize('layout', ['zip', 'legacy'])
@pytest.mark.parametrize('name', OTHERS, ids='.'.join)
def test_other_globals_are_inert(tmp_path, layout, name):
  path, canary = with_payload(tmp_path, layout, name)
  modules = set(sys.modules)
  assert list(read_tensors(path)) == ['state_dict.w'] and not canary.exists()
  assert set(sys.modules) == modules


class Exploit:
  def __init__(self, command: str):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('nest', [lambda x: x, lambda x: {'state_dict': {'w': x}}, lambda x: [(x,)]])
def test_real_exploits(tmp_path, protocol, nest):
  canary = tmp_path / 'canary'
  raw = pickle.dumps(nest(Exploit(f'touch {canary}')), protocol)
  with zipfile.ZipFile(tmp_path / 'exploit.pt', 'w') as archive:
    archive.writestr('archive/data.pkl', raw)
  refusal(tmp_path / 'exploit.pt')
  assert not canary.exists()
  pickle.loads(raw)
  assert canary.exists()  # the exploit is a real one


RAW = tb.named('torch', 'Size')
OPCODES = {
  'EXT1': b'\x82\x01', 'EXT2': b'\x83\x01\0', 'EXT4': b'\x84\x01\0\0\0', 'PERSID': b'P0\n',
  'NEXT_BUFFER': b'\x97', 'READONLY_BUFFER': b'N\x98',
}  # fmt: skip


@pytest.mark.parametrize('name', OPCODES)
def test_foreign_opcodes(tmp_path, name):
  assert f'opcode {name}' in refusal(write_zip(tmp_path, OPCODES[name]))


@pytest.mark.parametrize('attack', [b'(' + tb.text('x') + b'ios\nsystem\n', b'(cos\nsystem\n' + tb.text('x') + b'o'])
def test_attacks_by_other_opcodes(tmp_path, attack):
  assert 'for os.system, which no file of weights needs; nothing was run' in refusal(write_zip(tmp_path, attack))


OBJECTS = {
  'INST': b'(' + tb.text('x') + b'imod\nOld\n', 'OBJ': b'(' + RAW + b'o', 'NEWOBJ': RAW + b')\x81',
  'NEWOBJ_EX': RAW + b')}\x92', 'STRING': b"S'a'\n", 'LONG4': b'\x8b\x01\0\0\0\x05', 'DUP': b'}20', 'POP': b'}}0',
  'set': b'\x8f(' + tb.text('a') + b'\x90', 'frozenset': b'(' + tb.text('a') + b'\x91', 'list': b'(Nl',
  'dict': b'(NNd', 'bytes of Python 2': b'U\x02\xff\xfe', 'state': RAW + b')\x81' + tb.dictionary({'a': b'N'}) + b'b',
  'items of a deque': RAW + b')\x81(NNe', 'items of a mapping': RAW + b')\x81N' + tb.text('x') + b's',
  'called record': tb.call(tb.call(RAW, b'N'), b'N'), 'numbers as text': b'I01\nL5L\nF1.5\n\x87',
}  # fmt: skip


@pytest.mark.parametrize('name', OBJECTS)
def test_other_objects_are_inert(tmp_path, name):
  body = tb.dictionary({'w': leaf(), 'extra': OBJECTS[name]})
  assert list(read_tensors(write_zip(tmp_path, body))) == ['w']


FLOAT = b'G?\xf8' + bytes(6)
KEYS = {
  'float': FLOAT, 'None': b'N', 'bool': b'\x88', 'tuple': tb.numbers([1, 2]), 'bytes': b'C\x01a', 'class': RAW,
  'nested tuple': b')' + b'\x85' * 100_000, 'object': RAW + b')\x81', 'large number': tb.number(2**300),
}  # fmt: skip


@pytest.mark.parametrize('name', KEYS)
def test_any_key_is_accepted(tmp_path, name):
  body = b'}(' + KEYS[name] + leaf() + tb.text('w') + leaf() + b'u'
  read = read_tensors(write_zip(tmp_path, body))
  assert len(read) == 2 and list(read)[1] == 'w'
  np.testing.assert_array_equal(next(iter(read.values())), read['w'])


HUGE, SIZE = 2**62, tb.named('torch', 'Size')
MISUSES = {
  'outside': leaf((13,)), 'outside by stride': leaf((4, 4), (4, 1)), 'outside by offset': leaf((12,), (1,), 1),
  'negative offset': leaf((1,), (1,), -1), 'negative stride': leaf((2,), (-1,), 5), 'negative size': leaf((-1,)),
  'huge shape': leaf((HUGE - 1,), (0,)), 'overflowing shape': leaf((2**40, 2**40), (0, 0)),
  'repeated': leaf((2**33,), (0,)), 'empty and overflowing': leaf((0, 2**61, 2**61), (0, 0, 0)),
  'huge stride': leaf((2,), (2**61,)), 'huge number': leaf((2**2000,)), 'too many strides': leaf((12,), (1, 1)),
  'rank': leaf((1,) * 70, (1,) * 70), 'huge storage': leaf(count=2**61), 'other type': leaf(kind='DoubleStorage'),
  'unknown storage type': leaf(kind='Size'), 'size of text': tb.call(SIZE, tb.text('x')), 'no arguments': SIZE + b')R',
  'two sizes of a storage': leaf() + tb.storage('0', 11) + b'\x86', 'called text': tb.call(tb.text('os.system')),
  'called tensor': tb.call(leaf()), 'called type': tb.call(tb.named('torch', 'FloatStorage')),
  'text persistent id': tb.text('storage') + b'Q', 'short persistent id': tb.tuple_of(tb.text('storage')) + b'Q',
  'module persistent id': tb.tuple_of(*[tb.text('module')] * 5) + b'Q',
  'tensor of nothing': tb.tensor(b'N', (1,), (1,)),
  'storage missing': tb.tensor(tb.storage('1', 12), (12,), (1,)),
  'key outside': tb.tensor(tb.storage('../x', 12), (1,), (1,)),
  'built function': SIZE + tb.dictionary({'__code__': b'N'}) + b'b',
  'item on text': tb.text('a') + tb.text('b') + b'Ns',
  'appended to text': tb.text('a') + b'Na', 'tuple as key': b'})Ns', 'tensor as key': b'}' + leaf() + b'Ns',
  'colliding keys': b'}' + tb.number(2**61 - 1 << 3) + b'Ns', 'unknown memo': b'h\x05', 'mark left open': b'}(',
  'parameter of a list': tb.call(tb.named('torch._utils', '_rebuild_parameter'), b']', b'\x88', b'N'),
  'subclass of a list': tb.call(tb.named('torch._tensor', '_rebuild_from_type_v2'), b']', b'N', b')', b'N'),
}  # fmt: skip


@pytest.mark.parametrize('name', MISUSES)
@pytest.mark.parametrize('layout', ['zip', 'legacy'])
def test_allowed_names_with_hostile_arguments(tmp_path, layout, name):
  refusal(write_either(tmp_path, layout, tb.dictionary({'w': MISUSES[name]})))


def laughs() -> bytes:
  """Forty lists, each ten times the one before: 10**40 items for whoever walks them."""
  levels = (b'q' + bytes([level]) + b'](' + (b'h' + bytes([level])) * 10 + b'e' for level in range(40))
  return b'(](' + b'N' * 10 + b'e' + b''.join(levels) + b't'


def laughs_at(bottom: bytes, levels: int = 40) -> bytes:
  """Dictionaries, each holding the one before twice: 2**40 names for what is at the bottom."""
  wrap = lambda i: b'q' + bytes([i]) + b'}(' + b''.join(tb.text(key) + b'h' + bytes([i]) for key in 'ab') + b'u'
  return b'(' + bottom + b''.join(map(wrap, range(levels))) + b't'


LONG = tb.text('x' * 100_000)
TREES = {
  'too many paths': laughs_at(leaf()),
  'too deep': b''.join(b'}' + tb.text('a') for _ in range(2000)) + leaf() + b's' * 2000,
  'too long': b'}(' + LONG + b'}(' + b''.join(tb.text(str(i)) + leaf() for i in range(1000)) + b'uu',
  'every list in every other': b'(' + b''.join(b']q' + bytes([i]) for i in range(40)) + b't'
  + b''.join(b'h' + bytes([i]) + b'(' + b''.join(b'h' + bytes([j]) for j in range(40)) + b'e' for i in range(40))
  + b'h\0' + leaf() + b'a' + b'0' * 41 + b'\x85',
}  # fmt: skip


@pytest.mark.parametrize('name', TREES)
def test_places_of_tensors_are_bounded(tmp_path, name):
  message = refusal(write_zip(tmp_path, TREES[name]))
  assert any(reason in message for reason in ('more than 200,000 tensors', 'more than 64 levels', 'too many places'))


def test_a_list_that_holds_itself(tmp_path):
  body = tb.dictionary({'w': leaf(), 'loop': b']q\0h\0a' + leaf() + b'a'})
  assert list(read_tensors(write_zip(tmp_path, body))) == ['w', 'loop.1']


def test_billion_laughs_and_deep_nesting_cost_nothing(tmp_path):
  objects = RAW + b')\x81' + (RAW + b')\x81') * 100_000 + b'b' * 100_000
  for junk in (laughs(), b']' * 300_000 + b'a' * 299_999, b')' + b'\x85' * 300_000, objects):
    start = time.perf_counter()
    read = read_tensors(write_zip(tmp_path, tb.dictionary({'w': leaf(), 'junk': junk})))
    assert list(read) == ['w'] and time.perf_counter() - start < SECONDS
  refusal(write_zip(tmp_path, laughs()))


PAIRS = b'](' + (b'](' + tb.text('k') + b'Ne') * 2_000 + b'e'
BOMBS = {
  'long names of globals': tb.text('x' * 1_000_000) + b'q\0' + b'h\0h\0\x930' * 100_000,
  'long keys': b'B' + (1_000_000).to_bytes(4, 'little') + bytes(1_000_000) + b'q\0}' + b'h\0Ns' * 200_000 + b'\x86',
  'steps': b'N0' * 10 + b'}' * 3_000_000,
  'marks': b'(' * 3_000_000,
  'nested lists': b']' * 3_000_000,
  'the same pairs again and again': PAIRS + b'q\0' + tb.ORDERED + b'q\1' + b'h\1h\0\x85R' * 200_000,
  'long text': b'X\xff\xff\xff\xff' + b'x' * 1000, 'longest text': b'\x8d' + b'\xff' * 8,
  'long bytes': b'B\xff\xff\xff\x7f', 'longest bytes': b'\x8e' + (2**62).to_bytes(8, 'little'),
  'long number': b'\x8b\xff\xff\xff\x7f', 'frame': b'\x95' + b'\xff' * 8, 'memo': b'}r\xff\xff\xff\xffh\1',
}  # fmt: skip


@pytest.mark.parametrize('layout', ['zip', 'legacy'])
@pytest.mark.parametrize('name', BOMBS)
def test_bombs(tmp_path, layout, name):
  refusal(write_either(tmp_path, layout, BOMBS[name]))


def test_many_views_of_one_storage(tmp_path):
  raw = bytes(4 << 20)
  views = {str(i): tb.tensor(tb.storage('0', len(raw), 'ByteStorage'), (len(raw) - i,), (1,), i) for i in range(200)}
  path = tb.write_zip(tmp_path / 'many.pt', tb.dictionary(views), {'0': raw})
  assert 'more than four times' in refusal(path)


def test_compressed_entries(tmp_path):
  path = write_zip(tmp_path, tb.dictionary({'w': leaf()}), compression=zipfile.ZIP_DEFLATED)
  assert 'compressed' in refusal(path)
  with zipfile.ZipFile(tmp_path / 'bomb.npz', 'w', zipfile.ZIP_DEFLATED) as archive, archive.open('a.npy', 'w') as file:
    np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': (256 << 20,)})
    for _ in range(256):
      file.write(bytes(1 << 20))
  assert 'more than 100 times' in refusal(tmp_path / 'bomb.npz')


@pytest.mark.parametrize('extra', ['archive/data/0', '../../escape', '/etc/escape', 'second/data.pkl'])
def test_odd_entries(tmp_path, extra, recwarn):
  path = write_zip(tmp_path, tb.dictionary({'w': leaf()}))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr(extra, b'x')
  refusal(path)


@pytest.mark.parametrize('field', [20, 24])  # compressed and real size in the central directory
def test_sizes_that_disagree(tmp_path, field):
  path = write_zip(tmp_path, tb.dictionary({'w': leaf()}))
  raw = bytearray(path.read_bytes())
  for start in (i for i in range(len(raw)) if raw[i : i + 4] == b'PK\x01\x02'):
    raw[start + field : start + field + 4] = (2**31).to_bytes(4, 'little')
  path.write_bytes(raw)
  refusal(path)


def test_a_huge_sparse_file(tmp_path):
  path = tmp_path / 'sparse.pth'
  tb.write_legacy(path, tb.dictionary({'w': leaf(), 'x': b'\x8d' + (2**40).to_bytes(8, 'little')}), {})
  os.truncate(path, 2**41)
  refusal(path)
  for start in (b'PK\x03\x04', (2**40).to_bytes(8, 'little') + b'{'):
    path.write_bytes(start)
    os.truncate(path, 2**41)
    refusal(path)


def samples(tmp_path) -> list[bytes]:
  body = tb.dictionary(
    {'state_dict': tb.dictionary({'a': leaf((3, 4), (4, 1)), 'b': leaf((), (), 11)}), 'n': tb.number(3)}
  )
  paths = [write_zip(tmp_path, body), tb.write_legacy(tmp_path / 'legacy.pth', body, {'0': (12, VALUES)})]
  np.savez(tmp_path / 'a.npz', a=np.arange(6.0), b=np.float32(2))
  from tlx.weights import write_safetensors

  write_safetensors(tmp_path / 'a.safetensors', {'a': np.arange(6.0), 'b': np.ones((2, 3), np.float32)})
  return [path.read_bytes() for path in (*paths, tmp_path / 'a.npz', tmp_path / 'a.safetensors')]


def outcome(path: pathlib.Path, raw: bytes) -> bool:
  """Whether the file was read; anything but arrays or a TlxError escapes and fails the test."""
  path.write_bytes(raw)
  try:
    read = read_tensors(path)
  except TlxError as error:
    assert str(path) in str(error) and '\n' not in str(error)
    return False
  assert all(isinstance(array, np.ndarray) for array in read.values())
  return True


def test_truncated_anywhere(tmp_path):
  for raw in samples(tmp_path):
    assert outcome(tmp_path / 'cut', raw)
    assert not any(outcome(tmp_path / 'cut', raw[:end]) for end in range(0, len(raw), 7))


@pytest.mark.filterwarnings('error')
def test_random_damage(tmp_path):
  rng = random.Random(0)
  for raw in samples(tmp_path):
    for _ in range(250):
      damaged = bytearray(raw)
      for _ in range(rng.choice([1, 1, 2, 8])):
        damaged[rng.randrange(len(raw))] = rng.randrange(256)
      outcome(tmp_path / 'damaged', bytes(damaged))
