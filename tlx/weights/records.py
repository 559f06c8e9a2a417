"""What config.json and preprocessor_config.json say about a checkpoint, in timm's format and in transformers'."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tlx import words
from tlx.types import GreyScale, Preprocess, Size, TlxError, UsageError
from tlx.weights import network_fields, processors, smp, timm_fields
from tlx.weights.fields import CHANNELS, CLASSES, Fields, per_channel, shown

Record = Mapping[str, Any]
T = TypeVar('T')
TLX = 'tlx'  # the key of what tlx alone reads, in either file
GREY = 'grey'  # inside it: the scale of grey of more than 8 bits
MODEL, PROCESSOR = 'config.json: ', 'preprocessor_config.json: '
SHOWN = 20  # problems
NEXT = 'next: correct the file, or give the weights alone to a model that tlx knows: tlx.load(NAME, weights=FILE)'


def check(config: Record, processor: Record, place: str = '') -> None:
  """Checks every field of the records that tlx reads, before anything is built from them.

  Args:
    config: parsed config.json.
    processor: parsed preprocessor_config.json; {} if there is none.
    place: comes before the name of a file in the message, such as 'FOLDER/'.

  Raises:
    TlxError: it lists all problems, one a line.
  """
  _complete(lambda problems: _check(config, processor, problems), place)


def preprocess(config: Record, processor: Record, default: Preprocess) -> Preprocess:
  """Reads the preprocessing of a checkpoint.

  Args:
    config: parsed config.json.
    processor: parsed preprocessor_config.json; if it is not empty, it alone counts.
    default: values for a checkpoint without such records. What timm's record leaves out has timm's own defaults, and
      what an image processor of transformers leaves out has those of its class.

  Returns:
    A complete Preprocess.

  Raises:
    TlxError: it lists all fields that are wrong or that tlx cannot honour.
  """
  return _complete(lambda problems: _preprocess(config, processor, default, problems))


def for_channels(record: Preprocess, count: int) -> Preprocess:
  """The same preprocessing for images of `count` channels."""
  return record._replace(mean=per_channel(record.mean, count), std=per_channel(record.std, count))


def channels(config: Record) -> int:
  """Number of input channels of the checkpoint."""
  return stated_channels(config) or 3


def stated_channels(config: Record) -> int | None:
  """Number of input channels that config.json states; None if it leaves the number out."""
  return _complete(lambda problems: _channels(config, problems))


def network_size(config: Record) -> Size | None:
  """Side, or height and width, of the network that timm's config.json describes; None if it leaves them out."""
  return timm_fields.network_size(Fields(config, [], MODEL))


def grey(config: Record) -> GreyScale | None:
  """The scale of grey of more than 8 bits that the model learned with; None for the default."""
  return _complete(lambda problems: _grey(Fields(config, problems, MODEL).inside(TLX)))


def with_grey(config: Record, scale: GreyScale | None) -> dict[str, Any]:
  """config.json with this scale in place of any other."""
  own = {key: value for key, value in (config.get(TLX) or {}).items() if key != GREY}
  own |= {GREY: {kind: list(ends) for kind, ends in scale._asdict().items()}} if scale else {}
  bare = {key: value for key, value in config.items() if key != TLX}
  return bare | ({TLX: own} if own else {})


def class_names(config: Record) -> tuple[str, ...]:
  """Class names in the order of their ids; () if the records have none."""
  return _complete(lambda problems: _names(Fields(config, problems, MODEL)))


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
    TlxError: if the package transformers is not installed, or does not accept the config.
  """
  # transformers would import torch to look up a dtype
  given = {name: value for name, value in config.items() if name not in ('model_type', 'dtype', 'torch_dtype')}
  return _of_transformers(config['model_type'], given)


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
  fixed_size: int | None = None,
) -> dict[str, Any]:
  """Makes timm's config.json.

  Args:
    name: timm's name of the architecture.
    width: channels of the pooled features.
    record: the model's preprocessing.
    num_classes: outputs of the head.
    names: class names.
    arguments: arguments of timm's constructor, where they differ from the variant's.
    fixed_size: side of the input in pixels, if the parameters depend on it; timm's constructor must then know it.

  Returns:
    A dict to write as JSON.
  """
  sized = record._replace(size=fixed_size or record.size)
  fixed = {'fixed_input_size': True} if fixed_size else {}
  pretrained = {**timm_fields.write(sized), 'num_classes': num_classes, **fixed}
  config = {'architecture': name, 'num_classes': num_classes, 'num_features': width, 'label_names': list(names)}
  return {**config, 'pretrained_cfg': pretrained} | ({'model_args': dict(arguments)} if arguments else {})


def transformers_config(
  config: Record, num_classes: int, names: Sequence[str], size: int | None = None, channels: int | None = None
) -> dict[str, Any]:
  """Updates the source's config.json of transformers for the fine-tuned model.

  Args:
    config: the source's config.json.
    num_classes: outputs of the head.
    names: class names; LABEL_0, LABEL_1, ... if empty.
    size: height and width of the input in pixels, if the parameters depend on it.
    channels: of the images; None keeps the source's.

  Returns:
    A dict to write as JSON.
  """
  tower = config.get('vision_config', config)
  if size is not None and tower.get('image_size') not in (size, [size, size]):
    tower = {**tower, 'image_size': size}
  if channels is not None and channels != (stated_channels(config) or 3):
    tower = {**tower, 'num_channels': channels}
  config = {**config, 'vision_config': tower} if 'vision_config' in config else tower
  labels = list(names) or [f'LABEL_{i}' for i in range(num_classes)]
  if list(class_names(config)) == labels:
    return dict(config)
  ids = {'id2label': {str(i): name for i, name in enumerate(labels)}, 'label2id': {n: i for i, n in enumerate(labels)}}
  return {**config, **ids, 'num_labels': num_classes}


def transformers_processor(record: Record, config: Record, wanted: Preprocess) -> dict[str, Any]:
  """Updates the source's preprocessor_config.json for images of another size.

  Args:
    record: the source's preprocessor_config.json.
    config: the source's config.json.
    wanted: the preprocessing of the model. Its size counts.

  Returns:
    A dict to write as JSON. If the form of the record cannot express the size, it has the nearest that it can, and the
    exact preprocessing for tlx alone.
  """
  old = preprocess(config, record, wanted)
  if old.shape == wanted.shape:
    return dict(record)
  bare = {name: value for name, value in record.items() if name != TLX}
  made = processors.scaled(bare, old.shape, wanted.shape)
  try:
    expressed = preprocess(config, made, wanted).shape == wanted.shape
  except TlxError:
    expressed = False
  return made if expressed else {**made, TLX: timm_fields.write(wanted)}


def _check(config: Record, processor: Record, problems: list[str]) -> None:
  Fields(config, problems, MODEL).inside(smp.OURS)
  config = smp.opened(config)
  fields = Fields(config, problems, MODEL)
  for name in ('architecture', 'model_type', smp.CLASS):
    fields.text(name, '')
  classes = config.get('architectures')
  if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
    fields.wrong('architectures', 'it must be a list of texts')
  _names(fields)
  fields.integer('num_classes', 0, 0, CLASSES)
  timm_fields.check_arguments(fields.inside('model_args', null=False), CLASSES)
  if 'model_type' in config and 'architecture' not in config:
    _check_network(fields)
  _check_own(fields.inside(TLX))
  _preprocess(config, processor, Preprocess(), problems)


def _check_own(fields: Fields) -> None:
  """Checks what tlx wrote for a head that no other library knows."""
  for name in ('task', 'head', 'module'):
    fields.text(name, '')
  fields.integer('num_classes', 0, 0, CLASSES)
  fields.names('class_names')
  fields.inside('backbone')
  _grey(fields)


def _grey(fields: Fields) -> GreyScale | None:
  if GREY not in fields.record:
    return None
  inside = fields.inside(GREY)
  return GreyScale(**{kind: inside.ends(kind, ends) for kind, ends in GreyScale()._asdict().items()})


def _check_network(fields: Fields) -> None:
  """Checks the fields of transformers' config.json against the types of its own defaults."""
  network_fields.check_labels(fields)
  fields.inside('label2id')
  if not isinstance(kind := fields.record['model_type'], str):
    return
  try:
    defaults = _of_transformers(kind, {})
  except UsageError as error:
    fields.problems.append(str(error))
    return
  network_fields.check(fields, defaults)
  if isinstance(defaults.get('vision_config'), Mapping):
    network_fields.check(fields.inside('vision_config'), defaults['vision_config'])


def _of_transformers(kind: str, given: Record) -> dict[str, Any]:
  """transformers' complete config of a type."""
  try:
    from transformers import CONFIG_MAPPING, AutoConfig  # slow to import, and only this needs it
  except ImportError:
    raise TlxError(
      f'a checkpoint in transformers\' layout ({kind}) needs it; run: {words.install("transformers")}'
    ) from None
  if kind not in CONFIG_MAPPING:
    raise UsageError(f'{MODEL}model_type {shown(kind)}: the installed transformers has no such model')
  try:
    return AutoConfig.for_model(kind, **given).to_dict()
  except Exception as error:  # each class checks its fields in its own way, and none documents what it raises
    reason = words.shown(' '.join(str(error).split()))[:300]
    raise TlxError(f'{MODEL}transformers does not accept it: {reason}') from None


def _preprocess(config: Record, processor: Record, default: Preprocess, problems: list[str]) -> Preprocess:
  count = _channels(config, problems) or 3
  fields = Fields(processor, problems, PROCESSOR)
  if TLX in processor:
    return timm_fields.read(fields.inside(TLX), default, count)
  if str(processor.get('image_processor_type')).startswith('TimmWrapper'):  # it keeps timm's record
    return timm_fields.read(fields.inside('pretrained_cfg'), Preprocess(), count)
  if processor:
    return processors.read(fields, config.get('model_type'), default, count)
  # For what a record leaves out timm has its own defaults, not those of the architecture; they are Preprocess().
  default = Preprocess() if 'architecture' in config else default
  return timm_fields.read(timm_fields.pretrained(Fields(config, problems, MODEL)), default, count)


def _names(fields: Fields) -> tuple[str, ...]:
  of_transformers = fields.names('id2label', listed=False)
  record = timm_fields.pretrained(fields)
  of_timm = fields.names('label_names') or (record.names('label_names') if record is not fields else ())
  return of_transformers or of_timm or (fields.names('labels') if record is fields else ())


def _channels(config: Record, problems: list[str]) -> int | None:
  fields = Fields(config, problems, MODEL)
  if smp.CLASS in config:
    return fields.integer('in_channels', 3, 1, CHANNELS)
  stated = timm_fields.channels(fields)
  if stated or 'model_type' not in config:
    return stated
  tower = fields.inside('vision_config') if 'vision_config' in config else fields
  return tower.integer('num_channels', 0, 1, CHANNELS) or None


def _complete(read: Callable[[list[str]], T], place: str = '') -> T:
  """The result of a reader that collects problems. Raises TlxError if there were any."""
  problems: list[str] = []
  found = read(problems)
  if lines := [f'{place}{problem}' for problem in dict.fromkeys(problems)]:
    more = [f'{place}... and {len(lines) - SHOWN} more problems'] * (len(lines) > SHOWN)
    raise TlxError('\n'.join([*lines[:SHOWN], *more]) + f'; {NEXT}')
  return found
