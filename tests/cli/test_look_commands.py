"""`tlx explain` exciting, gradcam and deletion: what they write, and what they refuse in one line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import tlx
from tlx import catalog, pretrained
from tlx.cli import main
from tlx.types import Source


@pytest.fixture
def say(capsys, monkeypatch, tmp_path):
  """A function of a command's arguments: (exit code, standard output, standard error), in an empty folder."""
  monkeypatch.chdir(tmp_path)

  def call(*arguments):
    capsys.readouterr()
    return (main.run(['explain', *map(str, arguments)]), *capsys.readouterr())

  return call


def made(say, out, *words):
  code, said, err = say(*words, '--out', out, '--json')
  assert code == 0, err
  figures = json.loads(said)
  assert sorted(path.name for path in out.iterdir()) == sorted(name.rpartition('/')[2] for name in figures['files'])
  assert json.loads((out / 'figures.json').read_text()).items() <= figures.items()
  return figures


def test_gradcam_of_a_named_class(say, tiny_model, tiny_images, tmp_path):
  photo = tiny_images / 'val' / 'red' / '0.png'
  found = made(say, tmp_path / 'out', 'gradcam', tiny_model, photo, '--class', '3', '--steps', 4)
  assert (found['index'], found['class']) == (3, 'class 3') and 0 < found['probability'] < 1
  picture = np.array(Image.open(tmp_path / 'out' / 'gradcam.png'))
  assert picture.shape[1] > 3 * 32 and picture.std() > 10


def test_deletion_and_exciting_over_a_folder(say, tiny_model, tiny_images, tmp_path):
  data = ('--data', f'folder:{tiny_images}')
  found = made(say, tmp_path / 'a', 'deletion', tiny_model, *data, '--count', 5, '--steps', 2, '--batch-size', 5)
  assert found['photographs'] == 5 and set(found['curves']) == {'gradcam', 'integrated_gradients', 'random'}
  assert found['gradcam_over_random'] == pytest.approx(found['area_gradcam'] / found['area_random'])
  words = ('--layer', 'stem', '--channel', 2, '--photographs', 3)
  (row,) = made(say, tmp_path / 'b', 'exciting', tiny_model, *data, *words)['channels']
  assert row['channel'] == 2 and len(row['names']) == 3 and row['values'] == sorted(row['values'], reverse=True)
  assert row['names'][0].startswith('val/')


def test_a_segmenter_shows_its_layers_and_has_no_class_per_image(say, tiny_images, tmp_path):
  module = pretrained.build(catalog.variant('mobilenetv1_test'), 3, head='unet(widths=(4, 4, 4))')
  variables = module.init(jax.random.key(0), np.zeros((1, 32, 48, 3), np.float32))
  about = {'preprocess': tlx.Preprocess((32, 48), 1.0, mode='squash'), 'class_names': ('blue', 'green', 'red')}
  about['source'] = Source('mobilenetv1_test', task='segmentation')
  model = tlx.save(tmp_path / 'model', module, variables, **about)
  photo, data = tiny_images / 'val' / 'red' / '0.png', ('--data', f'folder:{tiny_images}')
  made(say, tmp_path / 'a', 'features', model, photo, '--layer', 'stem')
  made(say, tmp_path / 'b', 'exciting', model, *data, '--layer', 'stem', '--channel', 1, '--photographs', 2)
  made(say, tmp_path / 'c', 'ideal', model, '--layer', 'stem', '--channel', 1, '--steps', 2)
  for words in (
    ('gradcam', photo), ('attack', photo), ('deletion', *data), ('robustness', *data), ('map', *data),
    ('ideal', '--class', 'red'), ('gradcam', photo, '--class', 'red'),
  ):  # fmt: skip
    code, _, err = say(words[0], model, *words[1:], '--out', tmp_path / 'd')
    assert code == 2 and 'made for segmentation and has no class per image; use explain features' in err, words
  assert not (tmp_path / 'd').exists()


@pytest.mark.parametrize(
  ('words', 'expected'),
  [
    (('gradcam', 'MODEL', 'PHOTO', '--layer', 'stm'), "no layer 'stm': did you mean stem?"),
    (('gradcam', 'MODEL', 'PHOTO', '--class', '7'), 'class 7 is out of range: the model has 0 to 6'),
    (('gradcam', 'MODEL', 'PHOTO', '--class', 'cat'), "no class 'cat'"),
    (('gradcam', 'MODEL', 'PHOTO', '--steps', '0'), '--steps 0: must be above 0'),
    (('gradcam', 'MODEL', 'PHOTO', '--clas', '1'), 'did you mean --class?'),
    (('gradcam', 'MODEL', 'TEXT'), 'config.json'),
    (('gradcam', 'MODEL', 'nowhere.png'), 'no such file: nowhere.png'),
    (('deletion', 'MODEL'), 'name one with --data'),
    (('deletion', 'MODEL', '--data', 'DATA', '--split', 'valid'), 'validation'),
    (('deletion', 'MODEL', '--data', 'DATA', '--count', '0', '--cells', '-1'), '--count 0: must be above 0\n'),
    (('deletion', 'MODEL', '--data', 'DATA', '--cells', '33'), '--cells 33: the model sees 32 pixels'),
    (('deletion', 'MODEL', '--data', 'DATA', '--fill', 'black'), 'black'),
    (('deletion', 'MODEL', '--data', 'folder:EMPTY'), 'no image'),
    (('exciting', 'MODEL', '--layer', 'top', '--data', 'DATA'), "no layer 'top'"),
    (('exciting', 'MODEL', '--layer', 'stem', '--data', 'DATA', '--channel', '-1'), '--channel -1 is out of range'),
    (('exciting', 'MODEL', '--data', 'DATA'), '--layer'),
  ],
)
def test_what_is_refused(say, tiny_model, tiny_images, tmp_path, words, expected):
  (tmp_path / 'EMPTY').mkdir()
  known = {
    'MODEL': tiny_model, 'PHOTO': tiny_images / 'val' / 'red' / '0.png', 'TEXT': f'{tiny_model}/config.json',
    'DATA': f'folder:{tiny_images}',
  }  # fmt: skip
  code, out, err = say(*(known.get(word, word) for word in words))
  assert code == 2 and not out and expected in err and 'Traceback' not in err
