"""Resolves a model's name to its variant, records and weights, and describes changes that the user asks for."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from tlx import catalog, weights, words
from tlx.nn.model import TransferModel
from tlx.pretrained import modules
from tlx.types import Checkpoint, Preprocess, Size, TlxError, UsageError, WholeModel, shape_of
from tlx.weights import fit, hub, records, smp

TLX = 'tlx'  # the key of config.json for a head that no other library knows
Record = Mapping[str, Any]

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
    return self.config.get(TLX) or {}

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
    """The checkpoint's preprocessing, with this size and number of channels."""
    record, channels = found.preprocess, self.channels(found.config)
    return records.for_channels(record._replace(size=self.image_size or record.size), channels)

  def variant(self, variant: catalog.Variant) -> catalog.Variant:
    """The variant at this size. Raises UsageError if it accepts only squares and the size is not square."""
    if self.image_size is None or variant.config.size is None:
      return variant
    height, width = shape_of(self.image_size)
    if height != width:
      raise UsageError(f'image size {height}x{width}: {variant.name} has a table of positions, which must be square')
    return variant._replace(config=dataclasses.replace(variant.config, size=height))

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
  config = weights.read_config(folder)
  if of_library := catalog.whole_of_config(config):
    found = _of_whole(*of_library, folder, smp.opened(config), weights.read_processor(folder))
    return found._replace(head=found.record.get('head')) if found.record else found  # tlx may have replaced the head
  if 'architecture' not in config and 'model_type' not in config:
    raise TlxError(
      f'{name}/config.json names no "architecture" (timm) and no "model_type" (transformers); '
      f'it has {", ".join(config)}'
    )
  found = Found(_described(config), folder, config, weights.read_processor(folder))
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
  return found._replace(config=config, processor=processor, location=location, path=path, key=key)


def _of_whole(head: str, whole: WholeModel, folder: Path | None, config: Record, processor: Record) -> Found:
  variant = catalog.variant(whole.backbone)
  variant = variant._replace(config=dataclasses.replace(variant.config, **whole.backbone_options))
  options = ', '.join(f'{name}={value!r}' for name, value in whole.options.items())
  return Found(variant, folder, config, processor, whole=whole, head=f'{head}({options})' if options else head)


def _described(config: Mapping[str, Any]) -> catalog.Variant:
  """The variant that a config.json of timm or transformers describes."""
  if 'architecture' not in config:
    return catalog.of_transformers(records.full_config(config))
  arguments = dict(config.get('model_args') or {})
  variant = catalog.variant(config['architecture'])
  size = arguments.pop('img_size', None)
  own = POOLS.get(getattr(variant.config, 'pool', 'mean'))
  pool = arguments.pop('global_pool', own)  # timm's writer always names it
  unknown = arguments.keys() - {'in_chans', 'num_classes', 'drop_rate', 'drop_path_rate'}
  problems = [f'{", ".join(sorted(unknown))}, unknown to tlx'] if unknown else []
  problems += [f'global_pool {pool!r}, where tlx has {own!r} only'] if pool != own else []
  if problems:
    raise TlxError(f'config.json of {variant.name} asks in model_args for {"; and for ".join(problems)}')
  if options := (config.get(TLX) or {}).get('backbone'):
    variant = variant._replace(config=dataclasses.replace(variant.config, **options))
  return Asked(image_size=size if size is None or isinstance(size, int) else size[0]).variant(variant)


def preprocess_of(config: Record, processor: Record, checkpoint: Checkpoint | None) -> Preprocess:
  """The preprocessing in config.json and preprocessor_config.json, or else that of the published weights."""
  return records.preprocess(config, processor, checkpoint.preprocess if checkpoint else Preprocess())
