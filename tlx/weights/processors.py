"""Reads the image processors of transformers (preprocessor_config.json) as a Preprocess.

Each processor has a class. The class has the defaults of fields that are missing, as in transformers 5.24. There null
turns a step off, and a step that is on refuses null for its values.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tlx import words
from tlx.types import Preprocess
from tlx.weights.fields import DIVISOR, RESIZED, SCALE, SIDE, Fields, are, is_side, per_channel

Shape = tuple[int, int]  # height and width, pixels
EDGE, SIDES = 'shortest_edge', ('height', 'width')
FORMS = f'a side from 1 to {SIDE}, [height, width], {{"height", "width"}} or {{"{EDGE}"}}'
PILLOW = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}  # PIL.Image.Resampling
SQUASHED_FROM = 384  # pixels; from this size on, ConvNextImageProcessor resizes without a crop
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = Preprocess().mean, Preprocess().std
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Kind(NamedTuple):
  """The defaults of one class of image processors."""

  size: Any  # of the resize, as a record may have it
  statistics: tuple[tuple[float, ...], tuple[float, ...]] = (_HALF, _HALF)
  resample: int = 2
  square: bool = True  # one number as `size` is the side of a square, not the shorter edge
  crop: int | None = None
  cropped: bool = False  # whether it crops by default
  crop_pct: float | None = None  # of the crop that belongs to the resize; None = the class has no such field
  twice: bool = False  # divides by the standard deviation a second time


KINDS = {
  'Beit': Kind(224, resample=3, crop=224),
  'Bit': Kind({EDGE: 224}, _CLIP, 3, False, 224, True),
  'CLIP': Kind({EDGE: 224}, _CLIP, 3, False, 224, True),
  'ConvNext': Kind({EDGE: 384}, resample=3, square=False, crop_pct=224 / 256),
  'DINOv3ViT': Kind(224, _IMAGENET),
  'DeiT': Kind(256, resample=3, crop=224, cropped=True),
  'EfficientNet': Kind(346, resample=3, crop=289, twice=True),
  'MobileNetV1': Kind({EDGE: 256}, square=False, crop=224, cropped=True),
  'MobileNetV2': Kind({EDGE: 256}, square=False, crop=224, cropped=True),
  'Segformer': Kind(512, _IMAGENET),
  'Siglip': Kind({'height': 224, 'width': 224}, resample=3, square=False),
  'ViT': Kind(224),
}
MODELS = {  # model_type -> its class, for records that do not name one
  'beit': 'Beit', 'clip': 'CLIP', 'clip_vision_model': 'CLIP', 'convnext': 'ConvNext', 'convnextv2': 'ConvNext',
  'deit': 'DeiT', 'dinov2': 'Bit', 'dinov2_with_registers': 'Bit', 'dinov3_vit': 'DINOv3ViT',
  'efficientnet': 'EfficientNet', 'mobilenet_v1': 'MobileNetV1', 'mobilenet_v2': 'MobileNetV2', 'regnet': 'ConvNext',
  'resnet': 'ConvNext', 'segformer': 'Segformer', 'siglip': 'Siglip', 'siglip_vision_model': 'Siglip', 'swin': 'ViT',
  'swinv2': 'ViT', 'vit': 'ViT', 'vit_mae': 'ViT',
}  # fmt: skip
OWN = {'include_top': 'EfficientNet', 'rescale_offset': 'EfficientNet', 'crop_pct': 'ConvNext'}  # field -> its class
KNOWN = (
  'do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_convert_rgb', 'do_reduce_labels', 'reduce_labels',
  'size', 'crop_size', 'resample', 'rescale_factor', 'image_mean', 'image_std', *OWN,
)  # fmt: skip
# Fields of other classes that change the input. A class ignores what it does not know, but such a field says that its
# writer wanted another input. All other fields that tlx does not know are ignored, as transformers ignores them.
FOREIGN = ('ensure_multiple_of', 'keep_aspect_ratio', 'max_num_patches', 'size_divisor', 'use_square_size')


def read(fields: Fields, model_type: Any, default: Preprocess, channels: int) -> Preprocess:
  """Reads the record of an image processor: resize, optional centre crop, rescale, normalise.

  Args:
    fields: of preprocessor_config.json; they collect the problems.
    model_type: of config.json; it tells the class if the record does not.
    default: values for a record whose class nothing tells.
    channels: of the images.

  Returns:
    The Preprocess; it has no meaning if there were problems.
  """
  kind = _kind(fields, model_type, default)
  _refuse_others(fields, kind)
  if _on(fields, 'do_resize', True):
    _need(fields, 'size', 'resample')
  else:
    fields.lacks('do_resize', 'tlx resizes every picture')
  shape, mode, resized = _geometry(fields, kind)
  mean, std = _statistics(fields, kind, channels)
  return Preprocess(
    size=shape[0] if shape[0] == shape[1] else shape,
    crop=share(shape, resized) or 1.0,
    interpolation=_interpolation(fields, kind.resample),
    mean=mean,
    std=std,
    mode=mode,
  )


def share(shape: Shape, resized: Shape) -> float | None:
  """The share that a crop to `shape` keeps of `resized`: floor(side / share) gives `resized` along both axes.

  >>> share((224, 224), (224, 224)), share((224, 224), (256, 300))
  (1.0, None)
  """
  if shape == resized:
    return 1.0
  most = min(side / whole for side, whole in zip(shape, resized))
  # the 0.5 makes the floor right despite rounding
  for found in (shape[0] / (resized[0] + 0.5), shape[1] / (resized[1] + 0.5), most):
    if found <= 1 and all(math.floor(side / found) == whole for side, whole in zip(shape, resized)):
      return found
  return None


def scaled(record: Mapping[str, Any], old: Shape, new: Shape) -> dict[str, Any]:
  """Scales the sizes in a record, each in the form that it has.

  Args:
    record: parsed preprocessor_config.json.
    old: height and width of its pictures.
    new: those wanted.

  Returns:
    The record for pictures of `new`, if its form can express that.
  """
  ratios = {'height': new[0] / old[0], 'width': new[1] / old[1], EDGE: max(b / a for a, b in zip(old, new))}

  def change(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: round(side * ratios[name]) if name in ratios and side else side for name, side in value.items()}
    if isinstance(value, list):
      return [round(side * ratio) for side, ratio in zip(value, (ratios['height'], ratios['width']))]
    return round(value * ratios[EDGE]) if isinstance(value, int) else value

  return {name: change(value) if name in ('size', 'crop_size') else value for name, value in record.items()}


def _named(record: Mapping[str, Any], model_type: Any) -> str:
  """The class of the record without its suffix: 'ViT' of ViTImageProcessor, ViTFeatureExtractor and so on."""
  name = record.get('image_processor_type') or record.get('feature_extractor_type')
  if not isinstance(name, str):
    return MODELS.get(model_type, '') if isinstance(model_type, str) else ''
  for suffix in ('Fast', 'Pil', 'ImageProcessor', 'FeatureExtractor'):
    name = name.removesuffix(suffix)
  return name


def _kind(fields: Fields, model_type: Any, default: Preprocess) -> Kind:
  """The defaults of the record's class; those of `default` if nothing tells the class."""
  record, name = fields.record, _named(fields.record, model_type)
  types = [each for each in ('image_processor_type', 'feature_extractor_type') if fields.text(each, '')]
  if name in KINDS:
    return KINDS[name]
  if types:
    fields.lacks(types[0], f'tlx has {", ".join(KINDS)}, each followed by ImageProcessor')
  crops = record.get('crop_pct') is not None
  edge = crops or record.get('do_center_crop') is True  # what one number meant in files without a class
  size = {EDGE: default.shape[0]} if edge else dict(zip(SIDES, default.shape))
  twice = record.get('include_top') is True
  return Kind(size, (default.mean, default.std), square=not edge, crop_pct=1.0 if crops else None, twice=twice)


def _refuse_others(fields: Fields, kind: Kind) -> None:
  """Notes fields of other classes that change the input, and misspelt fields."""
  has = {'include_top': kind.twice, 'rescale_offset': kind.twice, 'crop_pct': kind.crop_pct is not None}
  for name, value in fields.record.items():
    if name in OWN:
      asked = value is not None and value is not False and not (name == 'crop_pct' and value == 1)
      if asked and not has[name]:
        fields.lacks(name, f'only {OWN[name]}ImageProcessor has this step')
    elif name in FOREIGN or (name.startswith('do_') and name not in KNOWN):
      if value:
        fields.lacks(name, 'tlx does not have this step')
    elif name not in KNOWN and (close := words.near(name, KNOWN, cutoff=0.85)):
      fields.wrong(name, f'there is no such field; did you mean {close[0]}?')
  for name in ('do_convert_rgb', 'do_reduce_labels', 'reduce_labels'):  # tlx makes every picture RGB
    fields.flag(name, False)


def _size(fields: Fields, name: str, default: Any, square: bool) -> Mapping[str, int]:
  """Reads a size in each of its forms: {'height', 'width'} or {'shortest_edge'}; {} if there is a problem or none."""
  value = fields.record.get(name)
  value = default if value is None else value
  if isinstance(value, Mapping):
    value = {key: side for key, side in value.items() if side is not None}
    if value.keys() in ({*SIDES}, {EDGE}) and all(map(is_side, value.values())):
      return value
    if value.keys() & {'longest_edge', 'max_height', 'max_width', 'min_pixels', 'max_pixels'}:
      fields.lacks(name, 'its pictures would have different shapes, and tlx has one; use "height" and "width"')
      return {}
  elif are(is_side, value, 2):
    return dict(zip(SIDES, value))
  elif is_side(value):
    return dict.fromkeys(SIDES, value) if square else {EDGE: value}
  fields.wrong(name, f'it must be {FORMS}' if name in fields.record else f'it is missing; it must be {FORMS}')
  return {}


def _on(fields: Fields, name: str, default: bool) -> bool:
  """Whether a step is on."""
  return fields.flag(name, default and name not in fields.record)


def _need(fields: Fields, *names: str) -> None:
  """Notes values of a step that are null."""
  for name in names:
    if name in fields.record and fields.record[name] is None:
      fields.wrong(name, 'transformers too refuses null, because the step that uses it is on')


def _geometry(fields: Fields, kind: Kind) -> tuple[Shape, str, Shape]:
  """(shape of the result, crop mode, shape of a square picture after the first resize), in pixels."""
  if cropped := _on(fields, 'do_center_crop', kind.cropped):
    _need(fields, 'crop_size')
  size = _size(fields, 'size', kind.size, kind.square)
  crop = _size(fields, 'crop_size', kind.crop, True) if cropped else {}
  crop_pct = fields.number('crop_pct', kind.crop_pct or 1.0, 0.01, 1.0)
  if not size or (cropped and not crop):
    return (1, 1), 'squash', (1, 1)
  edge = size.get(EDGE)
  resized = (edge, edge) if edge else (size['height'], size['width'])
  shape = (crop['height'], crop['width']) if crop.keys() == {*SIDES} else resized
  if cropped and EDGE in crop:
    fields.lacks('crop_size', 'a crop needs "height" and "width"')
  elif kind.crop_pct is not None:
    return _convnext(fields, edge, shape, crop_pct)
  elif edge and not cropped:
    fields.lacks('size', 'without do_center_crop its pictures would have different shapes, and tlx has one')
  elif shape[0] > resized[0] or shape[1] > resized[1]:
    fields.lacks('crop_size', f'it is larger than the resized picture {list(resized)}, and tlx does not pad')
  elif edge and shape[0] != shape[1]:
    fields.lacks('crop_size', f'it is not a square, and the shorter edge was resized to {edge}')
  elif share(shape, resized) is None:
    fields.lacks('crop_size', f'it keeps different shares of height and width of {list(resized)}')
  return shape, 'center' if edge else 'squash', resized


def _convnext(fields: Fields, edge: int | None, shape: Shape, crop_pct: float) -> tuple[Shape, str, Shape]:
  """The result of `_geometry` for the class whose resize crops."""
  if not edge:
    fields.lacks('size', f'a class with crop_pct needs "{EDGE}" or one number')
    return shape, 'squash', shape
  if edge < SQUASHED_FROM:
    _need(fields, 'crop_pct')
  whole = int(edge / crop_pct)
  if shape != (edge, edge):
    fields.lacks('crop_size', f'the resize crops already, to {edge}')
  elif whole > RESIZED:
    fields.wrong('crop_pct', f'the resized picture would have {whole} x {whole} pixels; tlx has {RESIZED} at most')
  return (shape, 'squash', shape) if edge >= SQUASHED_FROM else (shape, 'center', (whole, whole))


def _statistics(fields: Fields, kind: Kind, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Folds rescaling and normalisation, which see pixels in [0, 255], into a mean and a deviation of [0, 1]."""
  factor = fields.number('rescale_factor', 1 / 255, 1e-6, 1e4)
  rescaled, normalised = _on(fields, 'do_rescale', True), _on(fields, 'do_normalize', True)
  twice, offset = _on(fields, 'include_top', kind.twice), _on(fields, 'rescale_offset', False)
  _need(fields, *['rescale_factor'] * rescaled, *['image_mean', 'image_std'] * normalised)
  scale = 255 * factor if rescaled else 255.0
  scale = 1.0 if abs(scale - 1) < 1e-6 else scale
  means = fields.statistics('image_mean', kind.statistics[0], channels, -SCALE)
  deviations = fields.statistics('image_std', kind.statistics[1], channels, DIVISOR)
  if len(means) != len(deviations):  # one of them is for RGB
    means, deviations = per_channel(means, channels), per_channel(deviations, channels)
  # The outputs are (scale * pixels - offset - mean) / std. EfficientNet's class divides by the deviation once more.
  mean = tuple((float(offset and rescaled) + (each if normalised else 0.0)) / scale for each in means)
  std = tuple((each if normalised else 1.0) * (each if twice else 1.0) / scale for each in deviations)
  return mean, std


def _interpolation(fields: Fields, default: int) -> str:
  """Reads Pillow's number or name of a filter."""
  value = fields.record.get('resample')
  name = value.rpartition('.')[-1].lower() if isinstance(value, str) else ''
  number = default if value is None else value if type(value) is int else -1
  if name in PILLOW.values():
    return name
  if number not in PILLOW:
    options = ', '.join(f'{i} ({each})' for i, each in PILLOW.items())
    fields.wrong('resample', f'tlx has {options}')
  return PILLOW.get(number, 'bilinear')
