"""Weights in: a name, a folder or a hub id to a model that is ready to use."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from tlx import catalog, trees, weights
from tlx.labels import HEAD
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.pretrained.found import Asked, Found, locate, resolve
from tlx.types import Pretrained, Size, Source, UsageError, Variables
from tlx.weights import records, rules

Tensors = Mapping[str, np.ndarray]
OLD_HEAD = (HEAD, 'logits')  # modules that are new where the head is another


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
