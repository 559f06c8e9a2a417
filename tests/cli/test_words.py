"""What the command line says: help without Python in it, the models and what they cost, tables that fit a terminal."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import tlx
from tlx import catalog, pretrained
from tlx.actions import defaults
from tlx.actions import finetune as action
from tlx.actions.models import model_table
from tlx.cli import commands, main
from tlx.cli.explain import Explain
from tlx.experiment import option as option_of

COMMANDS = [command.__name__.lower() for command in main.COMMANDS]
FIELDS = {field.name: field for field in dataclasses.fields(tlx.Experiment)}


@pytest.fixture
def say(capsys, monkeypatch):
  """A function of a command's arguments: (exit code, standard output, standard error) at 80 columns."""
  monkeypatch.setenv('COLUMNS', '80')

  def call(*arguments):
    capsys.readouterr()
    return (main.run(list(arguments)), *capsys.readouterr())

  return call


@pytest.fixture
def asked(say, monkeypatch):
  """A function of the options of `tlx finetune`: the experiment that would run."""
  seen = []
  result = SimpleNamespace(metrics={}, folder=Path())
  monkeypatch.setattr(action, 'run', lambda e, quiet: (seen.append((e, quiet)), result)[1])

  def call(*options):
    code, _, err = say('finetune', *options)
    assert (code, err) == (0, '')
    return seen.pop()

  return call


def option(name):
  return '--' + name.replace('_', '-')


def test_version(say):
  assert say('--version') == (0, f'tlx {tlx.__version__}\n', '')


@pytest.mark.parametrize('command', [*COMMANDS, *(f'explain {tool.__name__.lower()}' for tool in Explain.TOOLS)])
def test_help_has_no_python_in_it(say, command):
  code, out, _ = say(*command.split(), '--help')
  assert code == 0
  assert not re.search(r'NoneType|\{None|default: (None|False|\))|typing|Annotated', out)
  assert max(map(len, out.splitlines()[1:])) <= 100  # neither the usage nor one line of introduction is wrapped


def test_finetune_help_groups_every_option(say):
  out = say('finetune', '--help')[1]
  boxes = re.split(r'^\W*((?:\w+ )*options)\W*$', out, flags=re.MULTILINE)[1:]  # with and without lines around them
  titles, texts = boxes[::2], boxes[1::2]
  expected = {}
  for name, field in FIELDS.items():
    expected.setdefault(f'{field.metadata["group"]} options'.strip(), []).append(name)
  begins = lambda word, text: re.search(rf'^[│\s]*{option(word)} ', text, re.MULTILINE)
  listed = [[word for word in FIELDS if begins(word, text)] for text in texts]
  assert dict(zip(titles, listed)) == expected and len(titles) == len(expected)
  assert titles[:4] == ['options', 'optimisation options', 'augmentation options', 'running options']
  for phrase in (
    '--out DIR Run folder.',
    'Passes over the training split. (default: automatic)',
    'Alpha of mixup; 0 turns it off. (default: set by --augment)',
    'Random seed. (default: 0)',
  ):
    assert phrase in re.sub(r'[│\s]+', ' ', out)


def test_a_new_field_needs_no_change_of_the_command_line():
  @dataclasses.dataclass(frozen=True)
  class Wider(tlx.Experiment):
    head: str | None = option_of(None, help='Head.', group='model', metavar='HEAD', default_text='linear')

  assert [f.name for f in dataclasses.fields(commands.groups(Wider)['model'])] == ['head']


@pytest.mark.parametrize(('field', 'folder'), [('data', 'datasets'), ('task', 'tasks'), ('strategy', 'strategies')])
def test_the_help_names_every_alternative(field, folder):
  text = FIELDS[field].metadata['help']
  assert not [name for name in catalog.names(folder) if not re.search(rf'\b{name}\b', text)]


def test_every_option_has_a_help_text_of_whole_sentences():
  for name, field in FIELDS.items():
    text = field.metadata['help']
    assert text.endswith('.') and text[0].isupper(), f'{name}: {text}'
    assert not re.match(r'(Of|At|On|Before|Whose) ', text), f'{name}: a fragment: {text}'


def test_automatic_is_what_is_filled_in():
  automatic = {n for n, f in FIELDS.items() if f.default is None and f.metadata['default_text'] == 'automatic'}
  assert automatic == {*defaults.CHOICES}


def test_no_options_give_the_default_experiment(asked):
  assert asked() == (tlx.Experiment(), False)


def test_options_of_every_group_reach_the_experiment(asked):
  given = {
    'epochs': 2.5,
    'batch_size': 8,
    'compile': 'pmap',
    'lr': 0.1,
    'ema': 0.9,
    'augment': 'none',
    'randaugment': 2,
  }
  given |= {'out': '-x', 'seed': 3, 'save_every': 7}
  words = [f'{option(name)}={value}' for name, value in given.items()]
  assert asked(*words, '--json') == (tlx.Experiment(**given), True)
  assert asked('--batch_size', '4')[0] == tlx.Experiment(batch_size=4)  # as it is written in Python


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (('finetune', '--batchsize=4'), ['tlx finetune has no option --batchsize: did you mean --batch-size']),
    (('finetune', '--epoch', '3', '--modl', 'x'), ['--epochs?', '--model?']),
    (('models', '--max-params', '3'), ['--max-parameters?']),
    (('models', '--sort', 'speed'), ["'speed'", "'gmacs'"]),
    (('models', '--max-parameters', 'few'), ['--max-parameters few', '5M']),
    (('--verson',), ['did you mean --version?']),
    (('finetune', '--epochs', 'many'), ["--epochs: 'many' is no number"]),
    (('finetune', '--seed', '1.5'), ["--seed: '1.5' is no whole number"]),
    (('finetune', '--lr', 'None'), ["--lr: 'None' is no number"]),
    (('finetune', '--lr'), ["'--lr'"]),
    (('predict',), ['RUN']),
    (('evaluate', 'a', 'b'), ['Unrecognized options: b']),
  ],
)  # fmt: skip
def test_wrong_words_exit_2_and_say_which(say, words, expected):
  code, out, err = say(*words)
  assert code == 2 and not out and 'Traceback' not in err
  for text in expected:
    assert text in err
  assert 'NoneType' not in err


def test_listing_models_builds_none(say, monkeypatch):
  monkeypatch.setattr(pretrained, 'build', None)
  code, out, _ = say('models')
  names = [line.split()[0] for line in out.splitlines()[2:]]
  assert code == 0 and set(names) == set(tlx.list_models()) and not any(name.endswith('_test') for name in names)


def test_tables_of_models_keep_numbers_and_names_whole(say):
  lines = say('models', 'resnet*')[1].splitlines()
  assert max(map(len, lines)) <= 80 and len({len(line) for line in lines}) == 1
  row = next(line for line in lines if line.startswith('resnet50 '))
  assert row.split()[:5] == ['resnet50', '25,557,032', '4.089', '224', '80.38']


def test_one_model_is_told_layer_by_layer(say):
  code, out, _ = say('models', 'resnet18')
  assert code == 0 and '11,689,512' in out and 'source: hf-hub:timm/resnet18.a1_in1k, license apache-2.0' in out
  assert re.search(r'^stem +56 x 56 x 64 +9,536 +0\.1180', out, re.MULTILINE)
  assert re.search(r'^head +1000 +513,000 +0\.0005', out, re.MULTILINE)
  (row,) = json.loads(say('models', 'resnet18', '--json')[1])
  assert sum(layer['parameters'] for layer in row['layers']) == row['parameters'] == 11_689_512
  assert round(sum(layer['gmacs'] for layer in row['layers']), 3) == row['gmacs']
  assert [layer['layer'] for layer in row['layers']][-2:] == ['stage3_block1', 'head']


def test_a_segmenter_is_told_layer_by_layer(say):
  """As torchvision publishes it, but for 9.97 of its GMACs: evaluation does not run the auxiliary head."""
  (row,) = json.loads(say('models', 'deeplabv3_resnet50', '--json')[1])
  assert row['gmacs'] == pytest.approx(178.72 - 9.97, abs=0.02) and row['layers'][-1]['layer'] == 'head'
  assert row['parameters'] == sum(layer['parameters'] for layer in row['layers']) == 42_004_074


def test_models_without_published_weights_say_so(say):
  assert 'source: no published weights' in say('models', 'efficientnet_lite1')[1]
  (row,) = model_table('efficientnet_lite1')
  assert row['source'] is row['license'] is row['top1'] is None


@pytest.mark.parametrize('key', ['parameters', 'gmacs', 'size', 'top1'])
def test_sorted_with_the_unknown_last(key):
  values = [row[key] for row in model_table(sort=key)]
  known = [value for value in values if value is not None]
  assert values == sorted(known, reverse=key == 'top1') + [None] * (len(values) - len(known)) and len(known) > 5


def test_names_are_in_the_order_of_their_numbers():
  names = [row['name'] for row in model_table('resnet*')]
  assert [name for name in names if name in ('resnet18', 'resnet101', 'resnet50')] == [
    'resnet18',
    'resnet50',
    'resnet101',
  ]


def test_filters(say):
  small = model_table(max_parameters=5.3e6)
  assert {'efficientnet_b0', 'tf_efficientnet_lite0'} <= {row['name'] for row in small}
  assert all(row['parameters'] <= 5.3e6 for row in small)
  free = model_table(license='APACHE*')
  assert free and all(row['license'].startswith('apache') for row in free)
  assert 'efficientnet_b7' in {row['name'] for row in model_table(license='none')}
  assert json.loads(say('models', '--max-parameters', '5.3M', '--json')[1]) == small


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    (('resnet_50',), 'did you mean resnet50'),
    (('resnet_test',), 'did you mean'),
    (('resnet*', '--license', 'apach'), 'did you mean apache-2.0?'),
    (('resnet18', '--max-parameters', '1M'), '1,000,000; the smallest here has 11,689,512'),
  ],
)  # fmt: skip
def test_what_fits_no_model(say, options, expected):
  code, out, err = say('models', *options)
  assert code == 2 and not out and expected in err and len(err.splitlines()) == 1


def test_json_rows_have_their_keys(say):
  for row in json.loads(say('models', '--json')[1]):
    assert list(row) == ['name', 'parameters', 'gmacs', 'size', 'top1', 'license', 'source']
    if row['name'] in catalog.wholes():  # a backbone with its head: nothing is stated of it but where it is
      continue
    stated = catalog.variant(row['name']).family.FIGURES.get(row['name'], row['size'])
    assert stated in ((row['parameters'], row['gmacs'], row['size'], row['top1']), row['size'])


SMALL = ('--model', 'vgg_bn_test', '--image-size', 32, '--num-classes', 5, '--batch-size', 4)
COST_KEYS = (
  'flops', 'forward_flops', 'full_flops', 'peak_bytes', 'optimizer_bytes', 'allreduce_bytes', 'trainable_parameters',
  'parameters',
)  # fmt: skip


def test_cost_of_each_phase_beside_full_fine_tuning(say):
  code, out, _ = say('cost', *map(str, SMALL), '--strategy', 'lp_ft', '--json')
  found = json.loads(out)
  assert code == 0 and found.keys() >= {*COST_KEYS}
  assert list(found['phases']) == ['head', 'everything']
  assert found['phases']['head']['flops'] < 1.05 * found['forward_flops'] < found['full_flops'] / 2
  assert found['flops'] == found['phases']['everything']['flops']  # the costliest
  code, out, _ = say('cost', *map(str, SMALL), '--strategy', 'full')
  assert code == 0 and max(map(len, out.splitlines())) <= 80
  assert f'{found["parameters"]:,}' in out and f'{found["forward_flops"] / 1e9:,.3f} GFLOPs' in out


@pytest.mark.parametrize(
  'words, expected',
  [
    (('--model', 'resnet81'), 'did you mean resnet18'),
    (('--strategy', 'probe'), 'linear_probe'),
    (('--batch-size', '0', '--num-classes', '-1'), '--batch-size 0: must be above 0\n--num-classes -1'),
    (('--batch-size', '5', '--micro-batches', '2'), '--batch-size 5 does not divide into 2 parts'),
    (('--devices', '0'), '--devices 0: must be above 0'),
  ],
)
def test_what_cannot_be_costed(say, words, expected):
  code, _, err = say('cost', *words)
  assert code == 2 and expected in err
