"""A segmentation run that is killed five times, in both phases and before an evaluation, ends with the same bytes."""

import json
import signal

import numpy as np
import pytest
from PIL import Image
from test_resume import Runs, numbers

KILLS = (2, 5, 7, 4, -2)  # batches of each process, see `test_resume.DRIVER`; -2: before its second evaluation


@pytest.fixture
def masks(tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (('train', 16), ('val', 4)):
    for kind in ('images', 'masks'):
      (tmp_path / 'data' / split / kind).mkdir(parents=True)
    for i in range(count):
      pixels, labels = rng.integers(0, 100, (36, 44, 3), dtype=np.uint8), np.zeros((36, 44), np.uint8)
      top, left = rng.integers(0, 18, 2)
      pixels[top : top + 14, left : left + 18, i % 2] += 150
      labels[top : top + 14, left : left + 18] = 1 + i % 2
      labels[0] = 255
      Image.fromarray(pixels).save(tmp_path / 'data' / split / 'images' / f'{i}.png')
      Image.fromarray(labels).save(tmp_path / 'data' / split / 'masks' / f'{i}.png')
  return tmp_path / 'data'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_kills_change_nothing(tiny_model, masks, tmp_path):
  runs = Runs(tiny_model, masks, tmp_path / 'compiled')
  options = f'--model {tiny_model} --data masks:{masks} --epochs 5 --batch-size 4 --image-size 32x40 --save-every 3'
  runs.options = [*options.split(), '--head', 'unet(widths=(8,8,8,8,8))', '--augment', 'light', '--ema', '0.9']
  arguments = lambda out, *more: ['finetune', *runs.options, '--out', str(out), *map(str, more)]
  runs.arguments = arguments
  whole, out = tmp_path / 'whole', tmp_path / 'run'
  done = runs.run(whole)
  assert done.returncode == 0, done.stderr
  assert json.loads((whole / 'result.json').read_text())['phases'] == ['head', 'everything']
  killed = [runs.run(out, batch=batch, signum=signal.SIGKILL).returncode for batch in KILLS]
  assert killed == [-signal.SIGKILL] * len(KILLS)
  done = runs.run(out)
  assert done.returncode == 0, done.stderr
  assert (out / 'model/model.safetensors').read_bytes() == (whole / 'model/model.safetensors').read_bytes()
  assert numbers(out) == numbers(whole)
