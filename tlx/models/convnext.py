"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545) and ConvNeXt V2 (https://arxiv.org/abs/2301.00808).

V2 replaces layer scale by a normalisation of responses over the map (GRN). Suffixes of names: _ols begins with two
overlapping 3x3 convolutions instead of 4x4 patches; _hnf normalises before pooling, the others after; _mlp has a hidden
layer before the classifier. timm stores the two pointwise layers of the variants up to nano, and of _hnf, as 1x1
convolutions: the same numbers in another shape. transformers gives the last norm an epsilon of 1e-12; tlx uses the
authors' and timm's.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from tlx.nn.activation import gelu
from tlx.nn.conv import Conv, Dense
from tlx.nn.dtypes import widened
from tlx.nn.model import Layer, Staged
from tlx.nn.norm import LayerNorm, LayerScale
from tlx.nn.stochastic import DropPath
from tlx.types import Checkpoint, Figures, Preprocess
from tlx.weights import records, rules

init = nn.initializers.normal(0.02)
conv = partial(Conv, use_bias=True, kernel_init=init)


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(Staged):
  """Shape of one variant."""

  depths: tuple[int, int, int, int]  # blocks of each stage
  widths: tuple[int, int, int, int]  # channels of each stage
  grn: bool = False  # global response normalisation (V2)
  stem: tuple[int, ...] = ()  # channels of the stem's first convolution; () = patches
  norm_first: bool = False  # the norm comes before the pooling
  hidden: int = 0  # channels of the layer before the classifier; 0 = no such layer
  epsilon: float = 1e-6
  pointwise_convs: bool = False  # timm stores the pointwise layers as convolutions
  final_norm: bool = True  # False leaves out the layer after the blocks, for heads that read maps

  @property
  def width(self) -> int:
    return self.hidden or self.widths[-1]

  def layers(self, drop_path: float = 0.0) -> tuple[Layer, ...]:
    block = lambda s, b, rate: partial(Block, self, self.widths[s], b == 0 and s > 0, rate)
    return (
      Layer('stem', partial(Stem, self)),
      *self.block_layers(drop_path, block),
      *([Layer('norm', partial(Norm, self))] if self.final_norm else []),
      *([Layer('pre_logits', partial(Hidden, self.hidden))] if self.hidden else []),
    )


class Stem(nn.Module):
  """4x4 patches, or two overlapping convolutions, and a norm: [b, h, w, 3] -> [b, h/4, w/4, c]."""

  config: ConvNeXtConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    features = self.config.widths[0]
    for i, first in enumerate(self.config.stem, 1):
      x = conv(first, 3, 2, name=f'conv{i}')(x)
    if self.config.stem:
      x = conv(features, 3, 2, name='conv')(x)
    else:
      x = conv(features, 4, 4, padding='valid', name='conv')(x)
    return LayerNorm(self.config.epsilon, name='norm')(x)


class Block(nn.Module):
  """7x7 depthwise convolution, norm and MLP, with a residual connection. A stage's first block halves the map first."""

  config: ConvNeXtConfig
  features: int
  halves: bool
  drop_path: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = partial(LayerNorm, self.config.epsilon)
    if self.halves:
      x = norm(name='downsample_norm')(x)
      x = conv(self.features, 2, 2, padding='valid', name='downsample_conv')(x)
    shortcut = x
    x = conv(self.features, 7, groups=self.features, name='depthwise')(x)
    x = gelu(Dense(4 * self.features, kernel_init=init, name='fc1')(norm(name='norm')(x)))
    x = ResponseNorm(name='response_norm')(x) if self.config.grn else x
    x = Dense(self.features, kernel_init=init, name='fc2')(x)
    x = x if self.config.grn else LayerScale(1e-6, name='layer_scale')(x)
    return shortcut + DropPath(self.drop_path)(x, train)


class ResponseNorm(nn.Module):
  """Global response normalisation over the map [b, h, w, c]: channels compete by their norm (Woo et al. 2023, Sec. 3).

  Parameters `scale` and `bias` are float32 [c] and start at zero, which makes the layer the identity.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],)).astype(x.dtype)
    squares = jnp.square(widened(x)).sum((1, 2), keepdims=True)
    # At 0, where a channel is zero everywhere, the square root has no gradient; PyTorch's norm gives 0 there.
    length = jnp.where(squares > 0, lax.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    share = (length / (length.mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)
    return x + scale * (x * share) + bias


class Norm(nn.Module):
  """Global average pooling and the norm: [b, h, w, c] -> [b, c]; or the norm alone. At least float32."""

  config: ConvNeXtConfig

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    norm = LayerNorm(self.config.epsilon, name='norm')
    return norm(x if self.config.norm_first else widened(x).mean((1, 2)))


class Hidden(nn.Module):
  """A linear layer and GELU: [b, d] -> [b, features]."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    return gelu(Dense(self.features, kernel_init=init, name='fc')(x))


# Names in a block: depthwise, norm, fc1, fc2, layer scale, and scale and bias of the response norm.
Parts = tuple[str, str, str, str, str, str, str]
_FLAT = rules.reshape((1, 1, 1, -1), (-1,))  # other libraries than timm store the response norm in this shape


def _layout(
  config: ConvNeXtConfig,
  stem: tuple[str, ...],  # convolutions and norm
  downsample: Callable[[int], str],  # of a stage; .0 is the norm and .1 the convolution
  block: Callable[[int, int], str],
  parts: Parts,
  ends: tuple[str, str],  # norm and classifier
  *,
  fc: rules.Transform = rules.DENSE,
  scale: rules.Transform = rules.SAME,
  response: rules.Transform = rules.SAME,
) -> Iterator[rules.Rule]:
  """The table that all layouts share."""
  for i, (source, target) in enumerate(zip(stem, ('conv1', 'conv', 'norm') if config.stem else ('conv', 'norm'))):
    make = rules.affine if target == 'norm' else partial(rules.conv if i else rules.stem, bias=True)
    yield from make(source, f'backbone/stem/{target}')
  for s, b in config.blocks():
    target = f'backbone/stage{s}_block{b}'
    if b == 0 and s:
      yield from rules.affine(f'{downsample(s)}.0', f'{target}/downsample_norm')
      yield from rules.conv(f'{downsample(s)}.1', f'{target}/downsample_conv', bias=True)
    depthwise, norm, *layers, gamma, grn_scale, grn_bias = (f'{block(s, b)}.{part}' for part in parts)
    yield from rules.conv(depthwise, f'{target}/depthwise', bias=True)
    yield from rules.affine(norm, f'{target}/norm')
    for source, layer in zip(layers, ('fc1', 'fc2')):
      yield rules.Rule(f'{source}.weight', f'params/{target}/{layer}/kernel', fc)
      yield rules.Rule(f'{source}.bias', f'params/{target}/{layer}/bias')
    if config.grn:
      yield rules.Rule(grn_scale, f'params/{target}/response_norm/scale', response)
      yield rules.Rule(grn_bias, f'params/{target}/response_norm/bias', response)
    else:
      yield rules.Rule(gamma, f'params/{target}/layer_scale/scale', scale)
  if config.final_norm:
    yield from rules.affine(ends[0], 'backbone/norm/norm')
  if config.hidden:
    yield from rules.dense('head.pre_logits.fc', 'backbone/pre_logits/fc')
  yield from rules.dense(ends[1], 'head/logits')


def timm(config: ConvNeXtConfig) -> Iterator[rules.Rule]:
  """timm's names: stem.0, stages.1.downsample.0, stages.0.blocks.0.conv_dw, head.norm, head.fc."""
  parts = ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2', 'gamma', 'mlp.grn.weight', 'mlp.grn.bias')
  stem = ('stem.0', 'stem.1', 'stem.2')[: 3 if config.stem else 2]
  downsample, block = lambda s: f'stages.{s}.downsample', lambda s, b: f'stages.{s}.blocks.{b}'
  ends = ('norm_pre' if config.norm_first else 'head.norm', 'head.fc')
  fc = rules.POINTWISE if config.pointwise_convs else rules.DENSE
  return _layout(config, stem, downsample, block, parts, ends, fc=fc)


def facebook(config: ConvNeXtConfig) -> Iterator[rules.Rule]:
  """The authors' names: downsample_layers.0.0, stages.0.0.dwconv, norm, head."""
  _published(config)
  parts = ('dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma', 'grn.gamma', 'grn.beta')
  downsample, block = lambda s: f'downsample_layers.{s}', lambda s, b: f'stages.{s}.{b}'
  stem = (f'{downsample(0)}.0', f'{downsample(0)}.1')
  return _layout(config, stem, downsample, block, parts, ('norm', 'head'), response=_FLAT)


def transformers(config: ConvNeXtConfig, base: bool = False) -> Iterator[rules.Rule]:
  """transformers' names: convnext.embeddings.layernorm, convnext.encoder.stages.0.layers.0.dwconv, classifier."""
  _published(config)
  prefix = '' if base else 'convnextv2.' if config.grn else 'convnext.'
  parts = ('dwconv', 'layernorm', 'pwconv1', 'pwconv2', 'layer_scale_parameter', 'grn.weight', 'grn.bias')
  stem = (f'{prefix}embeddings.patch_embeddings', f'{prefix}embeddings.layernorm')
  downsample = lambda s: f'{prefix}encoder.stages.{s}.downsampling_layer'
  block = lambda s, b: f'{prefix}encoder.stages.{s}.layers.{b}'
  return _layout(config, stem, downsample, block, parts, (f'{prefix}layernorm', 'classifier'), response=_FLAT)


def torchvision(config: ConvNeXtConfig) -> Iterator[rules.Rule]:
  """torchvision's names: features.0.0, features.1.0.block.0, features.2.0, classifier.0, classifier.2."""
  _published(config)
  if config.grn:
    raise rules.NoLayoutError('torchvision has no ConvNeXt V2')
  parts = ('block.0', 'block.2', 'block.3', 'block.5', 'layer_scale', '', '')
  downsample, block = lambda s: f'features.{2 * s}', lambda s, b: f'features.{2 * s + 1}.{b}'
  ends, scale = ('classifier.0', 'classifier.2'), rules.reshape((-1, 1, 1), (-1,))
  return _layout(config, ('features.0.0', 'features.0.1'), downsample, block, parts, ends, scale=scale)


def _published(config: ConvNeXtConfig) -> None:
  """Raises NoLayoutError for a shape that only timm has."""
  if config.stem or config.norm_first or config.hidden:
    raise rules.NoLayoutError('only timm has overlapping stems (_ols), early norms (_hnf) and hidden layers (_mlp)')


def of_transformers(config: Mapping[str, Any]) -> ConvNeXtConfig:
  """Makes our config from a complete config of transformers. Raises UsageError for a network that tlx lacks."""
  grn = config['model_type'] == 'convnextv2'
  epsilon = config['layer_norm_eps']
  records.require(
    config,
    {'patch_size': 4, 'hidden_act': 'gelu'},
    *['no layer scale'] * (not grn and not config['layer_scale_init_value'] > 0),
    *[f'layer_norm_eps {epsilon}, not 1e-6 or less'] * (epsilon > 1e-6),
  )
  widths = tuple(config['hidden_sizes'])
  return ConvNeXtConfig(tuple(config['depths']), widths, grn, pointwise_convs=widths[0] in _CONVS)


_CONVS = (40, 48, 64, 80)  # first widths of the variants whose pointwise layers timm stores as convolutions
_SIZES = {  # blocks of each stage, channels of the first
  'atto': ((2, 2, 6, 2), 40),
  'femto': ((2, 2, 6, 2), 48),
  'pico': ((2, 2, 6, 2), 64),
  'nano': ((2, 2, 8, 2), 80),
  'tiny': ((3, 3, 9, 3), 96),
  'small': ((3, 3, 27, 3), 96),
  'base': ((3, 3, 27, 3), 128),
  'large': ((3, 3, 27, 3), 192),
  'xlarge': ((3, 3, 27, 3), 256),
  'huge': ((3, 3, 27, 3), 352),
  'xxlarge': ((3, 4, 30, 3), 384),
}


def _config(size: str, **options: Any) -> ConvNeXtConfig:
  depths, first = _SIZES[size]
  widths = tuple(first * 2**s for s in range(4))
  return ConvNeXtConfig(depths, widths, **{'pointwise_convs': first in _CONVS, **options})


VARIANTS = {
  **{f'convnext_{size}': _config(size) for size in _SIZES if size not in ('huge', 'xxlarge')},
  **{f'convnextv2_{size}': _config(size, grn=True) for size in _SIZES if size not in ('xlarge', 'xxlarge')},
  'convnext_atto_ols': _config('atto', stem=(24,)),
  'convnext_femto_ols': _config('femto', stem=(24,)),
  'convnext_pico_ols': _config('pico', stem=(32,)),
  'convnext_nano_ols': _config('nano', stem=(80,)),
  'convnext_tiny_hnf': _config('tiny', norm_first=True, pointwise_convs=True),
  'convnext_large_mlp': _config('large', hidden=1536),
  'convnext_xxlarge': _config('xxlarge', epsilon=1e-5),
  'convnext_test': ConvNeXtConfig((1, 2, 1, 1), (8, 8, 16, 16), stem=(4,), hidden=12, pointwise_convs=True),
  'convnextv2_test': ConvNeXtConfig((1, 1, 2, 1), (4, 8, 16, 24), grn=True),
}
LAYOUTS = {
  'timm': timm,
  'facebook': facebook,
  'torchvision': torchvision,
  'transformers': transformers,
  'transformers_base': partial(transformers, base=True),
}
TRANSFORMERS = {'convnext': of_transformers, 'convnextv2': of_transformers}

_OPENAI = {'mean': (0.48145466, 0.4578275, 0.40821073), 'std': (0.26862954, 0.26130258, 0.27577711)}
_USUAL, _FINE = Preprocess(224, 0.875), Preprocess(224, 0.95)
_TAGS = {  # timm's default weights
  **{
    f'convnext_{size}': (tag, _USUAL) for size, tag in (('atto', 'd2_in1k'), ('femto', 'd1_in1k'), ('pico', 'd1_in1k'))
  },
  **{f'convnext_{size}': ('in12k_ft_in1k', _FINE) for size in ('nano', 'tiny', 'small')},
  **{f'convnext_{size}': ('fb_in22k_ft_in1k', _USUAL) for size in ('base', 'large', 'xlarge')},
  'convnext_atto_ols': ('a2_in1k', _USUAL),
  'convnext_femto_ols': ('d1_in1k', _USUAL),
  'convnext_pico_ols': ('d1_in1k', _FINE),
  'convnext_nano_ols': ('d1h_in1k', _FINE),
  'convnext_tiny_hnf': ('a2h_in1k', _FINE),
  'convnext_large_mlp': ('clip_laion2b_soup_ft_in12k_in1k_320', Preprocess(320, 1.0, **_OPENAI)),
  'convnext_xxlarge': ('clip_laion2b_soup_ft_in1k', Preprocess(256, 1.0, **_OPENAI)),
  **{f'convnextv2_{size}': ('fcmae_ft_in1k', _USUAL) for size in ('atto', 'femto', 'pico')},
  **{f'convnextv2_{size}': ('fcmae_ft_in22k_in1k', _USUAL) for size in ('nano', 'tiny', 'base', 'large')},
  'convnextv2_huge': ('fcmae_ft_in22k_in1k_384', Preprocess(384, 1.0, mode='squash')),
}


def _checkpoint(name: str, tag: str, preprocess: Preprocess) -> Checkpoint:
  second = name.startswith('convnextv2')
  paper = 'https://arxiv.org/abs/2301.00808' if second else 'https://arxiv.org/abs/2201.03545'
  license = 'cc-by-nc-4.0' if second else 'apache-2.0'
  return Checkpoint(name, f'hf-hub:timm/{name}.{tag}', 'timm', preprocess, license, paper)


CHECKPOINTS = {name: _checkpoint(name, *record) for name, record in _TAGS.items()}
FIGURES = {  # top-1: timm's results/results-imagenet.csv at that size
  'convnext_atto': Figures(3_695_520, 0.547, 224, 75.672),
  'convnext_femto': Figures(5_217_784, 0.780, 224, 77.498),
  'convnext_pico': Figures(9_045_672, 1.367, 224, 79.516),
  'convnext_nano': Figures(15_593_560, 2.446, 224, 82.306),
  'convnext_tiny': Figures(28_589_128, 4.456, 224, 84.192),
  'convnext_small': Figures(50_223_688, 8.684, 224, 85.164),
  'convnext_base': Figures(88_591_464, 15.355, 224, 85.814),
  'convnext_large': Figures(197_767_336, 34.361, 224, 86.612),
  'convnext_xlarge': Figures(350_196_968, 60.921, 224, 86.970),
  'convnextv2_atto': Figures(3_708_400, 0.547, 224, 76.644),
  'convnextv2_femto': Figures(5_233_240, 0.780, 224, 78.476),
  'convnextv2_pico': Figures(9_066_280, 1.367, 224, 80.304),
  'convnextv2_nano': Figures(15_623_800, 2.446, 224, 82.038),
  'convnextv2_tiny': Figures(28_635_496, 4.456, 224, 83.904),
  'convnextv2_small': Figures(50_318_440, 8.684, 224, None),
  'convnextv2_base': Figures(88_717_800, 15.355, 224, 86.752),
  'convnextv2_large': Figures(197_956_840, 34.361, 224, 87.266),
  'convnextv2_huge': Figures(660_289_640, 337.725, 384, 88.666),
  'convnext_atto_ols': Figures(3_702_912, 0.577, 224, 75.902),
  'convnext_femto_ols': Figures(5_226_520, 0.813, 224, 77.852),
  'convnext_pico_ols': Figures(9_061_928, 1.426, 224, 79.542),
  'convnext_nano_ols': Figures(15_649_560, 2.641, 224, 80.906),
  'convnext_tiny_hnf': Figures(28_589_128, 4.456, 224, 82.230),
  'convnext_large_mlp': Figures(200_128_168, 70.126, 320, 87.970),
  'convnext_xxlarge': Figures(846_471_016, 197.968, 256, 88.622),
}
