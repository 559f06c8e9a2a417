"""Every output of a model as one pure function of pixels, with the checkpoint's normalisation inside."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tlx import words
from tlx.nn import levels
from tlx.nn.model import TransferModel
from tlx.types import Pretrained, UsageError, Variables

PIXELS, LOGITS = 'pixels', 'logits'
PICTURE_CLASSES = ('classification', 'multilabel')  # tasks with outputs [b, k]
Seen = Mapping[str, jax.Array]  # 'pixels', then every layer's output by name, in order, 'pooled' and 'logits'
Look = Callable[[Variables, jax.Array], Seen]


class Explanation(NamedTuple):
  """The result of a tool, or its result so far."""

  figures: Mapping[str, Any]  # values for JSON; arrays become lists
  # File name without extension -> uint8 [h, w, 3], or a function that draws it on demand.
  pictures: Mapping[str, np.ndarray | Callable[[], np.ndarray]] = {}
  pages: Mapping[str, str] = {}  # file name without extension -> HTML
  done: int = 1  # progress, out of `total`
  total: int = 1


def look(model: Pretrained) -> Look:
  """Makes the function (variables, pixels float [b, h, w, 3] in [0, 1]) -> `Seen`.

  Under jit, unused outputs are not computed.
  """
  last, preprocess = model.module.backbone.names[-1], model.preprocess

  def looks(variables: Variables, pixels: jax.Array) -> Seen:
    features = model.module.apply(variables, preprocess.normalise(pixels), method='features')
    return {PIXELS: pixels, **features, LOGITS: model.module.apply(variables, features, start=last)}

  return looks


def shapes(model: Pretrained) -> Mapping[str, jax.ShapeDtypeStruct]:
  """Shapes of all outputs for one image of the model's input size, without computing them."""
  pixels = jax.ShapeDtypeStruct((1, *model.preprocess.shape, 3), np.float32)
  return jax.eval_shape(look(model), model.variables, pixels)


def check_size(model: Pretrained, size: int) -> int:
  """Returns `size` (height and width in pixels). Raises UsageError if the model does not take images of that size."""
  config = model.module.backbone.config
  if config.size and size != config.size:
    raise UsageError(f'size {size}: the model takes pictures of {config.size} pixels only')
  if size < config.smallest:
    raise UsageError(f'size {size}: the model takes no pictures below {config.smallest} pixels')
  return size


def rest(model: Pretrained, layer: str) -> Callable[[Variables, jax.Array], jax.Array]:
  """Makes the function (variables, output of `layer`) -> logits float32 [b, k]."""
  return lambda variables, values: model.module.apply(variables, values, start=layer)


def as_map(module: TransferModel, values: jax.Array) -> jax.Array:
  """A layer's output as a map [b, h, w, d]; see `nn.levels.as_map`."""
  return levels.as_map(values, module.backbone.config.prefix)


def check_layer(module: TransferModel, name: str) -> str:
  """Returns `name` if it is a layer's. Raises UsageError with a list of the layers otherwise."""
  known = module.backbone.names
  if name not in known:
    raise UsageError(f'no layer {name!r}{_near(name, known)}; there are {", ".join(known)}')
  return name


def check_head(model: Pretrained) -> None:
  """Raises UsageError if the model has no classes, or is not a classifier of whole images."""
  if not getattr(model.module.head, 'num_classes', 1):
    raise UsageError('the model has no head, so it has no class to explain; choose a model with classes, or a run')
  check_picture(model)


def check_picture(model: Pretrained) -> None:
  """Raises UsageError if the model's outputs are not for whole images."""
  if model.source.task.split('(')[0] not in PICTURE_CLASSES:
    raise UsageError(
      f'the model is made for {model.source.task} and has no class per image; use explain features or explain '
      'exciting, which show its layers'
    )


def class_index(model: Pretrained, name: str | int) -> int:
  """Finds a class by its number or its name (upper and lower case are equal).

  Raises:
    UsageError: for an unknown class, with the most similar names.
  """
  check_head(model)
  count, names = model.module.head.num_classes, [known.lower() for known in model.class_names]
  if str(name).lower() in names:
    return names.index(str(name).lower())
  if not str(name).lstrip('-').isdecimal():
    raise UsageError(f'no class {name!r}{_near(str(name).lower(), names)}; numbers from 0 to {count - 1} work too')
  if not 0 <= int(name) < count:
    raise UsageError(f'class {name} is out of range: the model has 0 to {count - 1}')
  return int(name)


def class_name(model: Pretrained, index: int) -> str:
  return model.class_names[index] if model.class_names else f'class {index}'


def _near(name: str, known) -> str:
  """The most similar names, or names that contain the word."""
  near = words.near(name, known) or [other for other in known if name in other][:3]
  return f': did you mean {" or ".join(near)}?' if near else ''
