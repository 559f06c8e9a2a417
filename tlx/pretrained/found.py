"""Resolves a model's name to its variant, records and weights, and describes changes that the user asks for."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import numpy as np

from tlx import catalog, weights, words
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.types import Checkpoint, Preprocess, Size, TlxError, UsageError, WholeModel, shape_of
from tlx.weights import fit, hub, records, rules, smp

TLX = records.TLX  # the key of config.json for a head that no other library knows
Record = Mapping[str, Any]
T = TypeVar('T')

POOLS = {'mean': 'avg', 'raw_mean': 'avg', 'token': 'token', 'map': 'map'}  # a config's `pool` -> timm's global_pool


class Found(NamedTuple):
  """A resolved name. Its weights are not read yet."""

  variant: catalog.Variant
  folder: Path | None  # of the files, for a folder or a hub id
  config: Mapping[str, Any]  # its config.json
  processor: Mapping[str, Any]  # its preprocessor_config.json
  location: str = ''  # of the weights, set by `locate`
  path: Path | None = None  # of the weights on this machine, set by `locate`
  key: str = ''  # of the tensors in that file: FILE:KEY
  whole: WholeModel | None = None  # if backbone and head were trained together
  head: str | None = None  # a file of `tlx/heads` with its options; None = one linear layer

  @property
  def record(self) -> Record:
    """The record that tlx wrote for a head that no other library knows; {} if there is none."""
    return {key: value for key, value in (self.config.get(TLX) or {}).items() if key != records.GREY}

  @property
  def task(self) -> str:
    """The head's task: a file of `tlx/tasks`, with options if any."""
    return self.record.get('task') or (self.whole.task if self.whole else 'classification')

  @property
  def checkpoint(self) -> Checkpoint | None:
    """The published weights; None if we know of none."""
    return self.whole.checkpoint if self.whole else self.variant.checkpoint

  @property
  def preprocess(self) -> Preprocess:
    """The preprocessing of the model at its own size."""
    record = preprocess_of(self.config, self.processor, self.checkpoint)
    # Records of squares of another size are usual: DINOv2's crops to 224 pixels, and its table is for 518.
    return record._replace(size=self.variant.config.size or record.size)


class Asked(NamedTuple):
  """The changes to a checkpoint that the user asks for, as arguments of `load`. None keeps the checkpoint's."""

  num_classes: int | None = None
  image_size: Size | None = None
  in_channels: int | None = None
  dropout: float | None = None
  drop_path: float = 0.0
  head: str | nn.Module | None = None
  seed: int = 0

  def channels(self, config: Mapping[str, Any]) -> int:
    """Number of input channels; `config` is the checkpoint's config.json."""
    return self.in_channels or records.channels(config)

  def preprocess(self, found: Found) -> Preprocess:
    """The checkpoint's preprocessing, with this size and number of channels.

    Raises UsageError if the size is not a square, but has to be one.
    """
    record = preprocess_of(found.config, found.processor, found.checkpoint)
    require_square(found.variant, self.image_size or record.size)
    size = self.image_size or found.variant.config.size or record.size
    return records.for_channels(record._replace(size=size), self.channels(found.config))

  def variant(self, variant: catalog.Variant) -> catalog.Variant:
    """The variant at this size. Raises UsageError if it accepts only squares and the size is not square."""
    if self.image_size is None or variant.config.size is None:
      return variant
    require_square(variant, self.image_size)
    return variant._replace(config=dataclasses.replace(variant.config, size=shape_of(self.image_size)[0]))

  def module(self, variant: catalog.Variant, classes: int, head: str | nn.Module | None = None) -> TransferModel:
    """Builds the module.

    Args:
      variant: of the backbone.
      classes: number of classes, if the user asks for none.
      head: if the user asks for none.

    Returns:
      The module, without weights.
    """
    count = classes if self.num_classes is None else self.num_classes
    return modules.build(variant, count, self.dropout, self.drop_path, self.head or head)


def resolve(name: str) -> Found:
  """Resolves a model's name, without reading weights.

  Args:
    name: a variant, also with a tag of timm (resnet50.a1_in1k), a folder, or a model on the hub: 'hf-hub:OWNER/NAME',
      'timm/NAME.TAG' or another spelling that `weights.hub.parse` knows. It is downloaded.

  Returns:
    The variant; for a folder or hub id, also its folder and records.

  Raises:
    UsageError: for an unknown name.
    TlxError: if config.json does not describe a model that tlx has, or the download fails.
  """
  if name in catalog.variants():
    return Found(catalog.variant(name), None, {}, {})
  if name in catalog.wholes():
    head, whole = catalog.wholes()[name]
    return _of_whole(head, whole, None, {}, {})
  if not (name.startswith(('.', '/', '~')) or os.path.exists(name) or hub.parse(name)):
    variant, name = _timm(name)
    if variant.checkpoint and variant.checkpoint.location == name:
      return Found(variant, None, {}, {})
  folder = weights.fetch(name)
  config, processor = weights.read_config(folder), weights.read_processor(folder)
  records.check(config, processor, f'{name}/')
  if all(config.get(key) is None for key in ('architecture', 'model_type', smp.CLASS)):
    raise TlxError(
      f'{name}/config.json names no "architecture" (timm) and no "model_type" (transformers); '
      f'it has {", ".join(map(words.shown, config)) or "nothing"}'
    )
  if of_library := _built(catalog.whole_of_config, config):
    found = _of_whole(*of_library, folder, smp.opened(config), processor)
    return found._replace(head=found.record.get('head')) if found.record else found  # tlx may have replaced the head
  found = Found(_built(_described, config), folder, config, processor)
  return found._replace(head=found.record.get('head'))


def on_hub(name: str) -> bool:
  """Whether a text, if it is not a path, names a model on the hub or a tag of timm's; its spelling may be wrong."""
  stem, dot, _ = name.partition('.')
  return bool(name.startswith('timm/') or (dot and stem in catalog.variants()) or hub.parse(name))


def _timm(name: str) -> tuple[catalog.Variant, str]:
  """'resnet50.a1_in1k' or 'timm/resnet50.a1_in1k' -> the variant, and the place on the hub.

  tlx knows timm's names, so it does not ask the hub for a misspelt one. Any other OWNER/NAME may be a misspelt folder.
  """
  shown = words.shown(name)
  if '://' in name:
    raise UsageError(f'{shown}: a file does not say which model it is; name the model, and pass this as its weights')
  owner, slash, rest = name.rpartition('/')
  stem, dot, tag = rest.partition('.')
  if slash and owner != 'timm':
    hint = f'; if it is on the hub, write hf-hub:{shown}' if re.fullmatch(hub.NAME, name.partition('@')[0]) else ''
    raise UsageError(f'no model and no folder {shown!r}{hint}')
  if stem not in catalog.variants() or (dot and not re.fullmatch(r'\w+(@[\w./-]+)?', tag)):
    raise UsageError(f'no model {shown!r}{words.suggest(stem, catalog.list_models())}')
  variant = catalog.variant(stem)
  published = variant.checkpoint.location if variant.checkpoint and not dot else f'hf-hub:timm/{rest}'
  return variant, published


def locate(found: Found, weights_at: str | None = None) -> Found:
  """Downloads the weights if they are not on this machine, and reads the records next to them.

  Args:
    found: the model.
    weights_at: a file, URL or folder of other weights, or FILE:KEY for some of its tensors; None takes the published
      ones.

  Returns:
    `found` with location, path and records.

  Raises:
    TlxError: if no weights are available.
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
  place, key = fit.split_key(weights_at) if weights_at else (location, '')
  path = weights.fetch(place, revision=record and record.revision, sha256=record and record.sha256)
  if record and not config and location.startswith('hf-hub:'):
    config, processor = weights.read_config(path), weights.read_processor(path)
    records.check(config, processor, f'{location}/')
  return found._replace(config=config, processor=processor, location=location, path=path, key=key)


def _of_whole(head: str, whole: WholeModel, folder: Path | None, config: Record, processor: Record) -> Found:
  variant = catalog.variant(whole.backbone)
  variant = variant._replace(config=dataclasses.replace(variant.config, **whole.backbone_options))
  options = ', '.join(f'{name}={value!r}' for name, value in whole.options.items())
  return Found(variant, folder, config, processor, whole=whole, head=f'{head}({options})' if options else head)


def _built(read: Callable[[Record], T], config: Record) -> T:
  """Reads what a checked config.json describes.

  `records.check` knows the fields that decide about memory and time. A reader of one of the families may still meet a
  combination of values that no network has, and fail in arithmetic; so that is a problem of the file too.
  """
  try:
    return read(config)
  except TlxError:
    raise
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    kind = config.get(smp.CLASS) or config.get('architecture') or config.get('model_type')
    text = f'config.json describes a {kind} that tlx cannot build: {error}'
    raise TlxError(words.shown(text)) from error


def _described(config: Record) -> catalog.Variant:
  """The variant that a config.json of timm or transformers describes."""
  if config.get('architecture') is None:
    return catalog.of_transformers(records.full_config(config))
  arguments = {name: value for name, value in config.get('model_args', {}).items() if value is not None}
  variant = catalog.variant(config['architecture'])
  own = POOLS.get(getattr(variant.config, 'pool', 'mean'))
  pool = arguments.get('global_pool', own)  # timm's writer always names it
  unknown = arguments.keys() - {'img_size', 'global_pool', 'in_chans', 'num_classes', 'drop_rate', 'drop_path_rate'}
  problems = [f'{words.shown(", ".join(sorted(unknown)))}, unknown to tlx'] if unknown else []
  problems += [f'global_pool {pool!r}, where tlx has {own!r} only'] if pool != own else []
  options = (config.get(TLX) or {}).get('backbone') or {}
  if lacks := options.keys() - {field.name for field in dataclasses.fields(variant.config)}:
    problems += [f'{words.shown(", ".join(sorted(lacks)))} of the backbone, unknown to tlx']
  if problems:
    raise TlxError(f'config.json of {variant.name} asks in model_args for {"; and for ".join(problems)}')
  variant = variant._replace(config=dataclasses.replace(variant.config, **options))
  return Asked(image_size=records.network_size(config)).variant(variant)


def require_channels(found: Found, table: Sequence[rules.Rule], tensors: Mapping[str, np.ndarray], where: str) -> None:
  """Raises TlxError if config.json states another number of input channels than the first convolution has.

  Args:
    found: the model; its weights belong to its config.json.
    table: the rules of the file of weights.
    tensors: of that file.
    where: names the file in the message.
  """
  stated = records.stated_channels(found.config)
  for rule in table:
    if stated and rule.fit and (rule.target or '').endswith('/kernel') and rule.source in tensors:
      kernel = rule.transform.read(tensors[rule.source]) if tensors[rule.source].ndim == 4 else None
      if kernel is not None and kernel.shape[2] != stated:
        raise TlxError(
          f'{where}: config.json states {stated} input channels and {words.shown(rule.source)} has {kernel.shape[2]}; '
          'next: correct config.json, or pass in_channels to adapt the weights'
        )


def require_square(variant: catalog.Variant, size: Size) -> None:
  """Raises UsageError if the variant has a table of positions and the size is not a square."""
  height, width = shape_of(size)
  if variant.config.size is not None and height != width:
    raise UsageError(f'image size {height}x{width}: {variant.name} has a table of positions, which must be square')


def preprocess_of(config: Record, processor: Record, checkpoint: Checkpoint | None) -> Preprocess:
  """The preprocessing in config.json and preprocessor_config.json, or else that of the published weights."""
  found = records.preprocess(config, processor, checkpoint.preprocess if checkpoint else Preprocess())
  return found._replace(grey=records.grey(config))
