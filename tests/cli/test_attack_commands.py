"""`tlx explain attack` and `tlx explain robustness`: what they write, and what they refuse in one clear line."""

import json

import numpy as np
import pytest
from PIL import Image

from tlx.cli import main
from tlx.cli.explain_change import fraction
from tlx.types import UsageError


@pytest.fixture
def say(capsys, monkeypatch):
  """A function of a tool's arguments: (exit code, standard output, standard error), free of tracebacks."""
  monkeypatch.setenv('COLUMNS', '160')

  def call(*arguments):
    capsys.readouterr()
    code = main.run(['explain', *map(str, arguments)])
    out, err = capsys.readouterr()
    assert 'Traceback' not in out + err
    return code, out, err

  return call


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
  path = tmp_path_factory.mktemp('photos') / 'photo.png'
  Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(path)
  return path


@pytest.fixture(scope='module')
def finished(tiny_models, tiny_images, tmp_path_factory):
  """The folder of a finished run over three colours."""
  out = tmp_path_factory.mktemp('runs') / 'done'
  quick = ('--image-size', '32', '--epochs', '2', '--batch-size', '8', '--augment', 'none', '--lr', '0.3')
  data = ('--data', f'folder:{tiny_images}', '--strategy', 'linear_probe')
  assert main.run(['finetune', '--model', tiny_models['efficientnet'], *quick, *data, '--out', str(out)]) == 0
  return out


@pytest.fixture(scope='module')
def still(finished, photo, tmp_path_factory):
  """What an attack without room finds: the answers to the photograph."""
  out = tmp_path_factory.mktemp('still')
  words = ('--method', 'fgsm', '--epsilon', '0', '--out', str(out))
  assert main.run(['explain', 'attack', str(finished), str(photo), *words]) == 0
  return json.loads((out / 'figures.json').read_text())


def test_an_attack_writes_pictures_and_the_truth(say, finished, photo, still):
  assert still['linf'] == 0 and not still['success'] and still['before'] == still['after']
  target = still['top']['before'][-1]['name']
  code, out, _ = say('attack', finished, photo, '--target', target.upper(), '--epsilon', '1/2', '--steps', 10, '--json')
  found = json.loads(out)
  folder = finished / 'explain' / f'attack-photo-pgd-{target.upper()}'
  assert code == 0 and found['target'] == target and 0 < found['linf'] <= 0.5
  assert found['success'] == (found['after'] == target) and len(found['target_probabilities']) == 3
  assert found['target_probabilities'][1] > found['target_probabilities'][0]
  assert {path.name for path in folder.iterdir()} == {
    'attack.png', 'original.png', 'adversarial.png', 'difference.png', 'figures.json'
  }  # fmt: skip
  pictures = [np.asarray(Image.open(folder / f'{name}.png'), int) for name in ('original', 'adversarial')]
  assert pictures[0].shape == (32, 32, 3)
  assert abs(np.abs(pictures[1] - pictures[0]).max() - 255 * found['linf']) <= 1


def test_descent_names_the_class_with_the_least_change(say, finished, photo, still, tmp_path):
  target = still['top']['before'][1]
  words = ('--target', target['id'], '--method', 'descent', '--step-size', '2', '--out', tmp_path / 'out')
  code, out, _ = say('attack', finished, photo, *words)
  found = json.loads((tmp_path / 'out' / 'figures.json').read_text())
  assert code == 0 and 'written: ' in out and found['success'] and found['after'] == target['name']
  assert found['l2'] <= found['l2_before_bisection'] and 0 < found['scale'] <= 1
  # at the border the two likeliest are as likely
  assert found['after_probability'] - found['target_probabilities'][1] == pytest.approx(0, abs=0.01)


def test_what_is_the_answer_already_is_no_target(say, finished, photo, still):
  answer = still['before']
  code, _, err = say('attack', finished, photo, '--target', answer)
  assert code == 2 and f"target '{answer}' is what the model answers already" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (('--target', 'gren'), 'did you mean green?'),
    (('--target', 3), 'class 3 is out of range: the model has 0 to 2'),
    (('--epsilon', 'small'), '--epsilon small: must be a number such as 8/255'),
    (('--epsilon', '-1'), '--epsilon -1: must be 0 or more'),
    (('--steps', 0), '--steps 0: must be above 0'),
    (('--method', 'fgsm', '--steps', 3), '--steps: --method fgsm has none'),
    (('--method', 'descent', '--norm', 'l2'), '--norm: --method descent has none'),
    (('--step-size', '0'), '--step-size 0'),
    (('--momentum', '-1'), 'momentum is -1'),
  ],
)
def test_what_no_attack_can_do(say, finished, photo, words, expected):
  code, out, err = say('attack', finished, photo, *words)
  assert code == 2 and not out and expected in err and len(err.splitlines()) == 1


def test_an_attack_needs_an_image(say, finished, tmp_path):
  (tmp_path / 'text.png').write_text('none')
  for path in (tmp_path / 'text.png', tmp_path / 'missing.png', tmp_path):
    code, _, err = say('attack', finished, path)
    assert code == 2 and str(path) in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_robustness_of_a_run_over_its_split(say, finished):
  code, out, _ = say('robustness', finished, '--epsilons', '0,1/255,0.5', '--steps', 5, '--batch-size', 4, '--json')
  found = json.loads(out)
  assert code == 0 and found['count'] == 15 and found['left_out'] == 0
  accuracies = [point['accuracy'] for point in found['curve']]
  assert accuracies[0] == found['accuracy'] and accuracies == sorted(accuracies, reverse=True)
  assert found['curve'][0]['changed'] == 0
  assert (finished / 'explain' / 'robustness-linf' / 'robustness.png').is_file()
  code, out, _ = say('robustness', finished, '--norm', 'l2', '--count', 6, '--epsilons', '0,1', '--steps', 2)
  assert code == 0 and 'count                    6' in out and 'epsilon 1 ' in out


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (('--epsilons', '0,,1'), '--epsilons : must be a number'),
    (('--split', 'valid'), "no split 'valid'"),
    (('--count', 0), '--count 0: must be above 0'),
    (('--data', 'digits'), 'has other classes than'),
  ],
)
def test_what_no_curve_can_be_drawn_of(say, finished, words, expected):
  code, out, err = say('robustness', finished, *words)
  assert code == 2 and not out and expected in err and len(err.splitlines()) == 1


def test_a_pretrained_model_has_no_split_of_its_own(say, tiny_model):
  code, _, err = say('robustness', tiny_model)
  assert code == 2 and 'name one with --data' in err and len(err.splitlines()) == 1


def test_fractions():
  assert fraction('--epsilon', '8/255') == 8 / 255 and fraction('--epsilon', '0.5/255') == 0.5 / 255
  for text in ('', '1/0', '1/2/3', 'nan', 'inf', '-1/255'):
    with pytest.raises(UsageError, match='--epsilon'):
      fraction('--epsilon', text)
