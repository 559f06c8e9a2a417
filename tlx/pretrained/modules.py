"""Builds the module of a variant and a head, and the tables that name its variables in files of weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tlx import catalog, trees, words
from tlx.labels import BACKBONE, HEAD
from tlx.nn.levels import levels
from tlx.nn.model import Backbone, TransferModel
from tlx.types import UsageError, Variables, WholeLayout
from tlx.weights import rules

LINEAR = 'linear'  # the head of classifiers; the families' tables contain its names
OWN = 'tlx-'  # prefix of a layout's name: the head's tensors have the names of their paths in tlx
Rules = Sequence[rules.Rule]


def build(
  variant: catalog.Variant,
  num_classes: int,
  dropout: float | None = None,
  drop_path: float = 0.0,
  head: str | nn.Module | None = None,
) -> TransferModel:
  """Builds the module of a variant, without weights.

  Args:
    variant: a row of a family's table.
    num_classes: outputs of the head; 0 gives the pooled features instead of logits.
    dropout: share of the head's inputs that training drops; None keeps the head's own default.
    drop_path: stochastic depth of the last block; it grows linearly from 0 at the first block.
    head: a file of `tlx/heads` with its options, such as 'unet(widths=(64, 32))', or a linen module called as
      `head(features, train)`; None is one linear layer on the pooled features.

  Returns:
    The module.

  Raises:
    UsageError: for an unknown head or option, and a head that does not fit the backbone.
  """
  config = variant.config
  if config.aux_classes is not None:  # the auxiliary head is inside the backbone
    config = dataclasses.replace(config, aux_classes=num_classes)
  backbone = Backbone(config, drop_path)
  return TransferModel(backbone, _head(backbone, head or LINEAR, num_classes, dropout))


def _head(backbone: Backbone, head: str | nn.Module, num_classes: int, dropout: float | None) -> nn.Module:
  if not isinstance(head, str):
    return _completed(head, backbone, num_classes)
  known = catalog.fields('heads', head)
  options: dict[str, Any] = {'num_classes': num_classes}
  if dropout is not None and 'dropout' in known:
    options['dropout'] = dropout
  name, given = words.parse(head)
  if name == LINEAR and backbone.config.spatial_head:
    options['spatial'] = True
  if name != LINEAR or 'spatial' in options or given:  # only if needed: finding the levels takes 1 s
    options['levels'] = levels(backbone)
  if name != LINEAR and not num_classes:
    raise UsageError(f'head {head} needs the number of classes; pass num_classes')
  return catalog.head(head, **options)


def _completed(head: nn.Module, backbone: Backbone, num_classes: int) -> nn.Module:
  """A head given as an object. Heads of `tlx/heads` get levels and number of classes if these are not set."""
  known = {field.name for field in dataclasses.fields(head)}
  changes: dict[str, Any] = {}
  if 'levels' in known and not head.levels:
    changes['levels'] = levels(backbone)
  if 'num_classes' in known and head.num_classes in (0, None):
    changes['num_classes'] = num_classes
  return head.clone(**changes) if changes else head


def head_name(module: TransferModel) -> str | None:
  """The file of `tlx/heads` that a model's head is from; None for a head of the user."""
  room, _, name = type(module.head).__module__.rpartition('.')
  return name if room == 'tlx.heads' else None


def head_spec(module: TransferModel) -> str | None:
  """The head with its options as text, without those that backbone and data decide; None for a head of the user."""
  name = head_name(module)
  return name and words.text(name, module.head, leave_out=('num_classes', 'levels', 'spatial'))


def is_classifier(module: TransferModel) -> bool:
  """Whether the head is the linear layer on the average pool, which the families' tables contain."""
  return head_name(module) == LINEAR and module.head.pool == 'avg'


def of_backbone(table: Iterable[rules.Rule], prefix: str = '', rename: Callable[[str], str] = str) -> Rules:
  """Selects the rules of the backbone from a family's table.

  Args:
    table: of the whole model.
    prefix: to put before each source name.
    rename: applied to each source name before that.

  Returns:
    The rules.
  """
  inside = lambda rule: rule.target is None or rule.target.split('/')[1] == BACKBONE
  return tuple(rule._replace(source=prefix + rename(rule.source)) for rule in table if inside(rule))


def own_table(table: Iterable[rules.Rule], module: TransferModel) -> Rules:
  """Makes the rules for a backbone by a table and a head by the names of its own paths in tlx.

  Args:
    table: rules of the whole model.
    module: backbone and head.

  Returns:
    The rules.
  """
  paths = trees.flatten(abstract(module))
  return (*of_backbone(table), *rules.own(path for path in paths if path.split('/')[1] == HEAD))


def tables(variant: catalog.Variant, module: TransferModel) -> dict[str, Rules]:
  """Makes the tables of a backbone with a head that is not linear.

  Args:
    variant: of the backbone.
    module: backbone and head.

  Returns:
    {layout: rules}: layouts of other libraries for both first, then the family's with the head by its own paths.
  """
  made: dict[str, Rules] = {}
  for name, layout in whole_layouts(module).items():
    if layout.backbone in variant.family.LAYOUTS:
      with contextlib.suppress(rules.NoLayoutError):
        made[name] = whole_table(variant, module, layout)
  own, _ = rules.tables(variant.family.LAYOUTS, module.backbone.config)
  return made | {OWN + name: own_table(table, module) for name, table in own.items()}


def sees_map(module: TransferModel) -> bool:
  """Whether a linear head reads each position of the last map, and averages its rectified outputs."""
  return bool(module.head.spatial and module.head.num_classes)


def whole_table(variant: catalog.Variant, module: TransferModel, layout: WholeLayout) -> Rules:
  """Makes the rules for a backbone and a head that another library stores in one file.

  Args:
    variant: of the backbone.
    module: backbone and head.
    layout: the other library's.

  Returns:
    The rules.
  """
  backbone = variant.family.LAYOUTS[layout.backbone](module.backbone.config)
  return (*of_backbone(backbone, layout.prefix, layout.rename), *layout.head(module.head))


def whole_layouts(module: TransferModel) -> Mapping[str, WholeLayout]:
  """{library: its layout for the module's backbone and head in one file}; {} if none knows the head."""
  name = head_name(module)
  return getattr(catalog.find('heads', name), 'LAYOUTS', {}) if name else {}


def features(module: TransferModel, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
  """Computes the outputs of all layers of the backbone.

  Args:
    module: the model.
    variables: of the model.
    images: float [b, h, w, 3], normalised.

  Returns:
    {layer name: output} in order, and 'pooled' [b, d].
  """
  return module.apply(variables, images, method='features')


def abstract(module: TransferModel, channels: int = 3, shape: tuple[int, int] | None = None) -> Variables:
  """Computes the shapes and dtypes of the variables, without values.

  Args:
    module: the model.
    channels: of the images.
    shape: height and width of the images, which some heads depend on; None takes a size that fits.

  Returns:
    Variables whose leaves are jax.ShapeDtypeStruct.
  """
  return jax.eval_shape(module.init, jax.random.key(0), example(module, channels, shape))


def example(module: TransferModel, channels: int = 3, shape: tuple[int, int] | None = None) -> jax.Array:
  """A black image [1, h, w, c], float32; without `shape`, of a size that the model accepts."""
  config = module.backbone.config
  side = config.size or max(64, config.smallest)
  return jnp.zeros((1, *(shape or (side, side)), channels))


def fresh_head(module: TransferModel, channels: int, shape: tuple[int, int], seed: int) -> Variables:
  """Draws random variables for the head only.

  Args:
    module: the model.
    channels: of the images.
    shape: height and width of the images.
    seed: random seed.

  Returns:
    Variables: arrays for the head, jax.ShapeDtypeStruct for the backbone.
  """
  image = example(module, channels, shape)

  def draw(key: jax.Array) -> Variables:
    return {name: tree[HEAD] for name, tree in module.init(key, image).items() if HEAD in tree}

  drawn = jax.jit(draw)(jax.random.key(seed))  # jit removes the computation of the backbone's values
  like = abstract(module, channels, shape)
  return {name: {**tree, HEAD: drawn[name]} if name in drawn else tree for name, tree in like.items()}
