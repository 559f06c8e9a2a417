"""Saves a model as a folder that `tlx.load` and other libraries can read."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tlx import catalog, files, trees, weights
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.pretrained.found import TLX, preprocess_of
from tlx.types import Preprocess, Pretrained, Source, TlxError, UsageError, Variables
from tlx.weights import records, rules, smp

WEIGHTS, PROCESSOR, CONFIG = 'model.safetensors', 'preprocessor_config.json', 'config.json'
Records = tuple[dict[str, Any], dict[str, Any]]  # config.json and preprocessor_config.json


def save(
  folder: str | Path,
  module: TransferModel | Pretrained,
  variables: Variables | None = None,
  *,
  source: Source | None = None,
  preprocess: Preprocess | None = None,
  class_names: Sequence[str] = (),
  layout: str | None = None,
) -> Path:
  """Writes a model as model.safetensors and config.json, with the tensor names of another library.

  If no other library knows the head, its tensors have the names of their paths in tlx. Tensors are written in the
  source's dtype if that loses no precision. Everything is written under temporary names first. config.json comes last,
  and that of another model goes first, so that a killed process never leaves weights beside another model's records.

  Args:
    folder: to write; created if missing.
    module: the result of `tlx.load`, of which the other arguments replace parts; or a module, which needs `variables`.
    variables: the weights.
    source: where the weights came from; without it tlx writes a new record.
    preprocess: of the model; None takes the variant's own.
    class_names: one name per output.
    layout: a key of the family's or the head's LAYOUTS. By default it is the source's own if that is transformers' or
      includes the head; otherwise the first one, which is timm's if timm has the family.

  Returns:
    The folder.

  Raises:
    UsageError: if the layout cannot represent the model, or a module is given without variables.
    TlxError: if the disk is full or the folder is not writable. The model that was in the folder then stays.
  """
  if isinstance(module, Pretrained):
    return save(
      folder,
      module.module,
      module.variables if variables is None else variables,
      source=source or module.source,
      preprocess=preprocess or module.preprocess,
      class_names=class_names or module.class_names,
      layout=layout,
    )
  if variables is None:
    raise UsageError(
      'a module alone has no weights; next: tlx.save(folder, module, variables), or all of tlx.load(...)'
    )
  variant = catalog.of_config(module.backbone.config, source and source.variant)
  source = source or Source(variant.name)
  writer = _classifier if modules.is_classifier(module) else _with_head
  layout, table = writer(variant, module, variables, source, layout)
  kept = (source.dropped, source.dtypes) if source.layout == layout else ({}, {})
  tensors = rules.write(jax.device_get(variables), table, *kept)
  config, processor = _records(variant, module, source, preprocess, class_names, layout)
  config = records.with_grey(config, preprocess.grey if preprocess else None)
  _write(Path(folder), tensors, config, processor)
  return Path(folder)


def _write(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
  """Replaces the model in a folder by another one."""
  named = [folder / name for name in (WEIGHTS, PROCESSOR, CONFIG)]  # the last one makes it a model
  encoded = {path: _encoded(record) for path, record in zip(named[1:], (processor, config)) if record}
  staged = {path: files.temporary_of(path) for path in named}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    weights.write_safetensors(staged[folder / WEIGHTS], tensors, {'format': 'pt'})
    for path, content in encoded.items():
      with files.replacing(staged[path]) as file:
        file.write(content)
    if encoded != {path: path.read_bytes() for path in named[1:] if path.exists()}:
      (folder / CONFIG).unlink(missing_ok=True)
    for path in named:
      if staged[path].exists():
        os.replace(staged[path], path)
      elif path.exists():
        path.unlink()  # of the other model
    files.sync_folder(folder)
  except TlxError as error:  # of `write_safetensors`
    raise TlxError(str(error).replace(str(staged[folder / WEIGHTS]), str(folder / WEIGHTS))) from error
  except OSError as error:
    reason = files.FULL.get(error.errno or 0) or error.strerror or error
    raise TlxError(
      f'cannot write the model to {folder}: {reason}; the model that was there stays; next: free some space, or choose '
      'a folder that you may write to'
    ) from error
  finally:
    for path in staged.values():
      with contextlib.suppress(OSError):
        path.unlink()


def _encoded(record: Mapping[str, Any]) -> bytes:
  return (json.dumps(record, indent=2) + '\n').encode('utf-8', 'backslashreplace')


def _classifier(
  variant: catalog.Variant, module: TransferModel, variables: Variables, source: Source, asked: str | None
) -> tuple[str, modules.Rules]:
  """The layout asked for, or else the source's own or the usual one, preferably with a name for every variable.

  Raises UsageError if reading a folder in this layout would give another network.
  """
  tables, refused = rules.tables(variant.family.LAYOUTS, module.backbone.config)
  refused |= {name: reason for name in tables if (reason := _foreign(variant, source, name))}
  can = [name for name in tables if name not in refused]
  own = [source.layout] if source.layout.startswith('transformers') else []
  usual = asked or next(iter(variant.family.LAYOUTS))
  choices = [name for name in ([asked] if asked else [*own, usual]) if name in can]
  if not choices:
    reason = refused.get(usual, 'its family has no such layout')
    instead = f'it can as {", ".join(can)}' if can else 'pass the source that it was loaded with'
    raise UsageError(f'{variant.name} cannot be written as {usual!r}: {reason}; {instead}')
  leaves = trees.flatten(variables).keys()
  name = next((name for name in choices if leaves <= rules.by_target(tables[name]).keys()), choices[-1])
  return name, tables[name]


def _with_head(
  variant: catalog.Variant, module: TransferModel, variables: Variables, source: Source, asked: str | None
) -> tuple[str, modules.Rules]:
  """The layout asked for, else the source's own, else that of a library that has the head, else tlx's own."""
  tables = modules.tables(variant, module)
  asked = asked if asked in tables or not asked else modules.OWN + asked
  if asked and asked not in tables:
    can = [name for name in tables if not name.startswith(modules.OWN)]
    instead = f'it can as {", ".join(can)}' if can else 'leave --format out: tlx has a layout of its own for it'
    layout = asked.removeprefix(modules.OWN)
    wrong = f'{variant.name} with head {modules.head_name(module)} cannot be written as {layout!r}'
    raise UsageError(f'{wrong}; {instead}')
  name = asked or next(name for name in (source.layout, *tables) if name in tables)
  return name, tables[name]


def _foreign(variant: catalog.Variant, source: Source, layout: str) -> str:
  """Why reading this layout would give another network, although it has names for all tensors; '' if it would not."""
  if layout.startswith('transformers'):
    if source.layout != layout or 'model_type' not in source.config:
      return "transformers' config.json is kept, not made, and this came without"
    return 'the config.json that it came with describes another head' if catalog.whole_of_config(source.config) else ''
  if variant.name not in catalog.variants():
    return 'it is none of the variants, so that config.json cannot name it'
  owner = getattr(variant.family, 'LAYOUT_VARIANTS', {}).get(layout, str)(variant.name)
  return '' if owner == variant.name else f'weights in it are read as {owner}, with another padding or epsilon'


def _records(
  variant: catalog.Variant,
  module: TransferModel,
  source: Source,
  preprocess: Preprocess | None,
  class_names: Sequence[str],
  layout: str,
) -> Records:
  """The content of config.json and preprocessor_config.json."""
  if not modules.is_classifier(module):
    return _records_with_head(variant, module, source, preprocess, class_names, layout)
  classes = module.head.num_classes
  size = module.backbone.config.size
  if layout.startswith('transformers'):
    processor = dict(source.processor)
    if preprocess and processor:
      processor = records.transformers_processor(processor, source.config, preprocess)
    if not classes and any(name.endswith('classifier.weight') for name in source.dropped):
      class_names = records.class_names(source.config)  # heads that tlx does not use are written back unchanged (DeiT)
      classes = len(class_names)
    channels = len(preprocess.mean) if preprocess else None
    return records.transformers_config(source.config, classes, class_names, size, channels), processor
  record = preprocess or preprocess_of({}, {}, variant.checkpoint)
  arguments = _arguments(variant, size, record, source)
  config = records.timm_config(
    variant.name, module.backbone.config.width, record, classes, class_names, arguments, fixed_size=size
  )
  if tag := (source.config.get('pretrained_cfg') or {}).get('tag'):  # timm uses it to identify the weights
    config['pretrained_cfg']['tag'] = tag
  task = {} if source.task == 'classification' else {TLX: {'task': source.task}}
  had_head = 'head' in (source.config.get(TLX) or {})  # then the old record describes a head that no longer exists
  kept = source.config if 'architecture' in source.config and not had_head else {}
  return {**_without_arguments(kept), **config, **task}, {}


def _arguments(variant: catalog.Variant, size: int | None, record: Preprocess, source: Source) -> dict[str, Any]:
  """Arguments of timm's constructor: those of the source that still hold, and what differs from the variant."""
  changed = ('num_classes', 'in_chans', 'img_size')  # timm prefers them to the fields beside `model_args`
  kept = {name: x for name, x in (source.config.get('model_args') or {}).items() if name not in changed}
  if size and size != variant.config.size:
    kept['img_size'] = size
  if len(record.mean) != 3:
    kept['in_chans'] = len(record.mean)
  return kept


def _without_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in config.items() if name != 'model_args'}


def _records_with_head(
  variant: catalog.Variant,
  module: TransferModel,
  source: Source,
  preprocess: Preprocess | None,
  class_names: Sequence[str],
  layout: str,
) -> Records:
  """The source's own records, or timm's for the backbone. The key TLX has everything that rebuilds the head."""
  record = preprocess or preprocess_of({}, {}, variant.checkpoint)
  config = module.backbone.config
  size = config.size
  arguments = _arguments(variant, size, record, source)
  made = records.timm_config(variant.name, config.width, record, 0, (), arguments, fixed_size=size)
  classes = getattr(module.head, 'num_classes', len(class_names))
  known = catalog.variant(variant.name).config if variant.name in catalog.variants() else config
  own = {
    'head': modules.head_spec(module),
    'module': f'{type(module.head).__module__}.{type(module.head).__qualname__}',
    'num_classes': classes,
    'class_names': list(class_names),
    'task': source.task,
    'backbone': {name: x for name, x in catalog.options(config).items() if x != getattr(known, name)},
  }
  made[TLX] = own
  if smp.CLASS not in source.config:
    theirs = source.config
    if 'model_type' in theirs:
      theirs = records.transformers_config(theirs, classes, class_names)
    processor = records.transformers_processor(source.processor, source.config, record) if source.processor else {}
    return {**_without_arguments(theirs), **made}, processor
  if layout != source.layout or not _describes(smp.theirs(source.config), module):
    return made, {}
  sized = {'img_size': size} if 'img_size' in arguments else {}
  new = {'classes': own['num_classes'], 'in_channels': len(record.mean), **sized}
  return smp.changed(source.config, new, made), {}


def _describes(config: Mapping[str, Any], module: TransferModel) -> bool:
  """Whether the config.json of a whole model still describes the head."""
  found = catalog.whole_of_config(config)
  if not found or found[0] != modules.head_name(module):
    return False
  return all(getattr(module.head, name) == value for name, value in found[1].options.items() if name != 'dropout')
