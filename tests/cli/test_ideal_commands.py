"""`tlx explain ideal` and `tlx explain style`: the files they write, and one clear line for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlx.actions import runs
from tlx.cli import main
from tlx.cli.explain_shared import model_and


@pytest.fixture
def say(capsys):
  """A function of a command's arguments: (exit code, standard output, standard error)."""

  def call(*arguments):
    capsys.readouterr()
    return (main.run(['explain', *map(str, arguments)]), *capsys.readouterr())

  return call


@pytest.fixture(scope='session')
def photo(tmp_path_factory):
  path = tmp_path_factory.mktemp('photos') / 'photo.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(path)
  return path


def test_ideal_writes_a_picture_a_class(say, tiny_model, tmp_path):
  out = tmp_path / 'out'
  words = ('--class', '2,3', '--class', 5, '--class', 2, '--steps', 3, '--judge', tiny_model, '--json')
  code, text, err = say('ideal', tiny_model, *words, '--out', out)
  assert code == 0, err
  found = json.loads(text)
  assert list(found['pictures']) == ['class 2', 'class 3', 'class 5'] and found['judge_agrees'].endswith('of 3')
  assert {file.name for file in out.iterdir()} == {*(f'class_{i}.png' for i in (2, 3, 5)), 'sheet.png', 'figures.json'}
  assert np.asarray(Image.open(out / 'class_5.png')).shape == (32, 32, 3)
  kept = json.loads((out / 'figures.json').read_text())
  assert kept['least_probability'] == found['least_probability'] and len(kept['losses']) == 3


@pytest.mark.parametrize('subject', [('--channel', 1), ('--towards', 'photo')])
def test_ideal_of_a_layer(say, tiny_model, photo, tmp_path, subject):
  subject = [photo if word == 'photo' else word for word in subject]
  words = ('--layer', 'stage0_block0', *subject, '--steps', 2, '--parametrisation', 'pixels', '--no-transforms')
  code, text, err = say('ideal', tiny_model, *words, '--out', tmp_path)
  assert code == 0 and 'objective' in text, err
  assert len(list(tmp_path.glob('stage0_block0_*.png'))) == 1


@pytest.mark.parametrize(
  'words, expected',
  [
    ((), 'name either --class, or --layer'),
    (('--class', 9), 'class 9 is out of range: the model has 0 to 6'),
    (('--class', 'esspresso'), "no class 'esspresso'"),
    (('--class', 1, '--layer', 'stem'), 'name either --class, or --layer'),
    (('--layer', 'stem'), '--layer needs one of --channel and --towards'),
    (('--class', 1, '--channel', 2), '--layer needs one of'),
    (('--layer', 'stage9', '--channel', 1), 'stage1_block1'),
    (('--layer', 'stem', '--channel', 999), 'channel 999 is out of range: stem has 0 to'),
    (('--layer', 'stem', '--towards', 'nowhere.jpg'), 'no such file: nowhere.jpg'),
    (('--layer', 'stem', '--channel', 1, '--judge', 'efficientnet_lite0'), '--judge looks at classes'),
    (('--class', 1, '--size', 8), 'size 8: the model takes no pictures below 32 pixels'),
    (('--class', 1, '--steps', 0), '--steps 0: must be above 0'),
    (('--class', 1, '--variation', -1), '--variation -1.0: must be 0 or more'),
    (('--clas', 1), 'did you mean --class'),
  ],
)
def test_what_has_no_ideal(say, tiny_model, words, expected):
  code, out, err = say('ideal', tiny_model, *words)
  assert code == 2 and not out and expected in err and len(err.splitlines()) == 1


def test_a_class_name_with_a_comma_and_a_near_miss(say, tiny_model, monkeypatch):
  from tlx.actions import runs
  from tlx.cli.explain import Ideal

  names = ('tench', 'maillot, tank suit', 'espresso', 'volcano', 'a', 'b', 'c')
  model = runs.load_any(tiny_model)._replace(class_names=names)
  goals = Ideal(tiny_model, classes=('Maillot, tank suit', 'tench, espresso'))._goals(model)
  assert [goal.index for goal in goals] == [1, 0, 2]
  monkeypatch.setattr(runs, 'load_any', lambda name: model)
  code, _, err = say('ideal', tiny_model, '--class', 'esspresso')
  assert code == 2 and 'did you mean espresso?' in err


def test_style_writes_the_picture_its_progress_and_its_loss(say, tiny_model, photo, tmp_path):
  words = ('--size', 64, '--steps', 3, '--optimizer', 'adam', '--colours', 'histogram', '--json', '--out', tmp_path)
  code, text, err = say('style', tiny_model, photo, photo, *words)
  assert code == 0, err
  found = json.loads(text)
  assert {'content', 'style', 'variation', 'style_of_content', 'content_of_shuffled', 'losses'} <= set(found)
  assert {file.name for file in tmp_path.iterdir()} == {'picture.png', 'progress.png', 'loss.png', 'figures.json'}
  assert Image.open(tmp_path / 'picture.png').size == (64, 51)


@pytest.mark.parametrize(
  'words, expected',
  [
    (('--style-layers', 'stem,conv1_1'), "no layer 'conv1_1'"),
    (('--content-layer', 'stagee0_block0'), 'did you mean stage0_block0'),
    (('--size', 16), 'size 16: the model takes no pictures below 32 pixels'),
    (('--optimizer', 'sgd'), 'sgd'),
    (('--style-weight', 0), '--style-weight 0.0: must be above 0'),
  ],
)
def test_what_is_no_style_transfer(say, tiny_model, photo, words, expected):
  code, out, err = say('style', tiny_model, photo, photo, *words)
  assert code == 2 and not out and expected in err


def test_a_transformer_says_which_size_it_takes(say, tiny_models, photo):
  code, _, err = say('style', tiny_models['swin'], photo, photo, '--size', 512)
  assert code == 2 and 'the model takes pictures of 64 pixels only' in err and len(err.splitlines()) == 1


def test_what_is_no_picture(say, tiny_model, photo, tmp_path):
  bad = tmp_path / 'bad.jpg'
  bad.write_bytes(b'none')
  for words, expected in (((photo, tmp_path), 'is a folder'), ((bad, photo), 'bad.jpg'), ((photo, 'no.jpg'), 'no.jpg')):
    code, out, err = say('style', tiny_model, *words)
    assert code == 2 and not out and expected in err and len(err.splitlines()) == 1


def test_the_model_may_be_left_out(say, photo, tmp_path, monkeypatch):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda name, file, revision: None)
  assert runs.first_at_hand('vgg19', 'efficientnet_lite0') == 'efficientnet_lite0'
  monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda name, file, revision: f'/cache/{name}/{file}')
  assert runs.first_at_hand('vgg19', 'efficientnet_lite0') == 'vgg19'
  assert model_and(['a.jpg'], 'IMAGE') == ('efficientnet_lite0', [Path('a.jpg')])
  assert model_and(['runs/x', 'a.jpg', 'b.jpg'], 'CONTENT', 'STYLE') == ('runs/x', [Path('a.jpg'), Path('b.jpg')])
  for words in ((), ('a', 'b', 'c', 'd')):
    code, _, err = say('style', *words)
    assert code == 2 and err.startswith('error: expected [MODEL] CONTENT STYLE, got ')
