"""Weights out: a model as the folder that its own library, another one and `tlx.load` read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from tlx import catalog, trees, weights
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.pretrained.found import TLX, preprocess_of
from tlx.types import Preprocess, Pretrained, Source, UsageError, Variables
from tlx.weights import records, rules

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
  """Writes model.safetensors and config.json under the source's own names, which its own library and `tlx.load` read.

  A head that no other library knows goes by the names of its own paths beside the backbone's.

  Args:
    folder: where to write; made where it is missing.
    module: all that `tlx.load` returned, whose parts the other arguments replace; or a module, which needs `variables`.
    variables: the weights.
    source: where the weights came from; without it tlx writes a new record.
    preprocess: what the model expects of its input; None takes the variant's own.
    class_names: a name for each output.
    layout: a key of the family's or the head's LAYOUTS; by default the source's own if it is transformers' or has the
      head too, else the first of them, which is timm's where timm has the family.

  Returns:
    The folder. Tensors go back to the source's dtype where that loses nothing.

  Raises:
    UsageError: that layout cannot hold the model, or a module comes without variables.
    TlxError: the disk is full. The files in the folder then stay as they were.
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
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  weights.write_safetensors(folder / 'model.safetensors', tensors, {'format': 'pt'})
  for name, record in (('config.json', config), ('preprocessor_config.json', processor)):
    if record:
      (folder / name).write_text(json.dumps(record, indent=2) + '\n')
  return folder


def _classifier(
  variant: catalog.Variant, module: TransferModel, variables: Variables, source: Source, asked: str | None
) -> tuple[str, modules.Rules]:
  """The layout asked for, else the source's own where a folder can hold it and it has a name for every leaf.

  Raises UsageError where what reads that layout would not get this network back.
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
  """The layout asked for, else the source's own, else one of another library that has the head, else tlx's own."""
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
  """Why a layout, which has names for this network, would make another of it; '' where it would not."""
  if layout.startswith('transformers'):
    same = source.layout == layout and 'model_type' in source.config
    return '' if same else "transformers' config.json is kept, not made, and this came without"
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
  """config.json and preprocessor_config.json."""
  if not modules.is_classifier(module):
    return _records_with_head(variant, module, source, preprocess, class_names)
  classes = module.head.num_classes
  size = module.backbone.config.size
  if layout.startswith('transformers'):
    processor = dict(source.processor)
    if preprocess and processor:
      processor = records.transformers_processor(processor, preprocess.shape[0])
    if not classes and any(name.endswith('classifier.weight') for name in source.dropped):
      class_names = records.class_names(source.config)  # of heads that are not ours and go back as they came (DeiT)
      classes = len(class_names)
    return records.transformers_config(source.config, classes, class_names, size), processor
  record = preprocess or preprocess_of({}, {}, variant.checkpoint)
  arguments = {'img_size': size} if size and size != variant.config.size else {}
  if len(record.mean) != 3:
    arguments['in_chans'] = len(record.mean)
  config = records.timm_config(
    variant.name, module.backbone.config.width, record, classes, class_names, arguments, fixed_size=size is not None
  )
  if tag := (source.config.get('pretrained_cfg') or {}).get('tag'):  # timm tells by it what a file holds
    config['pretrained_cfg']['tag'] = tag
  return {**(source.config if 'architecture' in source.config else {}), **config}, {}


def _records_with_head(
  variant: catalog.Variant,
  module: TransferModel,
  source: Source,
  preprocess: Preprocess | None,
  class_names: Sequence[str],
) -> Records:
  """The source's own records, or timm's for the backbone; and under TLX all that rebuilds the head."""
  record = preprocess or preprocess_of({}, {}, variant.checkpoint)
  config = module.backbone.config
  size = config.size
  arguments = {'img_size': size} if size and size != variant.config.size else {}
  if len(record.mean) != 3:
    arguments['in_chans'] = len(record.mean)
  made = records.timm_config(variant.name, config.width, record, 0, (), arguments, fixed_size=size is not None)
  known = catalog.variant(variant.name).config if variant.name in catalog.variants() else config
  own = {
    'head': modules.head_spec(module),
    'module': f'{type(module.head).__module__}.{type(module.head).__qualname__}',
    'num_classes': getattr(module.head, 'num_classes', len(class_names)),
    'class_names': list(class_names),
    'task': source.task,
    'backbone': {name: x for name, x in catalog.options(config).items() if x != getattr(known, name)},
  }
  return {**source.config, **made, TLX: own}, dict(source.processor)
