"""The hub's names as people type them: each is understood, or one line says what to type."""

import pytest

from tlx import pretrained
from tlx.actions import runs
from tlx.types import TlxError, UsageError
from tlx.weights import fetch, hub

NAME = 'timm/resnet50.a1_in1k'


@pytest.mark.parametrize(
  'text, revision',
  [(f'hf-hub:{NAME}', None), (f'hf_hub:{NAME}', None), (f'HF-Hub: {NAME} ', None), (f'hf:{NAME}', None),
   (f'hf://{NAME}', None), (f'hf://models/{NAME}', None), (f'hf-hub:{NAME}@v1.0', 'v1.0'), (f'hf-hub:{NAME}/', None),
   (f'hf://{NAME}@refs/pr/1', 'refs/pr/1'), (f'https://huggingface.co/{NAME}', None),
   (f'http://huggingface.co/{NAME}/', None), (f'https://www.huggingface.co/{NAME}?library=timm#use', None),
   (f'huggingface.co/{NAME}', None), (f'https://hf.co/{NAME}', None), (f'https://HuggingFace.co/{NAME}@v1', 'v1'),
   (f'https://huggingface.co/{NAME}/tree/main', 'main'),
   (f'https://huggingface.co/{NAME}/tree/refs%2Fpr%2F1', 'refs/pr/1'),
   (f'https://mirror.example/{NAME}', None)],
)  # fmt: skip
def test_spellings(monkeypatch, text, revision):
  monkeypatch.setenv('HF_ENDPOINT', 'https://mirror.example')
  assert hub.parse(text) == (NAME, revision) and pretrained.on_hub(text)


@pytest.mark.parametrize(
  'text', ['models/resnet50', 'a/b', './a', '/a/b', 'resnet50', '', 'C:\\models', 'C:/models', 'package:numpy/a', 'x:y',
           'https://example.org/a/b', 'http://[bad', '//[bad', f'https://huggingface.co/{NAME}/resolve/main/w.pth']
)  # fmt: skip
def test_what_is_not_the_hub(text):
  assert hub.parse(text) is None


@pytest.mark.parametrize(
  'text, problem',
  [('hf-hub:', 'OWNER/NAME'), ('hf-hub:resnet50', 'OWNER/NAME'), ('hf-hub:a/b/c', 'OWNER/NAME'),
   ('hf:../x', 'OWNER/NAME'),
   ('hf-hub:a/..', 'OWNER/NAME'), ('hf-hub:/a/b\x1b[2J', r'b\\x1b\[2J: not a model'), ('hf-hub:a/b@', 'revision'),
   ('hf-hub:a/b@../../x', 'revision'), ('hf-hub:a/b@-x', 'revision'), ('hf-hub:a\\b', 'OWNER/NAME'),
   ('https://huggingface.co/datasets/a/b', 'not a model'), ('https://huggingface.co/timm', 'not a model'),
   (f'https://huggingface.co/{NAME}/blob/main/model.safetensors', f'write https://huggingface.co/{NAME}/resolve/main/model'),
   ('https://huggingface.co/a/b/tree/main/sub', 'not a model')],
)  # fmt: skip
def test_one_line_says_what_to_type(text, problem):
  with pytest.raises(UsageError, match=problem) as caught:
    fetch(text)
  assert str(caught.value).isprintable()


@pytest.fixture
def asked(monkeypatch):
  """What would be asked of the hub; nothing is."""
  found = []

  def folder(at):
    found.append(tuple(at))
    raise TlxError('no network')

  monkeypatch.setattr(hub, 'folder', folder)
  return found


@pytest.mark.parametrize(
  'name, place', [('resnet50.tv_in1k', 'timm/resnet50.tv_in1k'), ('timm/resnet50.tv_in1k', 'timm/resnet50.tv_in1k'),
                  ('hf_hub:owner/name', 'owner/name'), ('https://huggingface.co/owner/name', 'owner/name')]
)  # fmt: skip
def test_model_names_that_the_hub_is_asked_for(asked, name, place):
  for load in (pretrained.resolve, runs.load_any):
    with pytest.raises(TlxError, match='no network'):
      load(name)
  assert asked == [(place, None)] * 2
  with pytest.raises(TlxError, match='no network'):
    pretrained.resolve(f'{name}@v2')
  assert asked[-1] == (place, 'v2')


def test_names_of_what_tlx_has_need_no_question(asked):
  variant = pretrained.resolve('vit_tiny_patch16_224').variant
  tag = variant.checkpoint.location.rpartition('/')[2]
  for name in (tag, f'timm/{tag}', 'timm/vit_tiny_patch16_224'):
    assert pretrained.resolve(name).variant == variant and not asked


@pytest.mark.parametrize(
  'name, problem',
  [('timm/resnet5.a1_in1k', 'did you mean resnet50'), ('resnet5.a1_in1k', 'did you mean resnet50'),
   ('resnet50.', 'no model'), ('resnet50.a b', 'no model'), ('timm/', 'no model'), ('timm/a/b', 'no model'),
   ('facebook/dinov2-small', 'write hf-hub:facebook/dinov2-small'), ('facebook/x@v1', 'write hf-hub:facebook/x@v1'),
   ('https://example.org/w.pth', 'name the model'), ('run/pets', 'no model and no folder'),
   ('vgg61', 'did you mean .*vgg16')],
)  # fmt: skip
def test_what_may_be_misspelt_does_not_reach_the_network(asked, tmp_path, monkeypatch, name, problem):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UsageError, match=problem):
    pretrained.resolve(name)
  with pytest.raises(UsageError):
    runs.load_any(name)
  assert not asked


def test_a_folder_goes_before_a_name_on_the_hub(asked, tiny_model, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'timm').mkdir()
  (tmp_path / 'timm' / 'resnet50.a1_in1k').symlink_to(tiny_model)
  assert pretrained.resolve(NAME).variant.name == 'mobilenetv1_test' and not asked
