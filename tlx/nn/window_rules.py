"""Names of the parts of `tlx.nn.window` in checkpoints, and its settings in a config.json of transformers."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tlx.nn.window import EPSILON, PATCH, PyramidConfig
from tlx.weights import records, rules

DERIVED = ('*.relative_position_index', '*.relative_coords_table', '*.attn_mask')  # derived from the window's size
Positions = Callable[[str, str], Iterator[rules.Rule]]  # a block's source name and our name, without 'params/' -> rules


class Names(NamedTuple):
  """The names of one layout.

  In `block` and `merging`, {s} stands for the stage, {b} for the block, {before} for the stage before, {odd} for 2 s +
  1 and {even} for 2 s. The fields from `norms` to `mlp` are relative to the block.
  """

  stem: tuple[str, str]  # patches, norm
  block: str
  merging: str
  norms: tuple[str, str]
  kernels: tuple[str, ...]  # one tensor, or the query's, the key's and the value's
  biases: tuple[str, ...]
  proj: str
  mlp: tuple[str, str]
  norm: str
  head: str
  bias_transform: rules.Transform = rules.SAME

  def under(self, prefix: str) -> 'Names':
    """Puts a prefix such as 'swin.' ahead of all names but the head's."""
    return self._replace(
      stem=tuple(prefix + name for name in self.stem),
      **{name: prefix + getattr(self, name) for name in ('block', 'merging', 'norm')},
    )


TIMM = Names(
  stem=('patch_embed.proj', 'patch_embed.norm'),
  block='layers.{s}.blocks.{b}.',
  merging='layers.{s}.downsample',
  norms=('norm1', 'norm2'),
  kernels=('attn.qkv.weight',),
  biases=('attn.qkv.bias',),
  proj='attn.proj',
  mlp=('mlp.fc1', 'mlp.fc2'),
  norm='norm',
  head='head.fc',
)
MICROSOFT = TIMM._replace(merging='layers.{before}.downsample', head='head')
TORCHVISION = TIMM._replace(
  stem=('features.0.0', 'features.0.2'),
  block='features.{odd}.{b}.',
  merging='features.{even}',
  mlp=('mlp.0', 'mlp.3'),
  head='head',
)
TRANSFORMERS = Names(
  stem=('embeddings.patch_embeddings.projection', 'embeddings.norm'),
  block='encoder.layers.{s}.blocks.{b}.',
  merging='encoder.layers.{before}.downsample',
  norms=('layernorm_before', 'layernorm_after'),
  kernels=tuple(f'attention.self.{part}.weight' for part in ('query', 'key', 'value')),
  biases=tuple(f'attention.self.{part}.bias' for part in ('query', 'key', 'value')),
  proj='attention.output.dense',
  mlp=('intermediate.dense', 'output.dense'),
  norm='layernorm',
  head='classifier',
)


def layout(config: PyramidConfig, names: Names, positions: Positions) -> Iterator[rules.Rule]:
  """The rules for every tensor.

  Args:
    config: the model.
    names: the layout.
    positions: yields the rules of a block's position parameters.
  """
  yield from rules.stem(names.stem[0], 'backbone/stem/patches', bias=True)
  yield from rules.affine(names.stem[1], 'backbone/stem/norm')
  for s, b in config.blocks():
    place = {'s': s, 'b': b, 'before': s - 1, 'odd': 2 * s + 1, 'even': 2 * s}
    source, target = names.block.format(**place), f'backbone/stage{s}_block{b}'
    if s and not b:
      yield from rules.dense(f'{names.merging.format(**place)}.reduction', f'{target}/merging/reduction', bias=False)
      yield from rules.affine(f'{names.merging.format(**place)}.norm', f'{target}/merging/norm')
    yield from _block(names, source, target)
    yield from positions(source, target)
  if config.final_norm:
    yield from rules.affine(names.norm, 'backbone/norm/norm')
  yield from rules.dense(names.head, 'head/logits')
  yield from (rules.Rule(pattern, None) for pattern in DERIVED)


def _block(names: Names, source: str, target: str) -> Iterator[rules.Rule]:
  qkv = f'params/{target}/attention/qkv'
  yield from (rules.Rule(source + name, f'{qkv}/kernel', rules.DENSE) for name in names.kernels)
  yield from (rules.Rule(source + name, f'{qkv}/bias', names.bias_transform) for name in names.biases)
  yield from rules.dense(source + names.proj, f'{target}/attention/proj')
  for i, (norm, dense) in enumerate(zip(names.norms, names.mlp), 1):
    yield from rules.affine(source + norm, f'{target}/norm{i}')
    yield from rules.dense(source + dense, f'{target}/mlp/fc{i}')


def require_tiles(config: PyramidConfig, library: str, shrinks: bool = False) -> None:
  """Raises NoLayoutError unless patches tile the image, and windows of one size tile the map of every stage.

  Elsewhere the library computes something else: it pads a map before the shift, whereas tlx and timm pad after it.

  Args:
    config: the model.
    library: named in the error.
    shrinks: whether the library shrinks a window that is larger than the map.
  """
  if len(set(config.windows)) > 1:
    raise rules.NoLayoutError(f'{library} has one window for all stages of a Swin (not S3)')
  tiles = [config.window(s) if shrinks else window for s, window in enumerate(config.windows)]
  sides = [(config.size, PATCH), *((config.side(s), tile) for s, tile in enumerate(tiles))]
  if odd := [f'{side} by {tile}' for side, tile in sides if side % tile]:
    raise rules.NoLayoutError(
      f'{library} pads in another way where patches or windows do not divide the map ({", ".join(odd)})'
    )


def torchvision_buffers(config: PyramidConfig, make: Mapping[str, Callable[[int], np.ndarray]]) -> Iterator[rules.Rule]:
  """The buffers of every block in torchvision's files.

  Args:
    config: the model.
    make: buffer's name -> a function from the window's side to the buffer.
  """
  for s, b in config.blocks():
    block = TORCHVISION.block.format(odd=2 * s + 1, b=b)
    for name, value in make.items():
      yield rules.Rule(f'{block}attn.{name}', None, value=partial(value, config.window(s)))


def position_index(side: int) -> np.ndarray:
  """torchvision's index into its table for every pair of positions in a window: int64 [side^4]."""
  row, column = np.divmod(np.arange(side * side), side)
  step = lambda place: place[:, None] - place[None, :] + side - 1
  return (step(row) * (2 * side - 1) + step(column)).reshape(-1)


def pretraining(prefix: str) -> Iterator[rules.Rule]:
  """The tensors that only transformers' masked image models (SimMIM) have; all are dropped."""
  return (rules.Rule(pattern, None) for pattern in (f'{prefix}embeddings.mask_token', 'decoder.*'))


def of_transformers(
  kind: type[PyramidConfig], config: Mapping[str, Any], shrinks: bool = False, **fields: Any
) -> PyramidConfig:
  """Makes our config from a complete config of transformers.

  Args:
    kind: the family's config class.
    config: parsed config.json.
    shrinks: see `require_tiles`.
    fields: further fields of our config.

  Returns:
    A config of class `kind`.

  Raises:
    UsageError: it lists all settings that tlx lacks.
  """
  known = {
    'patch_size': PATCH,
    'hidden_act': 'gelu',
    'qkv_bias': True,
    'use_absolute_embeddings': False,
    'layer_norm_eps': EPSILON,
  }
  sides = config['image_size'] if isinstance(config['image_size'], list | tuple) else [config['image_size']]
  records.require(config, known, *[f'image_size {sides}, not a square'] * (len(set(sides)) > 1))
  ours = kind(
    depths=tuple(config['depths']),
    heads=tuple(config['num_heads']),
    base=config['embed_dim'],
    windows=(config['window_size'],) * len(config['depths']),
    size=sides[0],
    mlp_ratio=float(config['mlp_ratio']),
    **fields,
  )
  require_tiles(ours, 'transformers', shrinks)
  return ours
