"""Loads a model from a name, a folder or a hub id."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from tlx import catalog, trees, weights
from tlx.labels import HEAD
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.pretrained.choose import OLD_HEAD, File, choose, say_old_head
from tlx.pretrained.found import Asked, Found, locate, require_channels, resolve
from tlx.types import Pretrained, Size, Source, UsageError, Variables
from tlx.weights import fit, records, rules

Tensors = Mapping[str, np.ndarray]


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
  """Loads a model with its weights, preprocessing and class names.

  Args:
    name: a variant (`tlx.list_models()`); or a folder or 'hf-hub:OWNER/NAME' with config.json and weights in the layout
      of timm or transformers; or the result of `resolve` or `locate`, to avoid a second look-up.
    weights: a file, URL or folder of weights to use instead of the published ones. The tensors whose names fit are
      found in it; FILE:KEY chooses those under KEY, such as 'last.pth:state_dict_ema' or 'moco.pth:encoder_k'.
    num_classes: None keeps the checkpoint's head; another number makes a new head; 0 makes a model without head.
    image_size: side or (height, width), pixels; None keeps the checkpoint's. Position tables are resampled.
    in_channels: number of input channels; None keeps the checkpoint's. The first convolution is adapted.
    head: replaces the checkpoint's head: a file of `tlx/heads` with its options, such as 'unet' or 'mlp(hidden=512)',
      or a linen module called as `head(features, train)`.
    pretrained: False draws random weights.
    dropout: share of the head's inputs that training drops, in [0, 1); None keeps the head's own.
    drop_path: stochastic depth of the last block, in [0, 1).
    seed: random seed of new weights.

  Returns:
    The model.

  Raises:
    UsageError: for an unknown name, or a head that does not fit.
    WeightMismatchError: if weights do not fit; it lists all of them.
    TlxError: if no weights are available.
  """
  found = resolve(name) if not isinstance(name, Found) else name
  ask = Asked(num_classes, image_size, in_channels, dropout, drop_path, head, seed)
  if not pretrained:
    return _random(found, ask)
  return _read(found if found.path and not weights else locate(found, weights), ask)


def _random(found: Found, ask: Asked) -> Pretrained:
  """Draws random weights, for the same variant as the published weights, so that the two can be compared."""
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
  """The content of a file of weights."""

  layout: str  # key of LAYOUTS
  variant: catalog.Variant
  table: modules.Rules  # names of the file's tensors -> paths of variables
  classes: int  # outputs of its head; 0 = no head
  head: str | nn.Module | None  # None = one linear layer
  names: Sequence[str]  # of the classes


def _read(found: Found, ask: Asked) -> Pretrained:
  assert found.path is not None  # `locate` has set it
  location = found.location.removesuffix(f':{found.key}') if found.key else found.location
  file = File(location, found.key, found.variant.name, weights.open_tensors(found.path))
  describe = _with_head if found.head or found.record.get('module') else _classifier
  stored, tensors = describe(found, ask, file)
  if ask.in_channels is None and found.location == str(found.folder):
    require_channels(found, stored.table, tensors, f'{found.location} -> {found.variant.name}')
  variables, dropped, module, fresh = _variables(found, ask, stored, tensors, file)
  return Pretrained(
    module,
    jax.device_put(variables),  # one transfer: jnp.asarray would compile a program for each shape
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


def _classifier(found: Found, ask: Asked, file: File) -> tuple[Stored, Tensors]:
  """Describes the file of a backbone with or without its linear head."""
  tables, _ = rules.tables(found.variant.family.LAYOUTS, found.variant.config)

  @functools.cache
  def like(layout: str) -> Variables:
    module = modules.build(ask.variant(_variant_of(found.variant, layout)), 0)
    return modules.abstract(module, ask.channels(found.config), ask.preprocess(found).shape)

  layout, tensors = choose(file, tables, like, ask.num_classes is not None or ask.head is not None)
  variant = _as_stored(_variant_of(found.variant, layout), layout, tensors)
  table = tuple(variant.family.LAYOUTS[layout](variant.config))  # a layout may not exist at another size
  classes = _classes(table, tensors)
  return Stored(layout, variant, table, classes, None, records.names_of_classes(found.config, classes)), tensors


def _with_head(found: Found, ask: Asked, file: File) -> tuple[Stored, Tensors]:
  """Describes the file of a backbone with another head, from another library or from tlx."""
  record, head = found.record, found.head or ask.head
  if head is None:
    raise UsageError(
      f"{found.location} has a head of its writer's own, {record.get('module')}; pass it: tlx.load(..., head=...)"
    )
  classes = record.get('num_classes') or (found.whole.num_classes if found.whole else 0)
  module = modules.build(found.variant, classes, head=head)
  tables = modules.tables(found.variant, module)
  like = functools.cache(lambda layout: modules.abstract(module))
  layout, tensors = choose(file, tables, like, ask.num_classes is not None or ask.head is not None)
  if not record:
    classes = _outputs(found.variant, head, classes, tables[layout], tensors)
  published = found.whole.class_names if found.whole and found.whole.num_classes == classes else ()
  names = record.get('class_names') or published or records.names_of_classes(found.config, classes)
  return Stored(layout, found.variant, tables[layout], classes, head, names), tensors


def _variables(
  found: Found, ask: Asked, stored: Stored, tensors: Tensors, file: File
) -> tuple[Variables, Tensors, TransferModel, bool]:
  """Reads the variables: (variables, unused tensors, module, whether its outputs are new)."""
  channels, shape = ask.channels(found.config), ask.preprocess(found).shape
  module = ask.module(ask.variant(stored.variant), stored.classes, stored.head)
  another = ask.head is not None and ask.head != stored.head
  where = f'{found.location} -> {found.variant.name}'
  headless = ask.num_classes == 0 and modules.is_classifier(module)
  if not another and not headless and ask.num_classes in (None, stored.classes):
    like = modules.abstract(module, channels, shape)
    with _advice(stored, tensors):
      return *rules.read(tensors, stored.table, like, where=where), module, False
  if modules.is_classifier(module):
    like = rules.blank(modules.abstract(module, channels, shape), ('logits',), modules.sees_map(module))
  else:
    like = modules.fresh_head(module, channels, shape, ask.seed)
  if modules.is_classifier(module) or another:
    old = _old_head(stored, tensors)
    known = {rule.source for rule in stored.table}
    published = found.folder == found.path or (found.checkpoint and found.location == found.checkpoint.location)
    if not published or not old.keys() <= known:  # a new head on a published model needs no word
      say_old_head(file, {name: x.shape for name, x in old.items()}, has_head=ask.num_classes != 0)
    tensors = {name: x for name, x in tensors.items() if name not in old or name in known}
    return *rules.read(tensors, stored.table, like, fresh=OLD_HEAD, where=where), module, True
  same = ask._replace(num_classes=stored.classes).module(ask.variant(stored.variant), stored.classes, stored.head)
  variables, dropped = rules.read(tensors, stored.table, modules.abstract(same, channels, shape), where=where)
  kept = trees.flatten(variables)  # a new number of classes changes only the shapes of the last layer
  kept = {path: kept[path] if kept[path].shape == x.shape else x for path, x in trees.flatten(like).items()}
  return trees.unflatten(kept), dropped, module, True


def _old_head(stored: Stored, tensors: Tensors) -> Tensors:
  """The tensors of the file's head, also those of a head that the user changed."""
  tables, _ = rules.tables(stored.variant.family.LAYOUTS, stored.variant.config)
  old = {name for table in (stored.table, *tables.values()) for name in fit.replaced(tensors, table, OLD_HEAD)}
  body = {rule.source for rule in stored.table if rule.target and set(OLD_HEAD).isdisjoint(rule.target.split('/'))}
  return {name: x for name, x in tensors.items() if name in old and name not in body}


@contextlib.contextmanager
def _advice(stored: Stored, tensors: Tensors) -> Iterator[None]:
  """Adds the way out to the error of a file with a head of another form."""
  try:
    yield
  except rules.WeightMismatchError as error:
    known = {rule.source for rule in stored.table}
    if all(name in known for name in _old_head(stored, tensors)):
      raise
    raise rules.WeightMismatchError(
      f'{error}\n  next: ask for a fresh head, which leaves out the old one: num_classes=N'
    ) from None


def _outputs(
  variant: catalog.Variant, head: str | nn.Module, guess: int, table: modules.Rules, tensors: Tensors
) -> int:
  """The number of classes of a file, from the leaves whose shape depends on it."""
  leaves = lambda n: trees.flatten(modules.abstract(modules.build(variant, n, head=head)))
  one, two = leaves(guess), leaves(guess + 1)
  depends = [path for path in one if one[path].shape != two[path].shape]
  found = [tensors[rule.source] for rule in table if rule.target in depends and rule.source in tensors]
  return found[0].shape[0] if found else guess


def _variant_of(variant: catalog.Variant, layout: str) -> catalog.Variant:
  """The variant that weights in a layout belong to."""
  rename = getattr(variant.family, 'LAYOUT_VARIANTS', {}).get(layout, str)
  return variant if (name := rename(variant.name)) == variant.name else catalog.variant(name)


def _as_stored(variant: catalog.Variant, layout: str, tensors: Mapping[str, np.ndarray]) -> catalog.Variant:
  """The variant without its auxiliary head if the file has none, because weights are published with and without."""
  if variant.config.aux_classes is None:
    return variant
  second = [r.source for r in variant.family.LAYOUTS[layout](variant.config) if r.target and '/aux/' in r.target]
  if any(source in tensors for source in second):
    return variant
  return variant._replace(config=dataclasses.replace(variant.config, aux_classes=None))


def _classes(table: Sequence[rules.Rule], tensors: Mapping[str, np.ndarray]) -> int:
  """Number of outputs of the checkpoint's linear head; 0 if it has none."""
  bias = [rule.source for rule in table if rule.target == f'params/{HEAD}/logits/bias']
  return len(tensors[bias[0]]) if bias and bias[0] in tensors else 0
