"""What config.json and preprocessor_config.json say about a checkpoint, in timm's format and in transformers'."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlx import words
from tlx.types import Preprocess, TlxError, UsageError
from tlx.weights import smp

Record = Mapping[str, Any]
PILLOW = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}  # PIL.Image.Resampling
SQUASHED_FROM = 384  # pixels; from this size on, ConvNextImageProcessor resizes without a crop


def preprocess(config: Record, processor: Record, default: Preprocess) -> Preprocess:
  """Reads the preprocessing of a checkpoint.

  Args:
    config: parsed config.json.
    processor: parsed preprocessor_config.json; if it is not empty, it alone counts.
    default: values for what the records leave out.

  Returns:
    A complete Preprocess.
  """
  return _of_processor(processor, default) if processor else _of_timm(config.get('pretrained_cfg') or {}, default)


def for_channels(record: Preprocess, count: int) -> Preprocess:
  """The same preprocessing for images of `count` channels."""
  return record._replace(mean=_per_channel(record.mean, count), std=_per_channel(record.std, count))


def channels(config: Record) -> int:
  """Number of input channels of the checkpoint."""
  if smp.CLASS in config:
    return int(config.get('in_channels', 3))
  return int((config.get('pretrained_cfg') or {}).get('input_size', (3,))[0])


def class_names(config: Record) -> tuple[str, ...]:
  """Class names in the order of their ids; () if the records have none."""
  if 'id2label' in config:
    return tuple(name for _, name in sorted((int(i), name) for i, name in config['id2label'].items()))
  return tuple(config.get('label_names') or (config.get('pretrained_cfg') or {}).get('label_names') or ())


def names_of_classes(config: Record, count: int) -> tuple[str, ...]:
  """The checkpoint's class names if there are `count`; else ImageNet-1k's if `count` is 1,000; else ()."""
  names = class_names(config)
  return names if len(names) == count else imagenet_classes() if count == 1000 else ()


def imagenet_classes() -> tuple[str, ...]:
  """The 1,000 class names of ImageNet-1k in the order of their ids."""
  return tuple((Path(__file__).parent / 'imagenet_classes.txt').read_text().splitlines())


def full_config(config: Record) -> dict[str, Any]:
  """Adds the defaults of transformers to a config.json that leaves them out.

  Raises:
    TlxError: if the package transformers is not installed.
  """
  try:
    from transformers import AutoConfig  # slow to import, and only this needs it
  except ImportError:
    raise TlxError(
      f'a checkpoint in transformers\' layout ({config["model_type"]}) needs it; run: {words.install("transformers")}'
    ) from None
  given = {name: value for name, value in config.items() if name != 'model_type'}
  return AutoConfig.for_model(config['model_type'], **given).to_dict()


def require(config: Record, wanted: Mapping[str, Any], *others: str) -> None:
  """Raises UsageError unless a complete config.json of transformers has these settings; it lists all that differ.

  Args:
    config: complete config.json.
    wanted: setting -> the only value that tlx supports; a tuple equals a list.
    others: further problems, in words.
  """
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  odd = [
    f'{name} {config.get(name)!r}, not {value!r}'
    for name, value in wanted.items()
    if plain(config.get(name)) != plain(value)
  ]
  if problems := '; '.join([*odd, *others]):
    raise UsageError(
      f'config.json describes a {config["model_type"]} that tlx lacks: {problems}; choose another checkpoint '
      '(`tlx models` lists those that fit)'
    )


def timm_config(
  name: str,
  width: int,
  record: Preprocess,
  num_classes: int,
  names: Sequence[str],
  arguments: Record,
  fixed_size: bool = False,
) -> dict[str, Any]:
  """Makes timm's config.json.

  Args:
    name: timm's name of the architecture.
    width: channels of the pooled features.
    record: the model's preprocessing.
    num_classes: outputs of the head.
    names: class names.
    arguments: arguments of timm's constructor, where they differ from the variant's.
    fixed_size: whether the parameters depend on the input's size; timm's constructor must then know it.

  Returns:
    A dict to write as JSON.
  """
  pretrained = {
    'input_size': [len(record.mean), *record.shape],
    'crop_pct': record.crop,
    'crop_mode': record.mode,
    'interpolation': record.interpolation,
    'mean': list(record.mean),
    'std': list(record.std),
    'num_classes': num_classes,
    **({'fixed_input_size': True} if fixed_size else {}),
  }
  config = {'architecture': name, 'num_classes': num_classes, 'num_features': width, 'label_names': list(names)}
  return {**config, 'pretrained_cfg': pretrained} | ({'model_args': dict(arguments)} if arguments else {})


def transformers_config(
  config: Record, num_classes: int, names: Sequence[str], size: int | None = None
) -> dict[str, Any]:
  """Updates the source's config.json of transformers for the fine-tuned model.

  Args:
    config: the source's config.json.
    num_classes: outputs of the head.
    names: class names; LABEL_0, LABEL_1, ... if empty.
    size: height and width of the input in pixels, if the parameters depend on it.

  Returns:
    A dict to write as JSON.
  """
  tower = config.get('vision_config', config)
  if size is not None and tower.get('image_size') not in (size, [size, size]):
    sized = {**tower, 'image_size': size}
    config = {**config, 'vision_config': sized} if 'vision_config' in config else sized
  labels = list(names) or [f'LABEL_{i}' for i in range(num_classes)]
  if list(class_names(config)) == labels:
    return dict(config)
  ids = {'id2label': {str(i): name for i, name in enumerate(labels)}, 'label2id': {n: i for i, n in enumerate(labels)}}
  return {**config, **ids, 'num_labels': num_classes}


def transformers_processor(record: Record, size: int) -> dict[str, Any]:
  """Updates the source's preprocessor_config.json for images of `size` pixels."""
  old = _sides(record, Preprocess())[0] if record else size

  def scaled(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {name: scaled(part) for name, part in value.items()}
    return round(value * size / old) if isinstance(value, int) else value

  return {name: scaled(value) if name in ('size', 'crop_size') else value for name, value in record.items()}


def _of_timm(record: Record, default: Preprocess) -> Preprocess:
  height, width = record.get('input_size', (3, *default.shape))[-2:]
  return Preprocess(
    size=int(height) if height == width else (int(height), int(width)),
    crop=float(record.get('crop_pct', default.crop)),
    interpolation=record.get('interpolation', default.interpolation),
    mean=tuple(record.get('mean', default.mean)),
    std=tuple(record.get('std', default.std)),
    mode=record.get('crop_mode', default.mode),
  )


def _of_processor(record: Record, default: Preprocess) -> Preprocess:
  """Reads an image processor of transformers: resize, optional centre crop, rescale, normalise."""
  size, mode, resized = _sides(record, default)
  scaled, std = record.get('do_normalize', True), tuple(record.get('image_std', default.std))
  # EfficientNet's processor divides by the standard deviation twice.
  if record.get('include_top', _kind(record).startswith('EfficientNet')):
    std = tuple(value * value for value in std)
  return Preprocess(
    size=size,
    # the 0.5 makes floor(size / crop) equal `resized` despite rounding
    crop=1.0 if resized == size else size / (resized + 0.5),
    interpolation=PILLOW.get(record.get('resample'), 'bilinear'),
    mean=tuple(record.get('image_mean', default.mean)) if scaled else (0.0, 0.0, 0.0),
    std=std if scaled else (1.0, 1.0, 1.0),
    mode=mode,
  )


def _sides(record: Record, default: Preprocess) -> tuple[int, str, int]:
  """(side of the result, crop mode, side of the image after the first resize), in pixels."""
  size = record.get('size', default.size)
  cropped = record.get('do_center_crop', False)
  if isinstance(size, int):  # old files: a square, or the shorter edge if a crop follows
    size = {'shortest_edge': size} if cropped or 'crop_pct' in record else {'height': size, 'width': size}
  resized = int(size.get('shortest_edge') or size.get('height'))
  mode = 'center' if 'shortest_edge' in size else 'squash'
  if cropped:
    crop = record.get('crop_size', resized)
    return int(crop if isinstance(crop, int) else crop['height']), mode, resized
  if 'crop_pct' in record or 'ConvNext' in _kind(record):
    share = record.get('crop_pct') or 224 / 256
    return (resized, 'center', int(resized / share)) if resized < SQUASHED_FROM else (resized, 'squash', resized)
  return resized, mode, resized


def _kind(record: Record) -> str:
  """The class of the image processor, such as 'ConvNextImageProcessor'; '' if the record does not name it."""
  return record.get('image_processor_type') or record.get('feature_extractor_type') or ''


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
  """Adapts RGB values to another number of channels: their mean for one channel, else the values repeated in turn."""
  if len(values) == channels:
    return values
  return (sum(values) / len(values),) if channels == 1 else tuple(values[i % len(values)] for i in range(channels))
