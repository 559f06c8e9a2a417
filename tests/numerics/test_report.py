"""The report page: what it shows, that it needs no network, and that no run folder breaks it. All runs are made up."""

import html.parser
import json
import re

import numpy as np
import PIL.Image
import pytest

from tlx.report import MetricsLog, page, read, write_json
from tlx.report.html import percent
from tlx.tasks.classification import Task
from tlx.types import TlxError, UsageError

VOID = {'meta', 'link', 'img', 'br', 'hr', 'input', 'line', 'rect', 'circle', 'path'}
EVIL = '<script>alert(1)</script>'



def written(folder):
  """The report of a classifier's run folder."""
  return page.write_report(folder, Task())


def build_run(folder, k=10, phases=1, steps=300, names=None, seed=0):
  """Writes the files of a run that never happened: k classes, made-up curves, confusions and thumbnails."""
  rng = np.random.default_rng(seed)
  names = names or [f'synthetic class {i}' for i in range(k)]
  train, validation = rng.integers(40, 200, k), rng.integers(10, 40, k)
  labels = np.repeat(np.arange(k), validation)
  predictions = np.where(
    rng.random(len(labels)) < 0.88, labels, (labels + rng.integers(1, min(k, 4) + 1, len(labels))) % k
  )
  confidences = np.clip(rng.beta(8, 1.2, len(labels)) - 0.15 * (labels != predictions), 0.02, 1)
  confusion = np.zeros((k, k), np.int64)
  np.add.at(confusion, (labels, predictions), 1)
  correct, bins = labels == predictions, np.minimum((confidences * 15).astype(int), 14)
  sums = {
    name: np.bincount(bins, weight, 15)
    for name, weight in (('bin_count', np.ones(len(bins))), ('bin_confidence', confidences), ('bin_correct', correct))
  }
  np.savez(
    folder / 'evaluation.npz',
    confusion=confusion,
    labels=labels,
    predictions=predictions,
    confidences=confidences,
    indices=np.arange(len(labels)),
    **sums,
  )
  part, names_of_phases = steps // phases, ['probe', 'top stages', 'all layers'] if phases > 1 else ['train']
  log = MetricsLog(folder / 'metrics.jsonl')
  for step in range(5, steps + 1, 5):
    phase, decay = min((step - 1) // part, phases - 1), np.exp(-step / steps * 3)
    common = {'step': step, 'phase': names_of_phases[phase]}
    log.append(
      common
      | {
        'split': 'train',
        'loss': 2.2 * decay + 0.1 * rng.random() + 0.1,
        'accuracy': 1 - 0.8 * decay - 0.05 * rng.random(),
        'learning_rate': 0.01 * 10.0**-phase * (0.5 + 0.5 * np.cos(np.pi * ((step - 1) % part) / part)),
        'grad_norm': 2 * decay + rng.random(),
        'images_per_second': 900 + 40 * rng.normal(),
        'data_wait': 0.26,
      }
    )
    if step % 30 == 0:
      log.append(common | {'split': 'validation', 'loss': 2 * decay + 0.35, 'accuracy': 0.9 - 0.7 * decay})
  records = []
  (folder / 'mistakes').mkdir()
  for i in np.argsort(-confidences * ~correct)[: min(24, int((~correct).sum()))].tolist():
    pixels = np.kron(rng.integers(0, 255, (6, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(folder / 'mistakes' / f'{i:05d}.png')
    records.append(
      {
        'file': f'mistakes/{i:05d}.png',
        'name': f'synthetic/{i}.png',
        'label': int(labels[i]),
        'prediction': names[predictions[i]],
        'confidence': confidences[i],
        'probability_of_label': 0.04,
      }
    )
  write_json(folder / 'mistakes.json', records)
  rows = [
    {
      'label': 'frozen',
      'tensors': 159,
      'parameters': 23_508_032,
      'learning_rate': 0,
      'first_path': 'backbone/stem/conv/kernel',
    },
    {'label': 'head', 'tensors': 2, 'parameters': 2049 * k, 'learning_rate': 0.01, 'first_path': 'head/kernel'},
  ]
  accuracy = float(correct.mean())
  write_json(
    folder / 'result.json',
    {
      'accuracy': accuracy,
      'top5_accuracy': 0.99,
      'loss': 0.4123,
      'macro_precision': 0.87,
      'macro_recall': 0.86,
      'macro_f1': 0.865,
      'calibration_error': 0.031,
      'count': len(labels),
      'seconds': 134.2,
      'images_per_second': 893.4,
      'data_wait': 0.26,
      'trainable_parameters': 2049 * k,
      'parameters': 23_508_032 + 2049 * k,
      'compile_seconds': 12.7,
      'prefix_seconds': 11.4,
      'split': 'validation',
      'phases': names_of_phases,
      'test': {'accuracy': 0.8125, 'count': 64} if k == 10 else {},
    },
  )
  write_json(
    folder / 'experiment.json',
    {
      'experiment': {
        'model': 'resnet50',
        'data': 'made_up_patches',
        'strategy': 'gradual' if phases > 1 else 'linear_probe',
        'epochs': 10,
        'batch_size': 64,
        'image_size': 224,
        'seed': 0,
        'dtype': 'float32',
        'compile': 'jit',
        'mixup': None,
      },
      'command': 'tlx finetune --model resnet50 --data made_up_patches --strategy linear_probe --out runs/example',
      'environment': {
        'python': '3.12.1',
        'jax': '0.11.0',
        'flax': '0.12.0',
        'optax': '0.2.8',
        'device kind': 'cpu',
        'device count': 1,
      },
      'data': {
        'name': 'made_up_patches',
        'class_names': names,
        'counts': {'train': train, 'validation': validation},
        'resolution': [240, 320],
        'rejected': [['train/a/broken.jpg', 'truncated: 1,024 of 20,480 bytes'], ['train/b/notes.txt', 'no picture']],
        'source': 'fabricated by the test',
        'license': 'none',
      },
      'model': {
        'variant': 'resnet50',
        'location': 'hf-hub:timm/resnet50.a1_in1k',
        'license': 'apache-2.0',
        'parameters': 23_508_032,
        'preprocess': {'size': 224, 'crop': 0.875, 'interpolation': 'bicubic', 'mean': [0.485, 0.456, 0.406]},
      },
      'learning': [{'name': name, 'steps': part, 'rows': rows} for name in names_of_phases],
      'defaults': {'epochs': '10 (small data set)', 'image_size': '224 (what the checkpoint expects)'},
    },
  )
  return folder


class Page(html.parser.HTMLParser):
  """Checks that tags nest, and gathers tags, addresses and the text of the page."""

  def __init__(self, markup):
    super().__init__()
    self.open, self.tags, self.addresses, self.ids, self.text = [], [], [], [], ''
    self.feed(markup)
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.addresses += [value for name, value in attributes if name in ('src', 'href', 'data', 'srcset', 'action')]
    self.ids += [value for name, value in attributes if name == 'id']
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.mark.parametrize(('k', 'phases'), [(2, 1), (10, 3), (102, 1)])
def test_page_is_whole_and_needs_no_network(tmp_path, k, phases):
  markup = written(build_run(tmp_path, k, phases)).read_text('utf-8')
  page_ = Page(markup)
  assert all(address.startswith(('data:image/', '#')) for address in page_.addresses)
  assert all(address[1:] in page_.ids for address in page_.addresses if address.startswith('#'))
  assert not re.search(r'url\(|@import|<link|<iframe|https?:(?!//www\.w3\.org)', markup)
  assert len(markup) < 3e6
  result = json.loads((tmp_path / 'result.json').read_text())
  for fact in (
    percent(result['accuracy']),
    '2 min 14 s',
    'resnet50 on made_up_patches',
    'truncated: 1,024',
    '--strategy linear_probe',
    'small data set',
    'apache-2.0',
    'backbone/stem/conv/kernel',
    '26.0\u00a0% of the time',
  ):
    assert fact in page_.text, fact
  assert page_.tags.count('svg') >= 5
  assert ('Accuracy on test' in page_.text) == (k == 10)  # where there is a test split
  assert 'No evaluation' not in page_.text and 'is recorded' not in page_.text
  assert ('top stages' in markup) == (phases > 1)


def test_page_is_the_same_when_rebuilt(tmp_path):
  path = written(build_run(tmp_path, 3))
  first = path.read_bytes()
  assert written(tmp_path).read_bytes() == first


def test_a_thousand_classes_stay_small(tmp_path):
  assert written(build_run(tmp_path, 1000, steps=20)).stat().st_size < 3e6


def test_text_is_escaped(tmp_path):
  folder = build_run(tmp_path, 3, names=[EVIL, '"><img src=x onerror=alert(1)>', 'ñandú 🦩 \ud800'])
  experiment = json.loads((folder / 'experiment.json').read_text())
  experiment['command'] = experiment['experiment']['model'] = EVIL
  experiment['learning'][0]['name'] = EVIL
  write_json(folder / 'experiment.json', experiment)
  page_ = Page(written(folder).read_bytes().decode('utf-8'))
  assert page_.tags.count('script') == 1
  assert EVIL in page_.text and 'ñandú 🦩' in page_.text
  assert all(address.startswith(('data:image/', '#')) for address in page_.addresses)


@pytest.mark.parametrize(
  'name', ['experiment.json', 'metrics.jsonl', 'result.json', 'evaluation.npz', 'mistakes.json', 'mistakes']
)
@pytest.mark.parametrize('damage', ['missing', 'damaged', 'another type'])
def test_no_file_is_needed(tmp_path, name, damage):
  folder = build_run(tmp_path, 3, steps=30)
  path = folder / name
  if name == 'mistakes':
    for picture in path.iterdir():
      picture.unlink() if damage == 'missing' else picture.write_bytes(b'\x89PNG' + bytes(60_000))
  elif damage == 'missing':
    path.unlink()
  else:
    path.write_bytes(
      b'\x00 damaged\n\x00\n' if damage == 'damaged' else b'{"step": []}\n' if name == 'metrics.jsonl' else b'7'
    )
  page_ = Page(written(folder).read_text('utf-8'))
  told = name not in ('mistakes', 'metrics.jsonl') or (name, damage) == ('metrics.jsonl', 'damaged')
  assert damage == 'missing' or not told or name in page_.text


@pytest.mark.parametrize('junk', [None, 7, 'text', [], [None], {}, {'x': None}, [[1]]])
def test_fields_of_other_types_do_not_break_it(tmp_path, junk):
  write_json(
    tmp_path / 'experiment.json',
    dict.fromkeys(('experiment', 'command', 'environment', 'data', 'model', 'learning', 'defaults'), junk),
  )
  write_json(
    tmp_path / 'result.json',
    dict.fromkeys(('accuracy', 'count', 'seconds', 'parameters', 'trainable_parameters', 'macro_f1'), junk),
  )
  write_json(tmp_path / 'mistakes.json', [junk, {'file': junk, 'label': junk, 'confidence': junk}])
  Page(written(tmp_path).read_text('utf-8'))
  write_json(
    tmp_path / 'experiment.json',
    {
      'data': dict.fromkeys(('class_names', 'counts', 'rejected', 'resolution', 'source'), junk),
      'learning': [{'rows': junk, 'steps': junk, 'name': junk}],
    },
  )
  Page(written(tmp_path).read_text('utf-8'))


def test_an_empty_folder_has_a_page_and_no_folder_has_none(tmp_path):
  assert 'There is no result yet' in written(tmp_path).read_text('utf-8')
  with pytest.raises(UsageError, match=r'no run folder at .*gone'):
    written(tmp_path / 'gone')


def test_pictures_outside_the_run_are_not_shown(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  PIL.Image.new('RGB', (4, 4)).save(tmp_path / 'secret.png')
  write_json(
    folder / 'mistakes.json',
    [{'file': '../secret.png', 'name': 'x', 'label': 'a', 'prediction': 'b', 'confidence': 0.9}],
  )
  assert 'data:image' not in written(folder).read_text('utf-8').partition('<body>')[2]


def test_where_the_model_looked_stands_beside_a_mistake(tmp_path):
  folder = build_run(tmp_path, 3, steps=30)
  records = json.loads((folder / 'mistakes.json').read_text())
  without = written(folder).read_text('utf-8')
  PIL.Image.new('RGB', (8, 8)).save(folder / 'mistakes' / 'heat.png')
  write_json(folder / 'mistakes.json', [{**records[0], 'heat': 'mistakes/heat.png'}, *records[1:]])
  beside = written(folder).read_text('utf-8')
  pictures = lambda markup: sum(address.startswith('data:image/') for address in Page(markup).addresses)
  assert pictures(beside) == pictures(without) + 1
  assert 'Grad-CAM' in beside and 'Grad-CAM' not in without


def test_large_pictures_are_made_smaller(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
  (tmp_path / 'mistakes').mkdir()
  PIL.Image.fromarray(pixels).save(tmp_path / 'mistakes' / 'large.png')
  (shown,) = read.mistakes(
    tmp_path, [{'file': 'large.png', 'label': 0, 'prediction': 1, 'confidence': 1.0}], ['a', 'b']
  )
  assert shown['picture'].startswith('data:image/jpeg') and len(shown['picture']) < 60_000
  assert (shown['label'], shown['prediction']) == ('a', 'b')


def test_damaged_metrics_are_named(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nhalf\n{"step": 2}\n')
  with pytest.raises(TlxError, match=r'metrics\.jsonl: line 2'):
    MetricsLog.read(tmp_path / 'metrics.jsonl')
