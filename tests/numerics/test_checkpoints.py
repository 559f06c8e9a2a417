"""Strangers' checkpoints: the tensors that are the model's are found wherever they are, chosen, said, or refused."""

import functools

import numpy as np
import pytest
import tiny
import torch_builder as tb

import tlx
from tlx import catalog
from tlx.types import TlxError, UsageError
from tlx.weights import fit, rules, write_safetensors

NAME = 'resnet_test'


@functools.cache
def state(factor: float = 1.0) -> dict[str, np.ndarray]:
  """A state dict in timm's names; other factors give other values of the same names and shapes."""
  model, variant = tiny.built(NAME), catalog.variant(NAME)
  written = rules.write(model.variables, tuple(variant.family.LAYOUTS['timm'](variant.config)))
  return {name: x * np.asarray(factor, x.dtype) for name, x in written.items()}


def under(prefix: str, tensors=None) -> dict[str, np.ndarray]:
  return {prefix + name: x for name, x in (state() if tensors is None else tensors).items()}


BACKBONE = {name: x for name, x in state().items() if not name.startswith('fc.')}
HEAD = {name: x for name, x in state().items() if name.startswith('fc.')}


def write(path, tree):
  """Writes nested dictionaries of arrays as torch does, or flat ones by the file's suffix."""
  if path.suffix == '.safetensors':
    write_safetensors(path, tree)
  elif path.suffix == '.npz':
    np.savez(path, **tree)
  else:
    records: dict[str, bytes] = {}
    tb.write_zip(path, pickled(tree, records), records)
  return path


def pickled(tree, records: dict[str, bytes]) -> bytes:
  if isinstance(tree, dict):
    return tb.dictionary({name: pickled(part, records) for name, part in tree.items()})
  if isinstance(tree, bytes):  # opcodes
    return tree
  key, x = str(len(records)), np.asarray(tree, np.float32)
  records[key] = x.tobytes()
  strides = [int(np.prod(x.shape[i + 1 :], dtype=int)) for i in range(x.ndim)]
  return tb.tensor(tb.storage(key, x.size), x.shape, strides)


def load(path, **options):
  return tlx.load(NAME, weights=str(path), **options)


def factor(model) -> float:
  """Which of the state dicts the model has."""
  mine = rules.write(model.variables, tuple(catalog.variant(NAME).family.LAYOUTS['timm'](model.module.backbone.config)))
  name = 'layer1.0.conv1.weight'
  return round(float((mine[name] / state()[name]).mean()), 3)


def error(path, **options) -> str:
  with pytest.raises(TlxError) as caught:
    load(path, **options)
  return str(caught.value)


PREFIXES = (
  'module.', '_orig_mod.', '_orig_mod.module.', 'model.', 'net.', 'backbone.', 'encoder.', 'model.backbone.',
  'student.backbone.', 'module.encoder_q.', 'online_encoder.net.', 'any_name.of.0.anyone.',
)  # fmt: skip


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.npz'])
@pytest.mark.parametrize('prefix', PREFIXES)
def test_the_prefix_is_found_and_said(tmp_path, caplog, prefix, suffix):
  path = write(tmp_path / f'w{suffix}', under(prefix, state(2.0)) | {'n_averaged': np.float32(1)})
  model = load(path)
  assert factor(model) == 2 and model.module.head.num_classes == tiny.CLASSES
  assert f"{path}: tensors under '{prefix}' are taken; 1 other is left out: n_averaged" in caplog.messages


def test_a_slash_ends_a_prefix_of_npz_and_a_folder_is_a_file(tmp_path):
  write(tmp_path / 'w.npz', under('params/'))
  assert factor(load(tmp_path / 'w.npz')) == 1
  assert factor(load(tmp_path)) == 1


def test_nothing_is_said_without_a_prefix(tmp_path, caplog):
  assert factor(load(write(tmp_path / 'w.pth', state()))) == 1
  assert not caplog.messages


EXTRAS = {
  'epoch': tb.number(3), 'args': tb.call(tb.named('argparse', 'Namespace')),
  'optimizer': {'state': {'0': {'exp_avg': state()['conv1.weight']}}},
}  # fmt: skip
NESTS = {
  'state_dict': {'state_dict': state(2.0)}, 'model': {'model': state(2.0)}, 'net': {'net': state(2.0)},
  'weights': {'weights': state(2.0)}, 'lightning': {'state_dict': under('model.', state(2.0))},
  'nested': {'a': {'b': {'c': under('module.', state(2.0))}}},
  'timm': {'state_dict': state(), 'state_dict_ema': state(2.0)}, 'ema': {'model': state(), 'model_ema': state(2.0)},
  'ema of others': {'state_dict': state(2.0), 'ema_state_dict': state()},
  'one is smaller': {'teacher': under('backbone.', BACKBONE), 'student': state(2.0)},
  'one has other shapes': {
    'teacher': {name: np.repeat(x, 2, 0) if x.ndim else x for name, x in state().items()}, 'student': state(2.0)
  },
}  # fmt: skip


@pytest.mark.parametrize('name', NESTS)
def test_state_dicts_are_found_in_dictionaries(tmp_path, name):
  assert factor(load(write(tmp_path / 'last.pth.tar', NESTS[name] | EXTRAS))) == 2


def test_of_two_that_fit_timms_is_taken_and_the_other_can_be_chosen(tmp_path, caplog):
  path = write(tmp_path / 'last.pth', NESTS['timm'] | EXTRAS)
  assert factor(load(path)) == 2
  assert f"those under 'state_dict.' fit as well: --weights {path}:state_dict" in caplog.messages[0]
  assert factor(load(f'{path}:state_dict')) == 1
  assert factor(load(f'{path}:state_dict_ema')) == 2


TIES = {
  'moco': (under('module.encoder_q.') | under('module.encoder_k.', state(2.0)), 'module.encoder_k'),
  'dino': ({'student': under('module.backbone.'), 'teacher': under('backbone.', state(2.0))}, 'teacher.backbone'),
  'byol': ({'state_dict': under('online.') | under('target.', state(2.0))}, 'state_dict.target'),
  'bare': (under('') | under('ema.', state(2.0)), 'ema'),
  'lightning': ({'state_dict': under('model.') | under('model_ema.', state(2.0))}, 'state_dict.model_ema'),
}


@pytest.mark.parametrize('name', TIES)
@pytest.mark.parametrize('options', [{}, {'num_classes': 2}])
def test_two_that_fit_equally_are_refused(tmp_path, name, options):
  tree, second = TIES[name]
  path = write(tmp_path / 'w.pth', tree)
  message = error(path, **options)
  assert f"'{second}'" in message and f'next: choose one, such as --weights {path}:' in message and '\n' not in message
  assert factor(load(f'{path}:{second}', **options)) == 2
  part = second.partition('.')[0] if name == 'dino' else second.rpartition('.')[2]
  assert factor(load(f'{path}:{part}', **options)) == 2  # a part is enough


def test_the_tensors_without_a_prefix_are_chosen_by_a_dot(tmp_path):
  path = write(tmp_path / 'w.pth', TIES['bare'][0])
  assert "each of '.', 'ema'" in error(path)
  with pytest.raises(TlxError, match=r'no place in the model'):  # the others have no place then
    load(f'{path}:.')


def test_a_head_decides_unless_it_is_replaced(tmp_path):
  path = write(tmp_path / 'w.pth', under('student.') | under('teacher.', {n: x * 2 for n, x in BACKBONE.items()}))
  assert factor(load(path)) == 1
  assert "'student', 'teacher'" in error(path, num_classes=2)


def test_the_same_tensors_under_two_names_are_one(tmp_path):
  assert factor(load(write(tmp_path / 'w.npz', under('net.') | under('online.net.') | {'x': np.zeros(2)}))) == 1


@pytest.mark.parametrize('options', [{}, {'num_classes': 2}])
def test_names_of_a_library_with_a_prefix_of_its_own_are_no_tie(tmp_path, caplog, options):
  """'resnet.' belongs to transformers' names for a classifier; its names for a backbone alone have none."""
  variant = catalog.variant(NAME)
  tensors = rules.write(tiny.built(NAME).variables, tuple(variant.family.LAYOUTS['transformers'](variant.config)))
  assert sum(name.startswith('resnet.') for name in tensors) > 20
  assert load(write(tmp_path / 'w.npz', tensors), **options).source.layout == 'transformers'
  path = write(tmp_path / 'v.npz', under('model.', tensors))
  assert load(path, **options).source.layout == 'transformers' and f"{path}: tensors under 'model.'" in caplog.text


def test_a_key_that_is_not_there(tmp_path):
  path = write(tmp_path / 'w.pth', NESTS['timm'])
  with pytest.raises(UsageError, match=r"no tensors under 'state_dikt' fit resnet_test: did you mean state_dict"):
    load(f'{path}:state_dikt')


def test_a_path_with_a_colon(tmp_path):
  path = write(tmp_path / 'a:b.pth', NESTS['timm'])
  assert factor(load(path)) == 2 and factor(load(f'{path}:state_dict')) == 1
  assert fit.split_key(str(tmp_path / 'gone:b')) == (str(tmp_path / 'gone:b'), '')


HEADS = {
  'one layer': under('', HEAD),
  'sequential': {f'fc.1.{name[3:]}': x for name, x in HEAD.items()},
  'two layers': {f'fc.{i}.{name[3:]}': x for i in (0, 3) for name, x in HEAD.items()},
  'with a norm': {f'fc.{name}': np.ones(4, np.float32) for name in ('0.weight', '0.running_mean', '2.bias')},
  'of another layout': {f'classifier.1.{name[3:]}': x for name, x in HEAD.items()},
}


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('options', [{'num_classes': 3}, {'num_classes': 0}])
def test_a_fresh_head_leaves_out_the_old_one_and_says_so(tmp_path, caplog, name, options):
  path = write(tmp_path / 'w.npz', under('', BACKBONE) | HEADS[name])
  model = load(path, **options)
  assert factor(model) == 1 and model.module.head.num_classes == options['num_classes']
  first, more = next(iter(HEADS[name])), len(HEADS[name]) - 1
  shape, why = HEADS[name][first].shape, 'this run has a fresh head' if options['num_classes'] else 'no head was asked'
  assert f'the head of the file, {first} {shape} and {more} more, is left out: {why}' in caplog.messages[-1]
  assert not set(HEADS[name]) & set(model.source.dropped)


def test_a_head_of_another_form_needs_a_fresh_one(tmp_path):
  message = error(write(tmp_path / 'w.npz', under('', BACKBONE) | HEADS['sequential']))
  assert 'fc.1.weight' in message and 'next: ask for a fresh head' in message


def test_a_stray_elsewhere_is_an_error_that_lists_all(tmp_path):
  strays = {f'extra.{i}.\x1b[31m': np.ones(2, np.float32) for i in range(30)}
  tensors = {name: x for name, x in state().items() if name != 'conv1.weight'} | strays
  message = error(write(tmp_path / 'w.npz', tensors), num_classes=3)
  assert '31 problems' in message and 'extra.19' in message and '... and 10 more' in message and '\x1b' not in message
  assert 'conv1.weight -> params/backbone/stem/conv/kernel: not in the checkpoint' in message


def test_names_are_shown_escaped(tmp_path, caplog):
  odd = '\x1b[31m\u202e\x07'
  path = write(tmp_path / 'w.npz', under('m.') | {odd: np.ones(2)})
  load(path)
  assert r'1 other is left out: \x1b[31m\u202e\x07' in caplog.messages[0]
  assert r'\x1b[31m' in error(write(tmp_path / 'x.npz', {odd: np.ones(2)}))


def test_layers_after_the_head_are_of_the_head():
  table = [
    *rules.dense('classifier.0', 'backbone/hidden'), *rules.norm('classifier.8', 'backbone/norm'),
    *rules.dense('classifier.6', 'head/logits'),
  ]  # fmt: skip
  names = [f'classifier.{layer}.weight' for layer in (*range(9), 'more')] + ['classifier', 'other.7.weight']
  assert fit.replaced(names, table, ('head',)) == [f'classifier.{layer}.weight' for layer in (6, 7, 'more')]
