"""Weights in and out: a name, a folder or a hub id to a model that is ready to use, and back."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tlx import catalog, trees, weights, words
from tlx.labels import HEAD
from tlx.nn.model import Backbone, Head, TransferModel
from tlx.types import Preprocess, Pretrained, Source, TlxError, UsageError, Variables
from tlx.weights import records, rules


class Found(NamedTuple):
  """What a name turned out to be; none of its weights is read yet."""

  variant: catalog.Variant
  folder: Path | None  # of a folder or a hub id
  config: Mapping[str, Any]  # its config.json
  processor: Mapping[str, Any]  # its preprocessor_config.json
  location: str = ''  # of the weights, once `locate` has seen to them
  path: Path | None = None  # the same on this machine

  @property
  def preprocess(self) -> Preprocess:
    """What the model expects of its input unless another size is asked for."""
    record = _preprocess(self.config, self.processor, self.variant)
    return record._replace(size=getattr(self.variant.config, 'size', None) or record.size)


def load(
  name: str | Found,
  *,
  weights: str | None = None,
  num_classes: int | None = None,
  image_size: int | None = None,
  in_channels: int | None = None,
  pretrained: bool = True,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  seed: int = 0,
) -> Pretrained:
  """A backbone with its weights, its preprocessing and its class names.

  Args:
    name: a variant (`tlx.list_models()`), or a folder or 'hf-hub:OWNER/NAME' with config.json and weights, in timm's
      layout or in transformers'; or what `resolve` or `locate` made of one, so that nothing is looked up twice.
    weights: a file, URL or folder to take the weights from instead of the variant's published ones.
    num_classes: None keeps the checkpoint's head; another number puts a fresh head in its place; 0 leaves none.
    image_size: pixels; None keeps the checkpoint's. Position tables are resampled to it.
    in_channels: None keeps the checkpoint's; the first convolution is adapted to it.
    pretrained: False gives random weights drawn from `seed`.
    dropout: before the head. drop_path: stochastic depth of the last block.
  Raises: UsageError for an unknown name; WeightMismatchError listing everything that does not fit; TlxError if no
    weights can be had.
  """
  found = resolve(name) if not isinstance(name, Found) else name
  ask = Asked(num_classes, image_size, in_channels, dropout, drop_path)
  if not pretrained:
    return _random(found, ask, seed)
  return _read(found if found.path and not weights else locate(found, weights), ask)


def save(
  folder: str | Path,
  module: TransferModel,
  variables: Variables,
  *,
  source: Source | None = None,
  preprocess: Preprocess | None = None,
  class_names: Sequence[str] = (),
  layout: str | None = None,
) -> Path:
  """Writes model.safetensors and config.json under the source's own names, which its own library and `tlx.load` read.

  layout: a key of the family's LAYOUTS; by default the source's own if it is timm's or transformers', else timm's.
  Tensors go back to the source's dtype where that loses nothing.
  Returns: the folder. Raises TlxError when the disk is full; what lay there stays as it was.
  """
  variant = catalog.of_config(module.backbone.config, source and source.variant)
  source = source or Source(variant.name)
  layout, table = _layout_to_write(variant, module, variables, source, layout)
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


def features(module: TransferModel, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
  """{layer name: its output} in order, and 'pooled' [b, d]; images float [b, h, w, 3], already normalised."""
  return module.apply(variables, images, method='features')


def abstract(module: TransferModel, channels: int = 3) -> Variables:
  """Shapes and dtypes of the variables, without computing any."""
  return jax.eval_shape(module.init, jax.random.key(0), example(module, channels))


def example(module: TransferModel, channels: int = 3) -> jax.Array:
  """A black image [1, s, s, c] of a size that the model takes."""
  config = module.backbone.config
  side = getattr(config, 'size', None) or max(64, getattr(config, 'smallest', 64))
  return jnp.zeros((1, side, side, channels))


def resolve(name: str) -> Found:
  """The variant that a name stands for, and for a folder or hub id its place and records."""
  if name in catalog.variants():
    return Found(catalog.variant(name), None, {}, {})
  if not (name.startswith(('hf-hub:', '.', '/', '~')) or Path(name).exists()):
    raise UsageError(f'no model {name!r}{words.suggest(name, catalog.list_models())}')
  folder = weights.fetch(name)
  config = weights.read_config(folder)
  if 'architecture' not in config and 'model_type' not in config:
    raise TlxError(
      f'{name}/config.json names no "architecture" (timm) and no "model_type" (transformers); '
      f'it has {", ".join(config)}'
    )
  return Found(_described(config), folder, config, weights.read_processor(folder))


def locate(found: Found, weights_at: str | None = None) -> Found:
  """The same with its weights on this machine, and with the records that a named variant's repository has beside them.

  weights_at: as `weights` of `load`. Raises: TlxError if no weights can be had.
  """
  checkpoint, config, processor = found.variant.checkpoint, found.config, found.processor
  if found.folder and not weights_at:
    return found._replace(location=str(found.folder), path=found.folder)
  location = weights_at or (checkpoint and checkpoint.location)
  if not location:
    raise TlxError(
      f'{found.variant.name} has no published weights that tlx knows of: pass weights (--weights FILE), '
      'or start from random ones with pretrained=False (--strategy scratch)'
    )
  record = checkpoint if checkpoint and location == checkpoint.location else None
  path = weights.fetch(location, revision=record and record.revision, sha256=record and record.sha256)
  if record and not config and location.startswith('hf-hub:'):
    config, processor = weights.read_config(path), weights.read_processor(path)
  return Found(found.variant, found.folder, config, processor, location, path)


def build(variant: catalog.Variant, num_classes: int, dropout: float = 0.0, drop_path: float = 0.0) -> TransferModel:
  """The module of a variant, without weights; num_classes = 0 leaves out the head."""
  config = variant.config
  if getattr(config, 'aux_classes', None) is not None:  # a second head, inside the backbone
    config = dataclasses.replace(config, aux_classes=num_classes)
  head = Head(num_classes, dropout, getattr(config, 'spatial_head', False))
  return TransferModel(Backbone(config, drop_path), head)


class Asked(NamedTuple):
  """How the model is to differ from its checkpoint."""

  num_classes: int | None
  image_size: int | None
  in_channels: int | None
  dropout: float
  drop_path: float

  def channels(self, config: Mapping[str, Any]) -> int:
    return self.in_channels or records.channels(config)

  def preprocess(self, found: Found) -> Preprocess:
    """The checkpoint's record for this size and number of channels."""
    record, channels = found.preprocess, self.channels(found.config)
    return records.for_channels(record._replace(size=self.image_size or record.size), channels)

  def variant(self, variant: catalog.Variant) -> catalog.Variant:
    if self.image_size is None or not hasattr(variant.config, 'size'):
      return variant
    return variant._replace(config=dataclasses.replace(variant.config, size=self.image_size))


def _random(found: Found, ask: Asked, seed: int) -> Pretrained:
  """Random weights for the same model that the published ones belong to, so that the two compare."""
  variant = found.variant
  if variant.checkpoint and variant.checkpoint.variant != variant.name:
    variant = catalog.variant(variant.checkpoint.variant)
  variant, channels = ask.variant(variant), ask.channels(found.config)
  module = build(variant, 1000 if ask.num_classes is None else ask.num_classes, ask.dropout, ask.drop_path)
  variables = jax.jit(module.init)(jax.random.key(seed), example(module, channels))
  return Pretrained(
    module,
    variables,
    ask.preprocess(found),
    (),
    Source(variant.name, config=found.config if 'architecture' in found.config else {}),
  )


def _read(found: Found, ask: Asked) -> Pretrained:
  asked, config = found.variant, found.config
  where = f'{found.location} -> {asked.name}'
  tensors = weights.read_tensors(found.path)
  layout, variant = _layout(asked, tensors, where)
  variant = _as_stored(variant, layout, tensors)
  table = tuple(variant.family.LAYOUTS[layout](variant.config))  # of the checkpoint: at another size it may have none
  variant, channels = ask.variant(variant), ask.channels(config)
  classes = _classes(table, tensors)
  module = build(variant, classes if ask.num_classes is None else ask.num_classes, ask.dropout, ask.drop_path)
  fresh = 'logits' if ask.num_classes not in (None, classes) else None
  blank = rules.blank(abstract(module, channels), fresh, module.pools_nothing)
  variables, dropped = rules.read(tensors, table, blank, fresh=fresh, where=where)
  return Pretrained(
    module,
    jax.device_put(variables),  # at once: jnp.asarray compiles a program for each shape
    ask.preprocess(found),
    () if fresh else records.names_of_classes(config, module.head.num_classes),
    Source(
      variant.name,
      layout,
      found.location,
      asked.checkpoint.license if asked.checkpoint else 'unknown',
      config,
      found.processor,
      dropped,
      {name: tensor.dtype.name for name, tensor in tensors.items() if tensor.dtype != np.float32},
    ),
  )


def _described(config: Mapping[str, Any]) -> catalog.Variant:
  """The variant that a config.json speaks of."""
  if 'architecture' not in config:
    return catalog.of_transformers(records.full_config(config))
  arguments = dict(config.get('model_args') or {})
  variant = catalog.variant(config['architecture'])
  size = arguments.pop('img_size', None)
  if unknown := arguments.keys() - {'in_chans', 'num_classes', 'drop_rate', 'drop_path_rate'}:
    raise TlxError(f'config.json of {variant.name} asks for {", ".join(sorted(unknown))} in model_args, unknown to tlx')
  return Asked(None, size if size is None or isinstance(size, int) else size[0], None, 0, 0).variant(variant)


def _layout(variant: catalog.Variant, tensors: Mapping[str, np.ndarray], where: str) -> tuple[str, catalog.Variant]:
  """The layout whose names the tensors share most, and the variant that weights of this layout belong to."""
  tables, _ = rules.tables(variant.family.LAYOUTS, variant.config)
  needed = lambda table: [rule.source for rule in table if rule.target and rule.absent is None]
  wanted = {name: needed(table) for name, table in tables.items()}
  shared = {name: sum(source in tensors for source in sources) for name, sources in wanted.items()}
  best = max(shared, key=shared.get)
  if shared[best] < len(wanted[best]) / 2:
    names = ', '.join(list(tensors)[:3]) or 'nothing'
    raise rules.WeightMismatchError(
      f'{where}: weights of another architecture, which share {shared[best]} tensor names with it '
      f'(they hold {names}, ...); choose the model that they belong to'
    )
  rename = getattr(variant.family, 'LAYOUT_VARIANTS', {}).get(best, str)
  if (name := rename(variant.name)) != variant.name:
    variant = catalog.variant(name)
  return best, variant


def _as_stored(variant: catalog.Variant, layout: str, tensors: Mapping[str, np.ndarray]) -> catalog.Variant:
  """Without its second head where the file has none: weights of one network are published with and without."""
  if getattr(variant.config, 'aux_classes', None) is None:
    return variant
  second = [r.source for r in variant.family.LAYOUTS[layout](variant.config) if r.target and '/aux/' in r.target]
  if any(source in tensors for source in second):
    return variant
  return variant._replace(config=dataclasses.replace(variant.config, aux_classes=None))


def _layout_to_write(variant, module, variables, source: Source, asked: str | None) -> tuple[str, Sequence[rules.Rule]]:
  """The layout asked for, else the source's own where a folder can hold it and it has a name for every leaf.

  Raises UsageError where what reads that layout would not get this network back.
  """
  tables, refused = rules.tables(variant.family.LAYOUTS, module.backbone.config)
  refused |= {name: reason for name in tables if (reason := _foreign(variant, source, name))}
  can = [name for name in tables if name not in refused]
  own = [source.layout] if source.layout.startswith('transformers') else []
  choices = [name for name in ([asked] if asked else [*own, 'timm']) if name in can]
  if not choices:
    reason = refused.get(asked or 'timm', 'its family has no such layout')
    instead = f'it can as {", ".join(can)}' if can else 'pass the source that it was loaded with'
    raise UsageError(f'{variant.name} cannot be written as {asked or "timm"!r}: {reason}; {instead}')
  leaves = trees.flatten(variables).keys()
  name = next((name for name in choices if leaves <= rules.by_target(tables[name]).keys()), choices[-1])
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
  classes = module.head.num_classes
  size = getattr(module.backbone.config, 'size', None)
  if layout.startswith('transformers'):
    processor = dict(source.processor)
    if preprocess and processor:
      processor = records.transformers_processor(processor, preprocess.size)
    if not classes and any(name.endswith('classifier.weight') for name in source.dropped):
      class_names = records.class_names(source.config)  # of heads that are not ours and go back as they came (DeiT)
      classes = len(class_names)
    return records.transformers_config(source.config, classes, class_names, size), processor
  record = preprocess or _preprocess({}, {}, variant)
  arguments = {'img_size': size} if size and size != variant.config.size else {}
  if len(record.mean) != 3:
    arguments['in_chans'] = len(record.mean)
  config = records.timm_config(
    variant.name, module.backbone.config.width, record, classes, class_names, arguments, fixed_size=size is not None
  )
  if tag := (source.config.get('pretrained_cfg') or {}).get('tag'):  # timm tells by it what a file holds
    config['pretrained_cfg']['tag'] = tag
  return {**(source.config if 'architecture' in source.config else {}), **config}, {}


def _classes(table: Sequence[rules.Rule], tensors: Mapping[str, np.ndarray]) -> int:
  """Outputs of the checkpoint's head; 0 where it has none."""
  bias = [rule.source for rule in table if rule.target == f'params/{HEAD}/logits/bias']
  return len(tensors[bias[0]]) if bias and bias[0] in tensors else 0


def _preprocess(config, processor, variant: catalog.Variant) -> Preprocess:
  """What the records say, or else the variant's own."""
  return records.preprocess(config, processor, variant.checkpoint.preprocess if variant.checkpoint else Preprocess())
