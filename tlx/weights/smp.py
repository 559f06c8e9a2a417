"""The config.json and the names of segmentation-models-pytorch (smp) 0.6.

smp's `save_pretrained` writes the arguments of the model's constructor and its class, '_model_class'. Each head's file
describes the arguments of its own class; this file describes what all classes share.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tlx import words
from tlx.types import UsageError, WholeLayout, WholeModel
from tlx.weights import rules
from tlx.weights.fields import CHANNELS, SIDE

BACKBONE = 'backbone.'  # prefix of a `Field.option` that is a field of the backbone's config, not of the head
OUTPUT_STRIDE = f'{BACKBONE}output_stride'
MOST = 1 << 16  # classes, channels of a layer and the like


class Field(NamedTuple):
  """An argument of one of smp's classes."""

  option: str  # our head's field; '' if it has none
  default: Any  # smp's default
  read: Callable[[Any], Any]  # smp's value -> ours; raises ValueError with the values that tlx has


class Encoder(NamedTuple):
  """A family of smp's encoders."""

  pattern: str  # regular expression of its names
  variant: str  # our variant, as a template for the match
  maps: tuple[str, ...]  # our layers for its maps of stride 2, 4, 8, 16 and 32; '' = no such map
  options: Mapping[str, Any] = {}  # fields of the backbone's config
  pruned: bool = False  # its files contain no layer after the last map of `encoder_depth`
  dilates: bool = True  # smp and tlx can both limit its stride by dilation
  arguments: Mapping[str, str] = {}  # further arguments -> fields of the backbone's config


_RESIDUAL = ('stem/conv', 'stage0', 'stage1', 'stage2', 'stage3')
_STAGES = ('', *_RESIDUAL[1:])
_INVERTED = ('stage0', 'stage1', 'stage2', 'stage4', 'stage6')
_STEM = ('stem', *_INVERTED[1:])
_TAG = r'(?:\..*)?'  # the tag of timm's weights after a variant's name
ENCODERS = (
  Encoder(r'(resnet(?:18|34|50|101|152)|resnext50_32x4d|resnext101_32x(?:4|8|16|32)d)', r'\1', _RESIDUAL),
  Encoder('mobilenet_v2', 'mobilenetv2_100', (*_INVERTED[:4], 'final_conv')),
  Encoder(r'(vgg(?:11|13|16|19)(?:_bn)?)', r'\1', (*_STAGES[2:], 'stage4', 'pool'), {'hidden': 0}, dilates=False),
  Encoder('(mit_b[0-5])', r'\1', _STAGES, {'epsilon': 1e-6}, dilates=False),
  # It reads a stage's first block; and larger ones pad as for an image of one odd size, whatever size they see.
  Encoder(
    'efficientnet-b0', 'tf_efficientnet_b0', (*_STEM[:3], 'stage4_block0', 'stage6'), {'momentum': 0.99}, dilates=False
  ),
  Encoder(r'timm-efficientnet-(b[0-7])', r'efficientnet_\1', _STEM),
  Encoder(r'timm-tf_(efficientnet_lite[0-4])', r'\1', _STEM),
  Encoder(rf'tu-((?:wide_|se|eca)?resnex?t\d[^.]*){_TAG}', r'\1', _RESIDUAL, pruned=True),
  Encoder(rf'tu-((?:tf_)?(?:efficientnet_(?:lite|b)\d|mobilenetv2_[^.]*)){_TAG}', r'\1', _INVERTED, {'final': 0}, True),
  Encoder(rf'tu-(convnext[^.]*){_TAG}', r'\1', _STAGES, {'final_norm': False}, True, False),
  Encoder(rf'tu-(swin_[^.]*){_TAG}', r'\1', _STAGES, {'final_norm': False}, True, False, {'img_size': 'size'}),
)
NAMES = (
  'resnet*, resnext*, mobilenet_v2, vgg*, mit_b*, efficientnet-b0, timm-efficientnet-b*, timm-tf_efficientnet_lite*, '
  'tu-*resnet*, tu-resnext*, tu-efficientnet_*, tu-mobilenetv2_*, tu-convnext* and tu-swin_*'
)
OWN = {'dilate_early': True}  # smp's own encoders dilate earlier than timm's


def one_of(*values: Any) -> Callable[[Any], Any]:
  """A `Field.read` for a fixed set of values, which stay as they are."""

  def read(value: Any) -> Any:
    if not any(type(value) is type(known) and value == known for known in values):  # True is not 1
      raise ValueError(f'tlx has {" and ".join(map(repr, values))}')
    return value

  return read


def number(value: Any, most: int = MOST) -> int:
  """A `Field.read` for an integer above 0."""
  if type(value) is not int or value < 1:
    raise ValueError('tlx needs an integer above 0')
  if value > most:
    raise ValueError(f'tlx takes {most:,} at most')
  return value


def numbers(value: Any) -> tuple[int, ...]:
  """A `Field.read` for a list of integers above 0."""
  if not (isinstance(value, Sequence) and value and all(type(each) is int and 0 < each <= MOST for each in value)):
    raise ValueError(f'tlx needs a list of integers above 0, {MOST:,} at most')
  return tuple(value)


def share(value: Any) -> float:
  """A `Field.read` for a number in [0, 1)."""
  if type(value) not in (int, float) or not 0 <= value < 1:
    raise ValueError('tlx needs a number from 0 up to, not including, 1')
  return float(value)


def norm(value: Any) -> bool:
  """A `Field.read` for whether a batch norm follows each convolution."""
  kinds = {'batchnorm': True, True: True, 'identity': False, False: False}
  kind = value['type'] if isinstance(value, Mapping) and value.keys() == {'type'} else value
  if not isinstance(kind, str | bool) or kind not in kinds:
    raise ValueError('tlx has batchnorm and identity')
  return kinds[kind]


def side(value: Any) -> int:
  """A `Field.read` for the side of the input in pixels."""
  return number(value, SIDE)


COMMON = {  # arguments that all classes share, without the encoder's
  'classes': Field('num_classes', 1, number),
  'encoder_weights': Field('', 'imagenet', lambda value: value),  # how training began
  'in_channels': Field('', 3, lambda value: number(value, CHANNELS)),  # `records.channels` reads it
  'activation': Field('', None, one_of(None, 'identity')),  # after the logits
  'aux_params': Field('', None, one_of(None)),  # a second head, for classification
}
OLDER = {'decoder_use_batchnorm': 'decoder_use_norm'}
CLASS, OURS = '_model_class', '_tlx'  # keys of config.json: smp's class, and what tlx alone reads


def whole(
  config: Mapping[str, Any],
  fields: Mapping[str, Field],
  *,
  depths: tuple[int, ...],
  reads: Callable[[tuple[str, ...]], tuple[str, ...]],
) -> WholeModel:
  """Makes the model that a config.json of smp describes.

  Args:
    config: arguments of the class by name; smp's defaults fill in the others.
    fields: arguments of the class besides `COMMON` and the encoder's.
    depths: values of 'encoder_depth' that tlx supports for this class.
    reads: the encoder's maps, from fine to coarse -> those that the decoder reads.

  Returns:
    The row of the model.

  Raises:
    UsageError: it lists all arguments that tlx does not know or does not support in this form.
  """
  given = {
    OLDER.get(name, name): value for name, value in config.items() if not name.startswith('_')
  }  # smp ignores those too
  name = given.pop('encoder_name', 'resnet34')
  encoder, variant = _encoder(name)
  fields = {'encoder_depth': Field('depth', 5, one_of(*((5,) if encoder.pruned else depths))), **COMMON, **fields}
  fields |= {n: Field(BACKBONE + option, None, side) for n, option in encoder.arguments.items() if n in given}
  options, problems = _read(given, fields)
  if not variant:
    problems.insert(0, f'encoder_name {name!r:.80} (tlx has {NAMES})')
  if OUTPUT_STRIDE in options and not encoder.dilates:
    problems.append(f'encoder_output_stride {options[OUTPUT_STRIDE]} (tlx has no dilation in {name})')
  if problems:
    raise UsageError(
      f'config.json describes a {config.get(CLASS, "model")} of segmentation-models-pytorch that tlx lacks: '
      f'{"; ".join(problems)}; choose another checkpoint'
    )
  layers = reads(encoder.maps[: options.pop('depth')])
  own = OWN if OUTPUT_STRIDE in options and not name.startswith('tu-') else {}
  of_backbone = {n.removeprefix(BACKBONE): options.pop(n) for n in list(options) if n.startswith(BACKBONE)}
  classes = options.pop('num_classes')
  return WholeModel(
    variant, classes, options={'layers': layers, **options}, backbone_options={**encoder.options, **own, **of_backbone}
  )


def opened(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config.json with what tlx wrote into it for itself at the top."""
  ours = config.get(OURS)
  return {**config, **ours} if isinstance(ours, Mapping) else dict(config)


def theirs(config: Mapping[str, Any]) -> dict[str, Any]:
  """The arguments of smp's class, of a config.json that may be `opened`."""
  ours = config.get(OURS, {})
  return {name: value for name, value in config.items() if name != OURS and name not in ours}


def changed(config: Mapping[str, Any], arguments: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
  """smp's config.json for a model that differs in some arguments; `ours` stands where smp passes over it."""
  return {**theirs(config), **arguments, OURS: dict(ours)}


def _encoder(name: Any) -> tuple[Encoder, str]:
  """The encoder's family, and the name of our variant; '' if tlx has none."""
  for encoder in ENCODERS:
    if found := re.fullmatch(encoder.pattern, str(name)):
      return encoder, found.expand(encoder.variant)
  return Encoder('', '', ()), ''


def _read(given: Mapping[str, Any], fields: Mapping[str, Field]) -> tuple[dict[str, Any], list[str]]:
  """{our option: its value}, and the problems."""
  options, problems = {}, []
  for name, field in fields.items():
    try:
      value = field.read(given.get(name, field.default))
    except ValueError as error:
      problems.append(f'{name} {given[name]!r:.80} ({error})')
    else:
      options |= {field.option: value} if field.option else {}
  return options, problems + [f'{words.shown(name)} (unknown to tlx)' for name in given if name not in fields]


def unit(source: str, target: str, norm: bool = True) -> Iterator[rules.Rule]:
  """The rules of smp's Conv2dReLU, which is our ConvNorm."""
  yield from rules.conv(f'{source}.0', f'{target}/conv', bias=not norm)
  if norm:
    yield from rules.norm(f'{source}.1', f'{target}/norm')


def layouts(head: Callable[[Any], Iterable[rules.Rule]]) -> dict[str, WholeLayout]:
  """Makes the LAYOUTS of a head. The encoders keep the names of the library that they come from.

  Args:
    head: the head's module -> its rules.

  Returns:
    {name: layout}.
  """
  return {
    'smp': WholeLayout('torchvision', 'encoder.', head),
    'smp_timm': WholeLayout('timm', 'encoder.', head),
    'smp_tu': WholeLayout('timm', 'encoder.model.', head, rename=_flattened),
    'smp_lukemelas': WholeLayout('lukemelas', 'encoder.', head),
    'smp_nvidia': WholeLayout('nvidia', 'encoder.', head),
  }


def _flattened(name: str) -> str:
  """timm's name of a tensor in a model that returns features: stages.0.blocks.1.norm -> stages_0.blocks.1.norm."""
  return re.sub(r'^(stem|stages|layers)\.(\d+)\.', r'\1_\2.', name)
