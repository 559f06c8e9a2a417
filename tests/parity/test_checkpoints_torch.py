"""Checkpoints as PyTorch itself writes them: whatever wraps a model, tlx finds its tensors, and loads them."""

import argparse
import collections
import datetime
import enum
import functools
import pathlib

import numpy as np
import pytest
import tiny

import tlx
from tlx import catalog
from tlx.weights import read_tensors, rules

torch = pytest.importorskip('torch')
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore')]

NAME = 'resnet_test'
TABLE = tuple(catalog.variant(NAME).family.LAYOUTS['timm'](catalog.variant(NAME).config))


class Mode(enum.Enum):
  FAST = 1


class Net(torch.nn.Module):
  """A module whose state dict has the names of the tiny ResNet."""

  def forward(self, x):
    return x + self.conv1.weight.sum()


def net(factor: float = 1.0) -> Net:
  made = Net()
  for name, x in rules.write(tiny.built(NAME).variables, TABLE).items():
    *parents, last = name.split('.')
    module = made
    for parent in parents:
      if parent not in module._modules:
        module.add_module(parent, torch.nn.Module())
      module = module._modules[parent]
    value = torch.from_numpy(np.ascontiguousarray(x)) * factor
    if 'running' in last:
      module.register_buffer(last, value)
    else:
      module.register_parameter(last, torch.nn.Parameter(value))
  made.register_buffer('grid', torch.zeros(3), persistent=False)
  made.act = functools.partial(torch.nn.functional.relu, inplace=True)
  return made


def distributed(model):
  torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
  try:
    return torch.nn.parallel.DistributedDataParallel(model).state_dict()
  finally:
    torch.distributed.destroy_process_group()


def timm_train(model):
  """What timm's CheckpointSaver writes, and what people add to it."""
  optimizer = torch.optim.AdamW(model.parameters())
  model(torch.ones(2)).sum().backward()
  optimizer.step()
  args = argparse.Namespace(model=NAME, out=pathlib.Path('out'), mode=Mode.FAST, device=torch.device('cpu'))
  return {
    'epoch': 5, 'arch': NAME, 'state_dict': net(3.0).state_dict(), 'state_dict_ema': model.state_dict(), 'args': args,
    'optimizer': optimizer.state_dict(), 'version': 2, 'metric': np.float64(81.5), 'amp_scaler': {'scale': 65536.0},
    'rng': (np.random.get_state(), torch.get_rng_state()), 'when': datetime.datetime(2026, 1, 2),
    'history': collections.defaultdict(list, loss=[np.float32(1)]), 'seen': {1, 2}, 'queue': collections.deque([1], 3),
    'dtype': torch.float16, 'size': torch.Size([3]), 'keys': {None: 1, 1.5: 2, True: 3, (1, 2): 4, Mode.FAST: 5},
  }  # fmt: skip


def lightning(model):
  hyper = {'encoder': argparse.Namespace(name=NAME), 'lr': 1e-3}
  return {
    'state_dict': {f'model.{name}': x for name, x in model.state_dict().items()} | {'metric.total': torch.zeros(3)},
    'epoch': 1, 'pytorch-lightning_version': '2.4', 'hyper_parameters': hyper, 'hparams_name': 'kwargs',
    'callbacks': {"ModelCheckpoint{'monitor': None}": {'best_model_score': torch.tensor(0.5)}},
    'loops': {'fit_loop': {}}, 'optimizer_states': [torch.optim.SGD(model.parameters(), 1).state_dict()],
  }  # fmt: skip


WRAPPED = {
  'timm': timm_train, 'lightning': lightning, 'distributed': distributed, 'module': lambda model: model,
  'averaged': lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(),
  'averaged module': lambda model: torch.optim.swa_utils.AveragedModel(model),
  'compiled': lambda model: torch.compile(model).state_dict(),
  'parallel module': lambda model: {'net': torch.nn.DataParallel(model), 'epoch': 3},
  'tuple': lambda model: (model.state_dict(), {'epoch': 3}),
}  # fmt: skip


def stem(model: tlx.Pretrained) -> np.ndarray:
  return rules.write(model.variables, TABLE)['conv1.weight']


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('name', WRAPPED)
def test_what_wraps_a_model(tmp_path, name, zipped):
  path, model = tmp_path / 'last.pth.tar', net(2.0)
  torch.save(WRAPPED[name](model), path, _use_new_zipfile_serialization=zipped)
  loaded = tlx.load(NAME, weights=str(path))
  read = rules.write(loaded.variables, TABLE)
  for key, x in model.state_dict().items():
    np.testing.assert_array_equal(read[key], x.numpy())
  if name == 'timm':
    np.testing.assert_array_equal(stem(tlx.load(NAME, weights=f'{path}:state_dict')), net(3.0).conv1.weight.detach())


def test_torchscript(tmp_path):
  torch.jit.trace(net(2.0).eval(), torch.zeros(1)).save(tmp_path / 'w.pt')
  read = read_tensors(tmp_path / 'w.pt')
  assert read.keys() - {'grid'} == set(net().state_dict())  # TorchScript keeps buffers that are not persistent
  np.testing.assert_array_equal(read['conv1.weight'], net(2.0).conv1.weight.detach())


def test_tensors_that_tlx_cannot_read_do_not_hide_the_others(tmp_path):
  odd = {
    'sparse': torch.eye(3).to_sparse(), 'meta': torch.zeros(3, device='meta'),
    'nested': torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    'quantised': torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
  }  # fmt: skip
  torch.save({'odd': odd, 'model': net(2.0).state_dict()}, tmp_path / 'w.pth')
  np.testing.assert_array_equal(stem(tlx.load(NAME, weights=str(tmp_path / 'w.pth'))), net(2.0).conv1.weight.detach())
