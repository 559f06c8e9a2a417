"""Reads and writes timm's fields of config.json: those in `pretrained_cfg`, or all in its older form."""

from typing import Any

from tlx.types import Preprocess, Size
from tlx.weights.fields import CHANNELS, DIVISOR, RESIZED, SCALE, SIDE, VALUES, Fields, are, is_side, per_channel

INTERPOLATIONS, MODES = ('nearest', 'bilinear', 'bicubic', 'lanczos'), ('center', 'squash')


def pretrained(fields: Fields) -> Fields:
  """The fields of timm's record in a config.json. Like timm, it reads the top of a file without `pretrained_cfg`."""
  if 'pretrained_cfg' in fields.record:
    return fields.inside('pretrained_cfg', null=False)
  return fields if 'architecture' in fields.record else Fields({}, fields.problems, fields.place)


def read(fields: Fields, default: Preprocess, channels: int) -> Preprocess:
  """Reads the preprocessing.

  Args:
    fields: of the record; they collect the problems.
    default: values for missing fields.
    channels: of the images.

  Returns:
    The Preprocess; it has no meaning if there were problems.
  """
  shape, size = default.shape, fields.record.get('input_size')
  if size is not None:
    if not are(is_side, size, 3) or size[0] > CHANNELS or size[0] * size[1] * size[2] > VALUES:
      fields.wrong('input_size', f'it must be [channels, height, width], with sides up to {SIDE} pixels')
    else:
      shape = size[1], size[2]
  fields.flag('fixed_input_size', False)
  crop = fields.number('crop_pct', default.crop, 0.01, 1.0)
  if max(shape) / crop > RESIZED:
    fields.wrong('crop_pct', f'the resized picture would have more than {RESIZED} pixels a side')
  mean = fields.statistics('mean', default.mean, channels, -SCALE)
  std = fields.statistics('std', default.std, channels, DIVISOR)
  if len(mean) != len(std):  # one of them is for RGB
    mean, std = per_channel(mean, channels), per_channel(std, channels)
  return Preprocess(
    size=shape[0] if shape[0] == shape[1] else shape,
    crop=crop,
    interpolation=fields.text('interpolation', default.interpolation, INTERPOLATIONS),
    mean=mean,
    std=std,
    mode=fields.text('crop_mode', default.mode, MODES),
  )


def write(record: Preprocess) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
    'input_size': [len(record.mean), *record.shape],
    'crop_pct': record.crop,
    'crop_mode': record.mode,
    'interpolation': record.interpolation,
    'mean': list(record.mean),
    'std': list(record.std),
  }


def check_arguments(fields: Fields, classes: int) -> None:
  """Notes problems with the arguments of timm's constructor; `classes` is the largest number of classes."""
  fields.integer('num_classes', 0, 0, classes)
  fields.integer('in_chans', 0, 1, CHANNELS)
  size = fields.record.get('img_size')
  if size is not None and not is_side(size) and not are(is_side, size, 2):
    fields.wrong('img_size', f'it must be a side from 1 to {SIDE} pixels, or a list of height and width')


def network_size(fields: Fields) -> Size | None:
  """Side, or height and width, of the network that a checked config.json describes; None if it leaves them out.

  timm builds the network for the argument `img_size`, or else for the input size if that is a fixed one.
  """
  size, record = fields.inside('model_args').record.get('img_size'), pretrained(fields).record
  if size is None and record.get('fixed_input_size') and record.get('input_size'):
    size = record['input_size'][1:]
  if size is None or isinstance(size, int):
    return size
  return size[0] if size[0] == size[1] else (size[0], size[1])


def channels(fields: Fields) -> int | None:
  """Number of input channels; None if the file leaves it out."""
  arguments, size = fields.inside('model_args'), pretrained(fields).record.get('input_size')
  if arguments.record.get('in_chans') is not None:
    return arguments.integer('in_chans', 3, 1, CHANNELS)
  known = isinstance(size, list) and len(size) == 3 and type(size[0]) is int and 1 <= size[0] <= CHANNELS
  return size[0] if known else None
