"""Names of the parts of `tlx.nn.transformer` in checkpoints: a generator for PyTorch's layouts, another for npz files.

`of_transformers` reads a config.json of transformers.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tlx.nn.transformer import ACTIVATIONS, TransformerConfig
from tlx.types import UsageError
from tlx.weights import resample, rules

STEM, POOL = 'backbone/stem', 'backbone/pool'


class Names(NamedTuple):
  """The names of one layout. A block's parts are named relative to the block."""

  patches: str
  tokens: tuple[str, str, str]  # class, distillation, registers
  positions: str
  pre_norm: str
  block: str  # '{}' stands for the block's number
  norms: tuple[str, str]
  qkv: tuple[str, ...]  # one, or query, key and value; 'weight' or 'bias' is appended without a dot
  proj: str
  scales: tuple[str, str]  # layer scales
  mlp: tuple[str, ...]  # fc1 and fc2; or fc1's gate, fc1's value and fc2
  norm: str
  head: str
  biases: tuple[str, ...] = ()  # the query's and the value's, if the key has no bias
  flat: bool = False  # class token [d] and positions [n, d] (CLIP) instead of [1, 1, d] and [1, n, d]

  def under(self, prefix: str) -> 'Names':
    """Puts a prefix such as 'vit.' ahead of all names but the head's."""
    return self._replace(
      tokens=tuple(prefix + name for name in self.tokens),
      **{name: prefix + getattr(self, name) for name in ('patches', 'positions', 'pre_norm', 'block', 'norm')},
    )


TIMM = Names(
  patches='patch_embed.proj',
  tokens=('cls_token', 'dist_token', 'reg_token'),
  positions='pos_embed',
  pre_norm='norm_pre',
  block='blocks.{}',
  norms=('norm1', 'norm2'),
  qkv=('attn.qkv.',),
  proj='attn.proj',
  scales=('ls1.gamma', 'ls2.gamma'),
  mlp=('mlp.fc1', 'mlp.fc2'),
  norm='norm',
  head='head',
)
TORCHVISION = Names(
  patches='conv_proj',
  tokens=('class_token', '', ''),
  positions='encoder.pos_embedding',
  pre_norm='',
  block='encoder.layers.encoder_layer_{}',
  norms=('ln_1', 'ln_2'),
  qkv=('self_attention.in_proj_',),
  proj='self_attention.out_proj',
  scales=('', ''),
  mlp=('mlp.0', 'mlp.3'),
  norm='encoder.ln',
  head='heads.head',
)
TRANSFORMERS = Names(  # ViT, DeiT and the encoder of MAE; DINOv2 has other names inside a block
  patches='embeddings.patch_embeddings.projection',
  tokens=('embeddings.cls_token', 'embeddings.distillation_token', 'embeddings.register_tokens'),
  positions='embeddings.position_embeddings',
  pre_norm='pre_layernorm',
  block='encoder.layer.{}',
  norms=('layernorm_before', 'layernorm_after'),
  qkv=tuple(f'attention.attention.{part}.' for part in ('query', 'key', 'value')),
  proj='attention.output.dense',
  scales=('layer_scale1.lambda1', 'layer_scale2.lambda1'),
  mlp=('intermediate.dense', 'output.dense'),
  norm='layernorm',
  head='classifier',
)

CLIP = Names(  # CLIP and SigLIP in transformers
  patches='embeddings.patch_embedding',
  tokens=('embeddings.class_embedding', '', ''),
  positions='embeddings.position_embedding.weight',
  pre_norm='pre_layrnorm',  # transformers spells it so
  block='encoder.layers.{}',
  norms=('layer_norm1', 'layer_norm2'),
  qkv=('self_attn.q_proj.', 'self_attn.k_proj.', 'self_attn.v_proj.'),
  proj='self_attn.out_proj',
  scales=('', ''),
  mlp=('mlp.fc1', 'mlp.fc2'),
  norm='post_layernorm',
  head='classifier',
  flat=True,
)


def layout(config: TransformerConfig, names: Names) -> Iterator[rules.Rule]:
  """The rules for every tensor but those of an attention pool."""
  yield from rules.conv(names.patches, f'{STEM}/patches', bias=not config.pre_norm, fit=fit_patches)
  flat_token = rules.reshape((-1,), (1, 1, -1)) if names.flat else rules.SAME
  held = (config.class_token, config.distilled, config.registers)
  for name, leaf, has in zip(names.tokens, ('class_token', 'distillation_token', 'register_tokens'), held):
    if has:
      yield rules.Rule(name, f'params/{STEM}/{leaf}', flat_token)
  if config.positions:
    flat_table = rules.reshape((-1, config.dim), (1, -1, config.dim)) if names.flat else rules.SAME
    yield rules.Rule(names.positions, f'params/{STEM}/position_table', flat_table, fit_positions(config))
  if config.pre_norm:
    yield from rules.affine(names.pre_norm, f'{STEM}/pre_norm')
  for i in range(config.depth):
    yield from _block(config, names, f'{names.block.format(i)}.', f'backbone/block{i}')
  yield from rules.affine(names.norm, 'backbone/norm/norm')
  yield from rules.dense(names.head, 'head/logits')


def _block(config: TransformerConfig, names: Names, source: str, target: str) -> Iterator[rules.Rule]:
  for i, name in enumerate(names.norms, 1):
    yield from rules.affine(source + name, f'{target}/norm{i}')
  for part in names.qkv:
    yield rules.Rule(f'{source}{part}weight', f'params/{target}/attention/qkv/kernel', rules.DENSE)
  for bias in names.biases or [f'{part}bias' for part in names.qkv] if config.qkv_bias else ():
    yield rules.Rule(source + bias, f'params/{target}/attention/qkv/bias')
  yield from rules.dense(source + names.proj, f'{target}/attention/proj')
  *first, second = names.mlp
  for name, layer in (*((name, 'fc1') for name in first), (second, 'fc2')):
    yield from rules.dense(source + name, f'{target}/mlp/{layer}')
  for i, name in enumerate(names.scales if config.layer_scale is not None else (), 1):
    yield rules.Rule(source + name, f'params/{target}/scale{i}/scale')


def timm(config: TransformerConfig) -> Iterator[rules.Rule]:
  """timm's names: patch_embed.proj, blocks.0.attn.qkv, norm, head. The norm is fc_norm if it follows the pooling."""
  yield from layout(config, TIMM._replace(norm='fc_norm') if config.norm_last else TIMM)
  if config.pool == 'map':
    yield from _pool(Pool('attn_pool.latent', 'attn_pool.proj', 'attn_pool.norm', 'attn_pool.mlp'))
    for name, share in (('q', 1), ('kv', 2)):
      yield rules.Rule(f'attn_pool.{name}.weight', f'params/{POOL}/qkv/kernel', rules.DENSE, share=share)
      yield rules.Rule(f'attn_pool.{name}.bias', f'params/{POOL}/qkv/bias', share=share)


def clip(config: TransformerConfig, prefix: str = 'vision_model.') -> Iterator[rules.Rule]:
  """transformers' names for the image towers of CLIP and SigLIP; the text tower is dropped."""
  yield from layout(config, CLIP.under(prefix))
  head = f'{prefix}head'
  if config.pool == 'map':
    yield from _pool(Pool(f'{head}.probe', f'{head}.attention.out_proj', f'{head}.layernorm', f'{head}.mlp'))
    yield rules.Rule(f'{head}.attention.in_proj_weight', f'params/{POOL}/qkv/kernel', rules.DENSE)
    yield rules.Rule(f'{head}.attention.in_proj_bias', f'params/{POOL}/qkv/bias')
  else:
    yield rules.Rule(f'{head}.*', None)
  for other in ('text_model.*', 'text_projection.*', 'visual_projection.*', 'logit_scale', 'logit_bias'):
    yield rules.Rule(other, None)
  yield rules.Rule(f'{prefix}embeddings.position_ids', None)


class Pool(NamedTuple):
  """The names of an attention pool in one layout."""

  token: str
  proj: str
  norm: str
  mlp: str


def _pool(names: Pool) -> Iterator[rules.Rule]:
  """The rules of an attention pool, without query, key and value."""
  yield rules.Rule(names.token, f'params/{POOL}/query_token')
  yield from rules.dense(names.proj, f'{POOL}/proj')
  yield from rules.affine(names.norm, f'{POOL}/norm')
  for part in ('fc1', 'fc2'):
    yield from rules.dense(f'{names.mlp}.{part}', f'{POOL}/mlp/{part}')


def npz(config: TransformerConfig, root: str = '', new: bool = False) -> Iterator[rules.Rule]:
  """The names of Google's JAX checkpoints: 'embedding/kernel', 'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel'.

  Checkpoints that stack all blocks into one array ('encoderblock/') are not supported.

  Args:
    config: the model.
    root: prefix of every name, such as 'params/'.
    new: whether the parts are numbered as in big_vision or as in vision_transformer.
  """
  attention, mlp, second = (0, 0, 1) if new else (1, 3, 2)
  positions = 'pos_embedding' if new else 'Transformer/posembed_input/pos_embedding'
  yield rules.Rule(f'{root}embedding/kernel', f'params/{STEM}/patches/kernel', rules.SAME, fit_patches)
  yield rules.Rule(f'{root}embedding/bias', f'params/{STEM}/patches/bias')
  if config.class_token:
    yield rules.Rule(f'{root}cls', f'params/{STEM}/class_token')
  yield rules.Rule(f'{root}{positions}', f'params/{STEM}/position_table', rules.SAME, fit_positions(config))
  for i in range(config.depth):
    source, target = f'{root}Transformer/encoderblock_{i}', f'backbone/block{i}'
    yield from _npz_parts(f'{source}/LayerNorm_0', f'{target}/norm1', 'scale')
    heads = f'{source}/MultiHeadDotProductAttention_{attention}'
    for part in ('query', 'key', 'value'):
      yield from _npz_heads(config, f'{heads}/{part}', f'{target}/attention/qkv')
    yield from _npz_out(config, f'{heads}/out', f'{target}/attention/proj')
    yield from _npz_parts(f'{source}/LayerNorm_{second}', f'{target}/norm2', 'scale')
    for j in (0, 1):
      yield from _npz_parts(f'{source}/MlpBlock_{mlp}/Dense_{j}', f'{target}/mlp/fc{j + 1}')
  yield from _npz_parts(f'{root}Transformer/encoder_norm', 'backbone/norm/norm', 'scale')
  if config.pool == 'map':
    yield from _npz_pool(config, f'{root}MAPHead_0')
  yield from _npz_parts(f'{root}head', 'head/logits')
  yield rules.Rule(f'{root}pre_logits/*', None)  # a pretraining layer; the fine-tuned models lack it


def _npz_pool(config: TransformerConfig, source: str) -> Iterator[rules.Rule]:
  yield rules.Rule(f'{source}/probe', f'params/{POOL}/query_token')
  heads = f'{source}/MultiHeadDotProductAttention_0'
  for part in ('query', 'key', 'value'):
    yield from _npz_heads(config, f'{heads}/{part}', f'{POOL}/qkv')
  yield from _npz_out(config, f'{heads}/out', f'{POOL}/proj')
  yield from _npz_parts(f'{source}/LayerNorm_0', f'{POOL}/norm', 'scale')
  for j in (0, 1):
    yield from _npz_parts(f'{source}/MlpBlock_0/Dense_{j}', f'{POOL}/mlp/fc{j + 1}')


def _npz_parts(source: str, target: str, first: str = 'kernel') -> Iterator[rules.Rule]:
  yield rules.Rule(f'{source}/{first}', f'params/{target}/{first}')
  yield rules.Rule(f'{source}/bias', f'params/{target}/bias')


def _npz_heads(config: TransformerConfig, source: str, target: str) -> Iterator[rules.Rule]:
  """Query, key or value: kernel [d, heads, d / heads] and bias [heads, d / heads]."""
  dim, heads = config.dim, config.heads
  yield rules.Rule(f'{source}/kernel', f'params/{target}/kernel', rules.reshape((dim, heads, -1), (dim, -1)))
  yield rules.Rule(f'{source}/bias', f'params/{target}/bias', rules.reshape((heads, -1), (-1,)))


def _npz_out(config: TransformerConfig, source: str, target: str) -> Iterator[rules.Rule]:
  """The output projection: kernel [heads, d / heads, d] and bias [d]."""
  dim, heads = config.dim, config.heads
  yield rules.Rule(f'{source}/kernel', f'params/{target}/kernel', rules.reshape((heads, -1, dim), (-1, dim)))
  yield rules.Rule(f'{source}/bias', f'params/{target}/bias')


def fit_patches(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Adapts the patch embedding to another number of channels, or to another patch size."""
  return resample.patch_kernel(resample.input_channels(kernel, shape[2]), shape[:2])


def fit_positions(config: TransformerConfig) -> rules.Fit:
  """Adapts the position table to another image size."""
  return partial(resample.position_table, prefix=config.placeless)


def of_transformers(kind: type[TransformerConfig], config: Mapping[str, Any], **fields: Any) -> TransformerConfig:
  """Makes our config from a complete config of transformers, or from its vision_config.

  Args:
    kind: the family's config class.
    config: parsed config.json.
    fields: values that override those of `config`.

  Returns:
    A config of class `kind`.

  Raises:
    UsageError: for an activation that tlx lacks, and for images or patches that are not square.
  """
  activation = {'gelu_pytorch_tanh': 'gelu_tanh'}.get(config['hidden_act'], config['hidden_act'])
  if activation not in ACTIVATIONS:
    raise UsageError(f'no activation {activation!r} (hidden_act in config.json); there are {", ".join(ACTIVATIONS)}')
  mlp = config.get('intermediate_size')
  made = kind(
    dim=config['hidden_size'],
    depth=config['num_hidden_layers'],
    heads=config['num_attention_heads'],
    patch=_side(config, 'patch_size'),
    size=_side(config, 'image_size'),
    mlp=None if mlp == 4 * config['hidden_size'] else mlp,
    activation=activation,
    epsilon=config['layer_norm_eps'],
    qkv_bias=config.get('qkv_bias', True),
  )
  return dataclasses.replace(made, **fields)


def classifies(config: Mapping[str, Any]) -> bool:
  """Whether a config.json of transformers belongs to one of its image classifiers."""
  return any(name.endswith('ForImageClassification') for name in config.get('architectures') or ())


def _side(config: Mapping[str, Any], name: str) -> int:
  sides = config[name] if isinstance(config[name], list | tuple) else [config[name]]
  if len(set(sides)) != 1:
    raise UsageError(f'{name} {sides} in config.json: tlx supports only square images and patches here')
  return sides[0]
