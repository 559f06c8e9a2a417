"""Weights in: a name, a folder or a hub id to a model that is ready to use."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from tlx import catalog, trees, weights, words
from tlx.labels import HEAD
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.types import (
  Checkpoint,
  Preprocess,
  Pretrained,
  Size,
  Source,
  TlxError,
  UsageError,
  Variables,
  WholeModel,
  shape_of,
)
from tlx.weights import records, rules

TLX = 'tlx'  # the key of config.json under which a model's head stands that no other library knows
Record = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
OLD_HEAD = (HEAD, 'logits')  # modules that are new where the head is another


class Found(NamedTuple):
  """What a name turned out to be; none of its weights is read yet."""

  variant: catalog.Variant
  folder: Path | None  # of a folder or a hub id
  config: Mapping[str, Any]  # its config.json
  processor: Mapping[str, Any]  # its preprocessor_config.json
  location: str = ''  # of the weights, once `locate` has seen to them
  path: Path | None = None  # the same on this machine
  whole: WholeModel | None = None  # its head too, where the two were trained together
  head: str | None = None  # of `tlx/heads`, with its options; None = one linear layer

  @property
  def record(self) -> Record:
    """What tlx wrote of a head that no other library knows."""
    return self.config.get(TLX) or {}

  @property
  def task(self) -> str:
    """The file of `tlx/tasks`, perhaps with options, that the head is for."""
    return self.record.get('task') or (self.whole.task if self.whole else 'classification')

  @property
  def checkpoint(self) -> Checkpoint | None:
    """The published weights that belong to it, where we know of any."""
    return self.whole.checkpoint if self.whole else self.variant.checkpoint

  @property
  def preprocess(self) -> Preprocess:
    """What the model expects of its input unless another size is asked for."""
    record = preprocess_of(self.config, self.processor, self.checkpoint)
    return record._replace(size=self.variant.config.size or record.size)


def load(
  name: str | Found,
  *,
  weights: str | None = None,
  num_classes: int | None = None,
  image_size: Size | None = None,
  in_channels: int | None = None,
  head: str | nn.Module | None = None,
  pretrained: bool = True,
  dropout: float | None = None,
  drop_path: float = 0.0,
  seed: int = 0,
) -> Pretrained:
  """A backbone with its weights, its preprocessing and its class names.

  Args:
    name: a variant (`tlx.list_models()`), or a folder or 'hf-hub:OWNER/NAME' with config.json and weights, in timm's
      layout or in transformers'; or what `resolve` or `locate` made of one, so that nothing is looked up twice.
    weights: a file, URL or folder to take the weights from instead of the variant's published ones.
    num_classes: None keeps the checkpoint's head; another number puts a fresh head in its place; 0 leaves none.
    image_size: pixels, a side or (height, width); None keeps the checkpoint's. Position tables are resampled to it.
    in_channels: None keeps the checkpoint's; the first convolution is adapted to it.
    head: what to put in place of the checkpoint's head: a file of `tlx/heads` with its options, such as 'unet' or
      'mlp(hidden=512)', or a linen module called as `head(features, train)`.
    pretrained: False gives random weights drawn from `seed`.
    dropout: share of the head's inputs that training drops; None keeps the head's own.
    drop_path: stochastic depth of the last block.
    seed: of what is drawn: all weights, or those of a new head.
  Raises: UsageError for an unknown name; WeightMismatchError listing everything that does not fit; TlxError if no
    weights can be had.
  """
  found = resolve(name) if not isinstance(name, Found) else name
  ask = Asked(num_classes, image_size, in_channels, dropout, drop_path, head, seed)
  if not pretrained:
    return _random(found, ask)
  return _read(found if found.path and not weights else locate(found, weights), ask)


def resolve(name: str) -> Found:
  """The variant that a name stands for, and for a folder or hub id its place and records."""
  if name in catalog.variants():
    return Found(catalog.variant(name), None, {}, {})
  if name in catalog.wholes():
    head, whole = catalog.wholes()[name]
    return _of_whole(head, whole, None, {}, {})
  if not (name.startswith(('hf-hub:', '.', '/', '~')) or Path(name).exists()):
    raise UsageError(f'no model {name!r}{words.suggest(name, catalog.list_models())}')
  folder = weights.fetch(name)
  config = weights.read_config(folder)
  if of_library := catalog.whole_of_config(config):
    found = _of_whole(*of_library, folder, config, weights.read_processor(folder))
    return found._replace(head=found.record.get('head')) if found.record else found  # which may have taken its place
  if 'architecture' not in config and 'model_type' not in config:
    raise TlxError(
      f'{name}/config.json names no "architecture" (timm) and no "model_type" (transformers); '
      f'it has {", ".join(config)}'
    )
  found = Found(_described(config), folder, config, weights.read_processor(folder))
  return found._replace(head=found.record.get('head'))


def locate(found: Found, weights_at: str | None = None) -> Found:
  """The same with its weights on this machine, and with the records that a named variant's repository has beside them.

  weights_at: as `weights` of `load`. Raises: TlxError if no weights can be had.
  """
  checkpoint, config, processor = found.checkpoint, found.config, found.processor
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
  return found._replace(config=config, processor=processor, location=location, path=path)


class Asked(NamedTuple):
  """How the model is to differ from its checkpoint."""

  num_classes: int | None = None
  image_size: Size | None = None
  in_channels: int | None = None
  dropout: float | None = None
  drop_path: float = 0.0
  head: str | nn.Module | None = None
  seed: int = 0

  def channels(self, config: Mapping[str, Any]) -> int:
    return self.in_channels or records.channels(config)

  def preprocess(self, found: Found) -> Preprocess:
    """The checkpoint's record for this size and number of channels."""
    record, channels = found.preprocess, self.channels(found.config)
    return records.for_channels(record._replace(size=self.image_size or record.size), channels)

  def variant(self, variant: catalog.Variant) -> catalog.Variant:
    if self.image_size is None or variant.config.size is None:
      return variant
    height, width = shape_of(self.image_size)
    if height != width:
      raise UsageError(f'image size {height}x{width}: {variant.name} has a table of positions, which must be square')
    return variant._replace(config=dataclasses.replace(variant.config, size=height))

  def module(self, variant: catalog.Variant, classes: int, head: str | nn.Module | None = None) -> TransferModel:
    """With the classes and the head asked for, or these."""
    count = classes if self.num_classes is None else self.num_classes
    return modules.build(variant, count, self.dropout, self.drop_path, self.head or head)


def _random(found: Found, ask: Asked) -> Pretrained:
  """Random weights for the same model that the published ones belong to, so that the two compare."""
  variant = found.variant
  if not found.whole and variant.checkpoint and variant.checkpoint.variant != variant.name:
    variant = catalog.variant(variant.checkpoint.variant)
  variant, channels, preprocess = ask.variant(variant), ask.channels(found.config), ask.preprocess(found)
  module = ask.module(variant, found.whole.num_classes if found.whole else 1000, found.head)
  image = modules.example(module, channels, preprocess.shape)
  variables = jax.jit(module.init)(jax.random.key(ask.seed), image)
  config = found.config if 'architecture' in found.config else {}
  return Pretrained(module, variables, preprocess, (), Source(variant.name, config=config, task=found.task))


class Stored(NamedTuple):
  """What a file of weights holds."""

  layout: str
  variant: catalog.Variant
  table: modules.Rules
  classes: int
  head: str | nn.Module | None  # None = one linear layer
  names: Sequence[str]  # of the classes


def _read(found: Found, ask: Asked) -> Pretrained:
  assert found.path is not None  # `locate` has seen to it
  tensors = weights.read_tensors(found.path)
  where = f'{found.location} -> {found.variant.name}'
  stored = _with_head(found, ask, tensors, where) if found.head or found.record else _classifier(found, tensors, where)
  variables, dropped, module, fresh = _variables(found, ask, stored, tensors, where)
  return Pretrained(
    module,
    jax.device_put(variables),  # at once: jnp.asarray compiles a program for each shape
    ask.preprocess(found),
    () if fresh else tuple(stored.names),
    Source(
      stored.variant.name,
      stored.layout,
      found.location,
      found.checkpoint.license if found.checkpoint else 'unknown',
      found.config,
      found.processor,
      dropped,
      {name: tensor.dtype.name for name, tensor in tensors.items() if tensor.dtype != np.float32},
      found.task,
    ),
  )


def _classifier(found: Found, tensors: Tensors, where: str) -> Stored:
  """A backbone's own file, with or without its linear head."""
  layout, variant = _layout(found.variant, tensors, where)
  variant = _as_stored(variant, layout, tensors)
  table = tuple(variant.family.LAYOUTS[layout](variant.config))  # of the checkpoint: at another size it may have none
  classes = _classes(table, tensors)
  return Stored(layout, variant, table, classes, None, records.names_of_classes(found.config, classes))


def _with_head(found: Found, ask: Asked, tensors: Tensors, where: str) -> Stored:
  """A backbone with another head: a file of a library that keeps both, or one that tlx wrote."""
  record, head = found.record, found.head or ask.head
  if head is None:
    raise UsageError(
      f"{found.location} has a head of its writer's own, {record.get('module')}; pass it: tlx.load(..., head=...)"
    )
  classes = record.get('num_classes') or (found.whole.num_classes if found.whole else 0)
  tables = modules.tables(found.variant, modules.build(found.variant, classes, head=head))
  layout = max(tables, key=lambda name: sum(rule.source in tensors for rule in tables[name]))
  if not record:
    classes = _outputs(found.variant, head, classes, tables[layout], tensors)
  published = found.whole.class_names if found.whole and found.whole.num_classes == classes else ()
  names = record.get('class_names') or published or records.names_of_classes(found.config, classes)
  return Stored(layout, found.variant, tables[layout], classes, head, names)


def _variables(
  found: Found, ask: Asked, stored: Stored, tensors: Tensors, where: str
) -> tuple[Variables, Tensors, TransferModel, bool]:
  """(variables, tensors without a use, module, whether its outputs are new)."""
  channels, shape = ask.channels(found.config), ask.preprocess(found).shape
  module = ask.module(ask.variant(stored.variant), stored.classes, stored.head)
  another = ask.head is not None and ask.head != stored.head
  if not another and ask.num_classes in (None, stored.classes):
    return *rules.read(tensors, stored.table, modules.abstract(module, channels, shape), where=where), module, False
  if modules.is_classifier(module):
    like = rules.blank(modules.abstract(module, channels, shape), ('logits',), modules.sees_map(module))
    return *rules.read(tensors, stored.table, like, fresh=OLD_HEAD, where=where), module, True
  like = modules.fresh_head(module, channels, shape, ask.seed)
  if another:
    return *rules.read(tensors, stored.table, like, fresh=OLD_HEAD, where=where), module, True
  same = ask._replace(num_classes=stored.classes).module(ask.variant(stored.variant), stored.classes, stored.head)
  variables, dropped = rules.read(tensors, stored.table, modules.abstract(same, channels, shape), where=where)
  old = trees.flatten(variables)  # a new number of classes changes the shapes of the last layer alone
  kept = {path: old[path] if old[path].shape == x.shape else x for path, x in trees.flatten(like).items()}
  return trees.unflatten(kept), dropped, module, True


def _outputs(
  variant: catalog.Variant, head: str | nn.Module, guess: int, table: modules.Rules, tensors: Tensors
) -> int:
  """The classes of a file: the length of the leaves whose shape depends on their number."""
  leaves = lambda n: trees.flatten(modules.abstract(modules.build(variant, n, head=head)))
  one, two = leaves(guess), leaves(guess + 1)
  depends = [path for path in one if one[path].shape != two[path].shape]
  found = [tensors[rule.source] for rule in table if rule.target in depends and rule.source in tensors]
  return found[0].shape[0] if found else guess


def _of_whole(head: str, whole: WholeModel, folder: Path | None, config: Record, processor: Record) -> Found:
  variant = catalog.variant(whole.backbone)
  variant = variant._replace(config=dataclasses.replace(variant.config, **whole.backbone_options))
  options = ', '.join(f'{name}={value!r}' for name, value in whole.options.items())
  return Found(variant, folder, config, processor, whole=whole, head=f'{head}({options})' if options else head)


def _described(config: Mapping[str, Any]) -> catalog.Variant:
  """The variant that a config.json speaks of."""
  if 'architecture' not in config:
    return catalog.of_transformers(records.full_config(config))
  arguments = dict(config.get('model_args') or {})
  variant = catalog.variant(config['architecture'])
  size = arguments.pop('img_size', None)
  if unknown := arguments.keys() - {'in_chans', 'num_classes', 'drop_rate', 'drop_path_rate'}:
    raise TlxError(f'config.json of {variant.name} asks for {", ".join(sorted(unknown))} in model_args, unknown to tlx')
  if options := (config.get(TLX) or {}).get('backbone'):
    variant = variant._replace(config=dataclasses.replace(variant.config, **options))
  return Asked(image_size=size if size is None or isinstance(size, int) else size[0]).variant(variant)


def _layout(variant: catalog.Variant, tensors: Mapping[str, np.ndarray], where: str) -> tuple[str, catalog.Variant]:
  """The layout whose names the tensors share most, and the variant that weights of this layout belong to."""
  tables, _ = rules.tables(variant.family.LAYOUTS, variant.config)
  needed = lambda table: [rule.source for rule in table if rule.target and rule.absent is None]
  wanted = {name: needed(table) for name, table in tables.items()}
  shared = {name: sum(source in tensors for source in sources) for name, sources in wanted.items()}
  best = max(shared, key=shared.__getitem__)
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
  if variant.config.aux_classes is None:
    return variant
  second = [r.source for r in variant.family.LAYOUTS[layout](variant.config) if r.target and '/aux/' in r.target]
  if any(source in tensors for source in second):
    return variant
  return variant._replace(config=dataclasses.replace(variant.config, aux_classes=None))


def _classes(table: Sequence[rules.Rule], tensors: Mapping[str, np.ndarray]) -> int:
  """Outputs of the checkpoint's head; 0 where it has none."""
  bias = [rule.source for rule in table if rule.target == f'params/{HEAD}/logits/bias']
  return len(tensors[bias[0]]) if bias and bias[0] in tensors else 0


def preprocess_of(config: Record, processor: Record, checkpoint: Checkpoint | None) -> Preprocess:
  """What the records say, or else the published weights' own."""
  return records.preprocess(config, processor, checkpoint.preprocess if checkpoint else Preprocess())
