"""The command line as a new user meets it: a wrong input gives one clear message and an exit code, no traceback."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import tlx
from tlx.cli import main
from tlx.train import memory

COMMANDS = ('finetune', 'evaluate', 'predict', 'models', 'export', 'report')


@pytest.fixture
def tlx_run(capsys, monkeypatch):
  """A function of a command's arguments: (exit code, standard output, standard error), free of tracebacks."""
  monkeypatch.setenv('COLUMNS', '160')

  def call(*arguments):
    capsys.readouterr()
    code = main.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert 'Traceback' not in out + err
    return code, out, err

  return call


@pytest.fixture(scope='module')
def options(tiny_model):
  """What makes a run of seconds."""
  quick = ('--image-size', '32', '--epochs', '3', '--batch-size', '8', '--augment', 'none', '--lr', '0.3')
  return ('--model', tiny_model, '--strategy', 'linear_probe', *quick)


@pytest.fixture(scope='module')
def finished(options, tiny_images, tmp_path_factory):
  """The folder of a finished run."""
  out = tmp_path_factory.mktemp('runs') / 'done'
  assert main.run(['finetune', *options, '--data', f'folder:{tiny_images}', '--out', str(out)]) == 0
  return out


@pytest.fixture
def images(tiny_images, tmp_path):
  """A copy of the tiny images to spoil."""
  return shutil.copytree(tiny_images, tmp_path / 'images')


@pytest.fixture
def photo(tmp_path):
  path = tmp_path / 'photo.png'
  Image.fromarray(np.random.default_rng(1).integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(path)
  return path


@pytest.mark.parametrize('command', [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_explains(tlx_run, command):
  code, out, err = tlx_run(*command, '--help')
  assert code == 0 and not err
  for word in COMMANDS if not command else (command[0], '--help'):
    assert word in out
  assert len(out.splitlines()) > 5


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ((), 'finetune, evaluate, predict, models, cost, export, report'),
    (('finetun',), 'did you mean finetune?'),
    (('finetune', '--batchsize', '4'), '--batch-size'),
    (('finetune', '--epoch', '4'), '--epochs'),
    (('finetune', '--epochs', 'many'), '--epochs'),
    (('finetune', '--optimizer', 'adam'), 'adamw'),
    (('finetune', '--compile', 'xla'), 'pmap'),
    (('finetune', '--model', 'efficientnet_lite'), 'did you mean efficientnet_lite'),
    (('finetune', '--strategy', 'linear_prob'), 'did you mean linear_probe?'),
    (('finetune', '--strategy', 'partial'), 'partial:3'),
    (('finetune', '--strategy', 'partial:x'), 'partial:3'),
    (('finetune', '--data', 'photo_patch'), 'did you mean photo_patches?'),
    (('finetune', '--data', 'folder:'), 'folder:PATH'),
    (('finetune', '--schedule', 'cosin'), 'did you mean cosine?'),
    (('finetune', '--augment', 'mediun'), 'did you mean medium?'),
    (('predict',), 'RUN'),
    (('evaluate',), 'RUN'),
    (('evaluate', 'no_such_run'), 'no run folder no_such_run'),
    (('models', 'resnt*'), 'did you mean resnet'),
    (('export', 'no_such_run', '--format', 'tim'), 'did you mean timm'),
    (('report', 'no_such_run'), 'no run folder no_such_run'),
  ],
)  # fmt: skip
def test_misspelt_words_exit_2_and_name_the_next_move(tlx_run, arguments, expected):
  code, out, err = tlx_run(*arguments)
  assert code == 2 and 'error' not in out.lower()
  assert expected in err


def test_values_out_of_range_are_all_listed(tlx_run):
  wrong = {'--epochs': -1, '--batch-size': 0, '--lr': 0, '--ema': 2, '--dropout': -1, '--workers': -2, '--mixup': -1}
  code, _, err = tlx_run('finetune', '--schedule', 'cosin', *(x for pair in wrong.items() for x in pair))
  assert code == 2
  for name in (*wrong, 'cosine'):
    assert name in err
  assert len(err.splitlines()) == len(wrong) + 1


def test_a_batch_that_does_not_divide_names_one_that_does(tlx_run, options, tiny_images, tmp_path):
  more = ('--batch-size', '7', '--micro-batches', '2', '--out', tmp_path / 'run')
  code, _, err = tlx_run('finetune', *options, '--data', f'folder:{tiny_images}', *more)
  assert code == 2 and '--batch-size 7' in err and '8 does' in err
  assert not (tmp_path / 'run').exists()


def spoil_missing(root):
  shutil.rmtree(root)
  return 'images'


def spoil_empty_class(root):
  (root / 'train' / 'yellow').mkdir()
  return "class 'yellow' is empty"


def spoil_one_class(root):
  for split in ('train', 'val'):
    for name in ('red', 'green'):
      shutil.rmtree(root / split / name)
  return "only one class, 'blue'"


def spoil_unknown_class(root):
  shutil.copytree(root / 'val' / 'red', root / 'val' / 'redd')
  return "did you mean 'red'?"


def spoil_every_image(root):
  for path in (root / 'train' / 'red').iterdir():
    path.write_bytes(b'no image')
  return "class 'red': none of its 10 images can be decoded"


SPOILS = (spoil_missing, spoil_empty_class, spoil_one_class, spoil_unknown_class, spoil_every_image)


@pytest.mark.parametrize('spoil', SPOILS)
def test_folders_that_cannot_be_trained_on(tlx_run, options, images, tmp_path, spoil):
  expected = spoil(images)
  code, _, err = tlx_run('finetune', *options, '--data', f'folder:{images}', '--out', tmp_path / 'run')
  assert code == 2 and expected in err and len(err.splitlines()) == 1


def test_unreadable_images_are_left_out_and_json_stays_json(tlx_run, options, images, tmp_path):
  (images / 'train' / 'red' / 'bad.png').write_bytes(b'hello')
  (images / 'train' / 'blue' / 'zero.jpg').write_bytes(b'')
  out = tmp_path / 'run'
  code, text, err = tlx_run('finetune', *options, '--data', f'folder:{images}', '--out', out, '--json')
  assert code == 0
  assert 'train/red/bad.png' in err and 'train/blue/zero.jpg' in err and '2 unreadable files are left out' in err
  found = json.loads(text)
  assert found['run'] == str(out) and found['count'] == 15
  record = json.loads((out / 'experiment.json').read_text())
  assert sum(record['data']['counts']['train']) == 30


@pytest.mark.parametrize(
  ('make', 'expected'),
  [
    (lambda path, other: path, 'no such file'),
    (lambda path, other: path.write_bytes(b'hello world') and path, 'not a safetensors, npz or torch file'),
    (lambda path, other: other, 'another architecture'),
  ],
  ids=['missing', 'no checkpoint', 'other architecture'],
)
def test_weights_that_do_not_fit(tlx_run, options, tiny_images, tiny_models, tmp_path, make, expected):
  weights = make(tmp_path / 'weights.safetensors', f'{tiny_models["resnet"]}/model.safetensors')
  more = ('--weights', weights, '--out', tmp_path / 'run')
  code, _, err = tlx_run('finetune', *options, '--data', f'folder:{tiny_images}', *more)
  assert code == 1 and expected in err and str(weights) in err and len(err.splitlines()) == 1


def test_weights_of_another_number_of_classes_get_a_fresh_head(tlx_run, options, images, finished, tmp_path):
  for split in ('train', 'val'):
    shutil.rmtree(images / split / 'red')
  more = ('--weights', finished / 'model', '--out', tmp_path / 'run')
  assert tlx_run('finetune', *options, '--data', f'folder:{images}', *more)[0] == 0
  model = tlx.load(str(tmp_path / 'run' / 'model'))
  assert model.class_names == ('blue', 'green') and model.module.head.num_classes == 2


def test_out_must_be_free(tlx_run, options, tiny_images, finished, tmp_path):
  (tmp_path / 'file').write_text('x')
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'photos' / 'a.txt').write_text('x')
  command = ('finetune', *options, '--data', f'folder:{tiny_images}')
  for out, expected in ((tmp_path / 'file', 'is a file'), (tmp_path / 'photos', 'is not a run folder')):
    code, _, err = tlx_run(*command, '--out', out)
    assert code == 2 and expected in err and str(out) in err
  before = (finished / 'experiment.json').read_bytes()
  code, _, err = tlx_run(*command, '--out', finished, '--epochs', '4')
  assert code == 2 and 'epochs 3.0 there, 4.0 here' in err
  assert (finished / 'experiment.json').read_bytes() == before


def test_a_finished_run_is_not_trained_again(tlx_run, options, tiny_images, finished):
  before = (finished / 'metrics.jsonl').read_bytes()
  code, out, _ = tlx_run('finetune', *options, '--data', f'folder:{tiny_images}', '--out', finished)
  assert code == 0 and 'is complete' in out
  assert (finished / 'metrics.jsonl').read_bytes() == before


def test_predict_takes_every_kind_of_image(tlx_run, finished, photo, tmp_path):
  folder = tmp_path / 'odd'
  folder.mkdir()
  image = Image.open(photo).convert('RGB')
  turned = Image.Exif()
  turned[0x0112] = 6
  image.convert('CMYK').save(folder / 'cmyk.jpg')
  Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257).save(folder / 'deep.png')
  image.convert('P').save(folder / 'palette.png', transparency=3)
  image.save(folder / 'turned.jpg', exif=turned)
  Image.new('RGB', (1, 1)).save(folder / 'one.png')
  Image.new('RGB', (20_000, 10)).save(folder / 'wide.png')
  image.save(folder / 'moving.gif', save_all=True, append_images=[image.rotate(90)])
  good = sorted(str(path) for path in folder.iterdir())
  image.save(folder / 'whole.jpg')
  (folder / 'cut.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:500])
  (folder / 'whole.jpg').unlink()
  (folder / 'empty.png').write_bytes(b'')
  text = tmp_path / 'text.txt'
  text.write_text('no image')
  code, out, err = tlx_run('predict', finished, folder, text, '--json')
  rows = {row['image']: row for row in json.loads(out)}
  bad = {str(folder / 'cut.jpg'), str(folder / 'empty.png'), str(text)}
  assert code == 1 and '3 of the images could not be read' in err
  assert set(rows) == {*good, *bad}
  assert {name for name, row in rows.items() if 'error' in row} == bad
  for name in good:
    assert {item['name'] for item in rows[name]['classes']} == {'blue', 'green', 'red'}
    np.testing.assert_allclose(sum(item['probability'] for item in rows[name]['classes']), 1, rtol=1e-5)
  code, out, err = tlx_run('predict', finished, text, good[0], '--top', '1')
  assert code == 1 and str(text) in err and good[0] in out and out.count('%') == 1


def test_predict_agrees_with_the_library(tlx_run, finished, tiny_images):
  files = sorted((tiny_images / 'val').rglob('*.png'))
  code, out, err = tlx_run('predict', finished, tiny_images / 'val', '--top', '1', '--json')
  rows = json.loads(out)
  assert code == 0 and not err and [row['image'] for row in rows] == [str(file) for file in files]
  right = np.mean([row['classes'][0]['name'] == file.parent.name for row, file in zip(rows, files, strict=True)])
  assert right == json.loads((finished / 'result.json').read_text())['accuracy']


def test_predict_refuses(tlx_run, finished, photo, tmp_path):
  assert tlx_run('predict', finished, photo, '--top', '0')[0::2] == (2, 'error: --top 0: must be 1 or more\n')
  for arguments, expected in (
    ((finished.parent / 'dome', photo), 'did you mean done?'),
    (('efficientnet_lite00', photo), 'did you mean efficientnet_lite0'),
    ((tmp_path, photo), 'has no experiment.json'),
    ((finished, tmp_path / 'no.png'), 'no such file'),
    ((finished,), 'no images'),
  ):
    code, out, err = tlx_run('predict', *arguments)
    assert code == 2 and expected in err and not out and len(err.splitlines()) == 1


def test_an_unfinished_run_says_how_to_finish_it(tlx_run, finished, photo, tmp_path):
  shutil.copy(finished / 'experiment.json', tmp_path)
  for command in (('predict', tmp_path, photo), ('evaluate', tmp_path), ('export', tmp_path), ('report', tmp_path)):
    code, _, err = tlx_run(*command)
    assert code == 2 and 'is not finished' in err and 'resume' in err


def test_predict_with_a_pretrained_model(tlx_run, tiny_model, photo):
  code, out, _ = tlx_run('predict', tiny_model, photo, '--top', '2', '--json')
  assert code == 0 and len(json.loads(out)[0]['classes']) == 2
  code, _, err = tlx_run('predict', 'efficientnet_b7', photo)
  assert code == 1 and 'no published weights' in err and '--weights FILE' in err


def test_evaluate_repeats_the_result_exactly(tlx_run, finished, images):
  result = json.loads((finished / 'result.json').read_text())
  code, out, _ = tlx_run('evaluate', finished, '--json')
  again = json.loads(out)
  assert code == 0 and again['accuracy'] == result['accuracy'] and again['count'] == result['count'] == 15
  assert tlx_run('evaluate', finished, '--batch-size', '4', '--data', f'folder:{images}')[0] == 0
  code, _, err = tlx_run('evaluate', finished, '--split', 'tst')
  assert code == 2 and "no split 'tst'" in err
  code, _, err = tlx_run('evaluate', finished, '--batch-size', '0')
  assert code == 2 and '--batch-size 0' in err
  for split in ('train', 'val'):
    (images / split / 'red').rename(images / split / 'rot')
  code, _, err = tlx_run('evaluate', finished, '--data', f'folder:{images}')
  assert code == 2 and 'only there rot; only here red' in err


def test_export_loads_back(tlx_run, finished, tmp_path):
  code, out, _ = tlx_run('export', finished, '--out', tmp_path / 'new', '--json')
  assert code == 0 and json.loads(out) == {'folder': str(tmp_path / 'new')}
  one, two = tlx.load(str(tmp_path / 'new')), tlx.load(str(finished / 'model'))
  assert one.class_names == two.class_names == ('blue', 'green', 'red') and one.preprocess == two.preprocess
  assert one.module == two.module
  jax.tree.map(np.testing.assert_array_equal, one.variables, two.variables)
  (tmp_path / 'file').write_text('x')
  code, _, err = tlx_run('export', finished, '--out', tmp_path / 'file')
  assert code == 2 and 'is a file' in err


def test_report_is_written_again(tlx_run, finished):
  (finished / 'report.html').unlink()
  code, out, _ = tlx_run('report', finished)
  assert code == 0 and str(finished / 'report.html') in out
  assert '<html' in (finished / 'report.html').read_text()


@pytest.mark.slow
def test_micro_batches_are_chosen_for_what_does_not_fit(tlx_run, options, tiny_images, tmp_path, monkeypatch):
  data = ('--data', f'folder:{tiny_images}', '--strategy', 'full', '--augment', 'none')
  monkeypatch.setattr(memory, '_fits', lambda program: not hasattr(program, 'memory_analysis') or next(answers))
  answers = iter([False, True])
  code, said, err = tlx_run('finetune', *options, *data, '--micro-batches', 'auto', '--out', tmp_path / 'auto')
  parts = re.search(r'on each device, in (\d+) micro-batches', said)
  assert code == 0 and parts, err
  answers = iter([False, True])
  code, _, err = tlx_run('finetune', *options, *data, '--remat', '--out', tmp_path / 'told')
  assert code == 1 and f'; --micro-batches {parts[1]} needs ' in err
  answers = iter([True])
  more = ('--micro-batches', parts[1], '--out', tmp_path / 'told')  # where the refused run lies
  assert tlx_run('finetune', *options, *data, *more)[0] == 0
  model = 'model/model.safetensors'
  assert (tmp_path / 'auto' / model).read_bytes() == (tmp_path / 'told' / model).read_bytes()


def test_a_step_that_does_not_fit_is_refused_before_it_runs(tlx_run, options, tiny_images, tmp_path, monkeypatch):
  monkeypatch.setattr(memory, 'limit', lambda device: 1_000)
  out = tmp_path / 'run'
  code, _, err = tlx_run('finetune', *options, '--data', f'folder:{tiny_images}', '--out', out)
  assert code == 1 and 'which has 0.00 GB; choose a smaller model or image' in err
  assert not (out / 'checkpoints').exists()
  monkeypatch.undo()
  code, said, _ = tlx_run('finetune', *options, '--data', f'folder:{tiny_images}', '--out', out)
  assert code == 0 and re.search(r'head: a step takes \d+\.\d+ GFLOPs and [\d.]+ [kM]B of memory on each device', said)
  assert re.search(r'device: 0\.\d\d forward passes \(full fine-tuning: about 3\)', said)  # the frozen layers ran once
