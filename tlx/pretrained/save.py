"""Weights out: a model as the folder that its own library, another one and `tlx.load` read."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax

from tlx import catalog, trees, weights
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.pretrained.load import TLX, preprocess_of
from tlx.types import Preprocess, Pretrained, Source, UsageError, Variables
from tlx.weights import records, rules

LOOSE = ('output_stride',)  # fields of a backbone in which it may differ from its variant


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
    module: the model, or all that `tlx.load` returned.
    variables: of the module.
    layout: a key of the family's or the head's LAYOUTS; by default the source's own if it is transformers' or has the
      head too, else the first of them, which is timm's where timm has the family.
  Tensors go back to the source's dtype where that loses nothing.
  Returns: the folder. Raises: UsageError where that layout cannot hold the model, TlxError when the disk is full; what
    lay there stays as it was.
  """
  if isinstance(module, Pretrained):
    return export(folder, module, layout)
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


def export(folder: str | Path, model: Pretrained, layout: str | None = None) -> Path:
  """`save` of all that `load` returned, trained or not."""
  about = {'source': model.source, 'preprocess': model.preprocess, 'class_names': model.class_names}
  return save(folder, model.module, model.variables, layout=layout, **about)


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


def _records(variant, module, source: Source, preprocess, class_names, layout) -> tuple[dict, dict]:
  """config.json and preprocessor_config.json."""
  if not modules.is_classifier(module):
    return _records_with_head(variant, module, source, preprocess, class_names)
  classes = module.head.num_classes
  size = getattr(module.backbone.config, 'size', None)
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




def _records_with_head(variant, module, source: Source, preprocess, class_names) -> tuple[dict, dict]:
  """The source's own records, or timm's for the backbone; and under TLX all that rebuilds the head."""
  record = preprocess or preprocess_of({}, {}, variant.checkpoint)
  config = module.backbone.config
  size = getattr(config, 'size', None)
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
    'backbone': {name: getattr(config, name) for name in LOOSE if getattr(config, name, 0) != getattr(known, name, 0)},
  }
  return {**source.config, **made, TLX: own}, dict(source.processor)
