"""The Hugging Face Hub: its names as people type them, and its files, kept in the hub's own cache folder.

huggingface_hub says where the cache, the endpoint and the token are. tlx asks for the files itself, because that
library has no bound on the length of an answer, nor on the time that a slow server takes.
"""

import contextlib
import os
import pathlib
import re
import urllib.parse
from typing import NamedTuple

from tlx import files, words
from tlx.types import TlxError, UsageError
from tlx.weights import download, kinds, web
from tlx.weights.read import weight_files

SITE = 'https://huggingface.co'
SITES = ('huggingface.co', 'www.huggingface.co', 'hf.co')  # and that of HF_ENDPOINT
SCHEME = re.compile(r'\s*(?:hf[-_]hub:|hf:(?!//)|hf://(?:models/)?)(.*)', re.IGNORECASE | re.DOTALL)
PART = r'[A-Za-z0-9](?:[\w.-]{0,94}\w)?'
NAME = re.compile(rf'{PART}/{PART}', re.ASCII)
REVISION = re.compile(r'\w[\w./+-]{0,250}', re.ASCII)
COMMIT = re.compile(r'[0-9a-f]{40}')
DESCRIPTION = re.compile(r'(preprocessor_)?config\.json')
SAFE = re.compile(r'model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json')
TORCH = re.compile(r'pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json')
AGAIN = 'try again, or pass a local folder'


class Repository(NamedTuple):
  """A model on the hub."""

  name: str  # OWNER/NAME
  revision: str | None = None  # commit, tag or branch; None is the main branch

  def __str__(self) -> str:
    return f'hf-hub:{self.name}' + (f' at revision {self.revision}' if self.revision else '')


def parse(text: str) -> Repository | None:
  """Recognises a repository of the hub: hf-hub:OWNER/NAME[@REVISION], its other spellings, and addresses of the site.

  Args:
    text: a location.

  Returns:
    The repository; None if the text is something else, such as a path or the address of a file.

  Raises:
    UsageError: if the text names the hub, but not a repository of a model.

  Examples:
    >>> parse('https://huggingface.co/timm/resnet50.a1_in1k/tree/main')
    Repository(name='timm/resnet50.a1_in1k', revision='main')
    >>> parse('hf_hub:timm/resnet50.a1_in1k')
    Repository(name='timm/resnet50.a1_in1k', revision=None)
    >>> parse('models/resnet50')
  """
  if scheme := SCHEME.fullmatch(text):
    name, at, revision = scheme[1].strip().strip('/').partition('@')
    return _checked(text, name, revision if at else None)
  try:
    address = urllib.parse.urlsplit(text.strip() if '://' in text else f'//{text.strip()}')
  except ValueError:  # brackets in the host, say
    return None
  sites = (*SITES, os.environ.get('HF_ENDPOINT', SITE).lower().partition('://')[2].strip('/'))
  if address.netloc.lower() not in sites or address.scheme.lower() not in ('', 'http', 'https'):
    return None
  parts = [urllib.parse.unquote(part) for part in address.path.split('/') if part]
  if len(parts) > 4 and parts[2] == 'resolve':
    return None  # one file
  if len(parts) > 4 and parts[2] == 'blob':
    file = '/'.join(parts[3:])
    raise UsageError(f'{words.shown(text)}: a page about a file; write {SITE}/{parts[0]}/{parts[1]}/resolve/{file}')
  last, at, revision = parts[1].partition('@') if len(parts) > 1 else ('', '', '')
  if len(parts) == 4 and parts[2] in ('tree', 'commit', 'resolve'):
    revision = parts[3]
  elif len(parts) != 2 or parts[0] in ('datasets', 'spaces', 'models', 'docs'):
    last = ''
  return _checked(text, f'{parts[0] if parts else ""}/{last}', revision or None)


def _checked(text: str, name: str, revision: str | None) -> Repository:
  problem = ''
  if not NAME.fullmatch(name) or '..' in name or '--' in name or name.endswith('.git'):
    problem = 'not a model on the hub; write hf-hub:OWNER/NAME[@REVISION], such as hf-hub:timm/resnet50.a1_in1k'
  elif revision is not None and (not REVISION.fullmatch(revision) or '..' in revision or '//' in revision):
    problem = 'not a revision; after @ write a commit, a tag or a branch'
  if problem:
    raise UsageError(f'{words.shown(text.strip())[:200]}: {problem}')
  return Repository(name, revision)


def folder(at: Repository) -> pathlib.Path:
  """Returns the folder of a repository's files, and downloads what is missing.

  Args:
    at: the repository.

  Returns:
    A folder in the hub's cache, with config.json and the weights. If the hub cannot be asked, it is what was downloaded
    earlier for this revision.

  Raises:
    TlxError: if the files are neither on the hub nor in its cache, or the hub cannot be reached.
  """
  from huggingface_hub import constants  # slow to import, and most runs do not need it

  cache = pathlib.Path(constants.HF_HUB_CACHE).expanduser() if '~' not in constants.HF_HUB_CACHE else None
  if cache is None:
    raise TlxError(f'{at}: there is no home folder to keep it in; next: set HF_HOME to a folder of yours')
  repository = cache.absolute() / f'models--{at.name.replace("/", "--")}'
  found = _earlier(repository, at)
  if found and COMMIT.fullmatch(at.revision or '') and (found / 'config.json').exists():
    return found
  if constants.HF_HUB_OFFLINE:
    if found:
      return found
    raise TlxError(f'{at}: not in the cache, and HF_HUB_OFFLINE is set; connect once, or pass a local folder')
  try:
    commit, names = _listing(at, constants.ENDPOINT)
  except TlxError as error:
    if found and not _gone(error):
      return found
    raise _explained(at, error, 'not in the cache, and the hub cannot be reached: ') from None
  return _files(at, repository, constants.ENDPOINT, commit, names)


def _earlier(repository: pathlib.Path, at: Repository) -> pathlib.Path | None:
  """The folder of an earlier download, if it has the weights."""
  with contextlib.suppress(OSError, UnicodeError, TlxError):
    revision = at.revision or 'main'
    if not COMMIT.fullmatch(revision):
      revision = (repository / 'refs' / revision).read_text('ascii').strip()
    found = repository / 'snapshots' / revision
    if COMMIT.fullmatch(revision) and weight_files(found):
      return found
  return None


def _headers() -> dict[str, str]:
  """The user's token. huggingface_hub's own `build_hf_headers` asks the hub for a list of agents, without a bound."""
  from huggingface_hub import constants, get_token

  try:
    token = '' if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
  except Exception as error:  # it may ask a server for a new one, with whatever network library it uses
    raise web.Unreachable(f'no token of the hub ({words.shown(str(error))[:160]}); run: hf auth login') from None
  return {'Authorization': f'Bearer {token}'} if token else {}


def _listing(at: Repository, endpoint: str) -> tuple[str, list[str]]:
  """The commit of the revision, and the names of its files."""
  revision = urllib.parse.quote(at.revision or 'main', safe='')
  url = f'{endpoint}/api/models/{at.name}/revision/{revision}'
  record = web.json_of(url, _headers(), AGAIN)
  commit, entries = record.get('sha'), record.get('siblings')
  names = [e.get('rfilename') if isinstance(e, dict) else None for e in entries] if isinstance(entries, list) else []
  if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
    raise web.Unreachable(f'{url}: the answer names no commit; {AGAIN}')
  if not names or not all(isinstance(name, str) for name in names):
    raise web.Unreachable(f'{url}: the answer lists no files; {AGAIN}')
  return commit, names


def _files(at: Repository, repository: pathlib.Path, endpoint: str, commit: str, names: list[str]) -> pathlib.Path:
  """Downloads the files of a commit. It takes only names that it knows, so a name cannot lead elsewhere."""
  chosen = [name for kind in (DESCRIPTION, SAFE) for name in names if kind.fullmatch(name)]
  if not any(map(SAFE.fullmatch, chosen)):
    chosen += filter(TORCH.fullmatch, names)
  target, partial = repository / 'snapshots' / commit, repository / 'partial' / commit
  if not any(SAFE.fullmatch(name) or TORCH.fullmatch(name) for name in chosen):
    there = ', '.join(map(words.shown, sorted(names)[:8]))
    raise TlxError(f'{at}: no model.safetensors and no pytorch_model.bin on the hub; it has {there}')
  missing = [name for name in dict.fromkeys(chosen) if not (target / name).exists()]
  with download.saving(str(at), target, 'HF_HOME'):
    partial.mkdir(parents=True, exist_ok=True)
    with download.alone(partial / 'lock'):
      for name in missing:
        if not (target / name).exists():  # another process may have been first
          _file(at, f'{endpoint}/{at.name}/resolve/{commit}/{name}', target / name, partial / f'{name}.part')
    if at.revision != commit:
      reference = repository / 'refs' / (at.revision or 'main')
      reference.parent.mkdir(parents=True, exist_ok=True)
      with files.replacing(reference) as file:
        file.write(commit.encode())
  weight_files(target)
  return target


def _file(at: Repository, url: str, target: pathlib.Path, part: pathlib.Path) -> None:
  text = target.suffix == '.json'
  check, largest = (kinds.not_json, web.JSON_BYTES) if text else (kinds.not_whole, None)
  way_out = f'run it again{"" if text else " to go on from there"}, or pass a local folder'
  try:
    download.save(url, target, part, check=check, headers=_headers(), largest=largest, way_out=way_out)
  except TlxError as error:
    raise _explained(at, error) from None


def _gone(error: TlxError) -> bool:
  return isinstance(error, web.Refused) and error.headers.get('X-Error-Code') == 'RevisionNotFound'


def _explained(at: Repository, error: TlxError, hint: str = '') -> TlxError:
  """What an error of the web means on the hub."""
  if not isinstance(error, web.Refused):
    return TlxError(f'{at}: {hint if isinstance(error, web.Unreachable) else ""}{error}')
  page, kind = f'{SITE}/{at.name}', error.headers.get('X-Error-Code', '')
  if kind == 'GatedRepo' or (error.code == 403 and not kind):
    problem = f'it is gated; accept the terms at {page}, then run: hf auth login'
  elif kind == 'RevisionNotFound':
    problem = f'the hub has no such revision; see {page}/commits/main'
  elif error.code in (401, 404):
    problem = f'not on the hub, or private; check the spelling at {page}, or run: hf auth login'
  elif error.code == 429:
    problem = 'the hub has had too many requests from here; wait some minutes, or run: hf auth login'
  else:
    problem = f'{error}'
  return TlxError(f'{at}: {problem}')
