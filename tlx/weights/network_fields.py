"""Checks the fields of transformers' config.json that describe the network, before anything is built from them."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from tlx.weights.fields import CHANNELS, CLASSES, SIDE, VALUES, Fields, is_number, is_side

WIDEST = 1 << 16  # channels of a layer
PATCHES = 1 << 18  # of an image: 512 x 512, which a table of positions must have room for
DEEPEST = 64  # blocks of a stage; published networks stop at 48, and tracing takes some 0.1 s for each
STAGES = 64
LIMITS = {  # integers: (smallest, largest). A field is a list where transformers' default is one.
  **dict.fromkeys(
    ('hidden_size', 'intermediate_size', 'num_attention_heads', 'hidden_sizes', 'embed_dim', 'num_heads', 'window_size',
     'embedding_size', 'groups_width', 'decoder_hidden_size', 'decoder_intermediate_size',
     'decoder_num_attention_heads'),
    (1, WIDEST),
  ),
  **dict.fromkeys(('num_hidden_layers', 'depths', 'decoder_num_hidden_layers', 'num_encoder_blocks'), (1, DEEPEST)),
  'sr_ratios': (1, 32),  # sides of the squares of tokens that attention averages
  'num_channels': (1, CHANNELS),
  'num_register_tokens': (0, WIDEST),
  'pretrained_window_sizes': (0, SIDE),
}  # fmt: skip
RATIOS = {  # other numbers
  **dict.fromkeys(('layer_norm_eps', 'batch_norm_eps'), (1e-20, 1)),
  **dict.fromkeys(('mlp_ratio', 'mlp_ratios'), (1e-3, 100)),
  **dict.fromkeys(('depth_multiplier', 'width_coefficient', 'depth_coefficient'), (1e-3, 8)),
  **dict.fromkeys(('layer_scale_init_value', 'rope_theta'), (0, 1e9)),
  **dict.fromkeys(('classifier_dropout_prob', 'dropout_rate', 'drop_path_rate', 'hidden_dropout_prob'), (0, 1)),
}  # fmt: skip
STAGED = ('depths', 'hidden_sizes', 'num_attention_heads', 'num_heads', 'sr_ratios')  # lists of the same length
SHARED = (  # the first is divisible by the second
  ('hidden_size', 'num_attention_heads'),
  ('hidden_sizes', 'num_attention_heads'),
  ('hidden_sizes', 'groups_width'),
)


def check(fields: Fields, defaults: Mapping[str, Any]) -> None:
  """Notes the problems of a config.json, or of its vision_config.

  Args:
    fields: of the record.
    defaults: transformers' complete config of the same type.
  """
  record = fields.record
  for name, value in record.items():
    limits, integers = (LIMITS, True) if name in LIMITS else (RATIOS, False)
    if name in ('image_size', 'patch_size'):
      if not is_side(value) and not (isinstance(value, list) and 1 <= len(value) <= 2 and all(map(is_side, value))):
        fields.wrong(name, f'it must be a side from 1 to {SIDE} pixels, or a list of height and width')
    elif name in limits and name in defaults:
      _check_number(fields, name, isinstance(defaults[name], list | tuple), limits[name], integers)
    elif isinstance(defaults.get(name), bool):
      fields.flag(name, False)
    elif isinstance(defaults.get(name), str):
      fields.text(name, '')
  if not fields.problems:
    _check_together(fields, {**defaults, **record})


def check_labels(fields: Fields) -> None:
  """Notes problems with the number of outputs. transformers makes a name for each before it checks anything."""
  if 'num_labels' in fields.record and fields.record['num_labels'] is None:
    fields.wrong('num_labels', 'it must be an integer')
  fields.integer('num_labels', 0, 0, CLASSES)


def _check_number(fields: Fields, name: str, listed: bool, limits: tuple[float, float], integers: bool) -> None:
  value = fields.record[name]
  good = lambda x: is_number(x) and limits[0] <= x <= limits[1] and (type(x) is int or not integers)
  kind = 'integer' if integers else 'number'
  bounds = f'from {limits[0]:g} to {limits[1]:,}'
  if listed and not (isinstance(value, list) and 1 <= len(value) <= STAGES and all(map(good, value))):
    fields.wrong(name, f'it must be a list of {kind}s {bounds}')
  elif not listed and not good(value):
    fields.wrong(name, f'it must be one {kind} {bounds}')


def _check_together(fields: Fields, config: Mapping[str, Any]) -> None:
  """Notes values that are right one by one, but that no network can have together."""
  stages = {name: len(config[name]) for name in STAGED if isinstance(config.get(name), list | tuple)}
  for one, other in combinations(stages, 2):
    if stages[one] != stages[other]:
      fields.problems.append(f'{fields.place}{one} has {stages[one]} stages and {other} {stages[other]}')
      return
  for name, parts in SHARED:
    if name in config and parts in config:
      wholes, shares = (x if isinstance(x, list | tuple) else [x] for x in (config[name], config[parts]))
      shares = shares * len(wholes) if len(shares) == 1 else shares
      if any(whole % part for whole, part in zip(wholes, shares)):
        fields.problems.append(f'{fields.place}{name} {config[name]} is not divisible by {parts} {config[parts]}')
  heads = config.get('num_heads')
  widths = config.get('embed_dim', 0)  # of the first stage; each next one has twice as many
  if isinstance(heads, list | tuple) and any(widths * 2**i % count for i, count in enumerate(heads)):
    fields.problems.append(f'{fields.place}embed_dim {widths} is not divisible by num_heads {heads}')
  image, patch = (_largest(config.get(name)) for name in ('image_size', 'patch_size'))
  if image * image * config.get('num_channels', 3) > VALUES:
    fields.problems.append(f'{fields.place}image_size and num_channels: an image has at most {VALUES:,} values')
  if patch and image and not 1 <= (image // patch) ** 2 <= PATCHES:
    fields.problems.append(
      f'{fields.place}image_size {image} and patch_size {patch}: an image has from 1 to {PATCHES:,} patches'
    )


def _largest(value: Any) -> int:
  return max(value) if isinstance(value, list | tuple) else value or 0
