"""Weights in and out: a name, a folder or a hub id to a model that is ready to use, and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx import catalog, weights
from tlx.labels import HEAD
from tlx.nn.model import Backbone, Head, TransferModel
from tlx.types import Preprocess, Pretrained, Source, TlxError, UsageError, Variables
from tlx.weights import rules


def load(
  name: str,
  *,
  weights: str | None = None,
  num_classes: int | None = None,
  pretrained: bool = True,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  seed: int = 0,
) -> Pretrained:
  """A backbone with its weights, its preprocessing and its class names.

  Args:
    name: a variant (`tlx.list_models()`), or a folder or 'hf-hub:OWNER/NAME' with config.json and weights as timm's.
    weights: a file, URL or folder to take the weights from instead of the variant's published ones.
    num_classes: None keeps the checkpoint's head; another number puts a fresh head (zeros) in its place; 0 leaves none.
    pretrained: False gives random weights drawn from `seed`.
    dropout: before the head. drop_path: stochastic depth of the last block.
  Raises: UsageError for an unknown name; WeightMismatchError listing everything that does not fit; TlxError if no
    weights can be had.
  """
  variant, folder, config = resolve(name)
  location = weights or (str(folder) if folder else None) or (variant.checkpoint and variant.checkpoint.location)
  preprocess = _preprocess(config, variant)
  if not pretrained:
    if variant.checkpoint:  # the same model that the published weights belong to, so that the two compare
      variant = catalog.variant(variant.checkpoint.variant)
    module = build(variant, 1000 if num_classes is None else num_classes, dropout, drop_path)
    variables = jax.jit(module.init)(jax.random.key(seed), _image())
    return Pretrained(module, variables, preprocess, (), Source(variant.name, config=config))
  if location is None:
    raise TlxError(
      f'{variant.name} has no published weights that tlx knows of: pass weights (--weights FILE), '
      'or start from random ones with pretrained=False (--strategy scratch)'
    )
  return _read(variant, location, config, preprocess, num_classes, dropout, drop_path)


def save(
  folder: str | Path,
  module: TransferModel,
  variables: Variables,
  *,
  source: Source | None = None,
  preprocess: Preprocess | None = None,
  class_names: Sequence[str] = (),
) -> Path:
  """Writes model.safetensors and config.json under timm's names: `tlx.load` and timm's 'local-dir:FOLDER' read them.

  Returns: the folder. Raises TlxError when the disk is full; what lay there stays as it was.
  """
  variant = catalog.variant(source.variant) if source else _variant_of(module)
  dropped = source.dropped if source and source.layout == 'timm' else {}
  table = tuple(variant.family.LAYOUTS['timm'](module.backbone.config))
  tensors = rules.write(jax.device_get(variables), table, dropped)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  weights.write_safetensors(folder / 'model.safetensors', tensors, {'format': 'pt'})
  config = _config(variant, module, preprocess or _preprocess({}, variant), class_names)
  (folder / 'config.json').write_text(json.dumps({**(source.config if source else {}), **config}, indent=2) + '\n')
  return folder


def features(module: TransferModel, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
  """{layer name: its output} in order, and 'pooled' [b, d]; images float [b, h, w, 3], already normalised."""
  return module.apply(variables, images, method='features')


def imagenet_classes() -> tuple[str, ...]:
  """The 1,000 classes of ImageNet-1k in the order of their ids."""
  return tuple((Path(__file__).parent / 'weights' / 'imagenet_classes.txt').read_text().splitlines())


def abstract(module: TransferModel) -> Variables:
  """Shapes and dtypes of the variables, without computing any."""
  return jax.eval_shape(module.init, jax.random.key(0), _image())


def _image() -> jax.Array:
  return jnp.zeros((1, 64, 64, 3))


def resolve(name: str) -> tuple[catalog.Variant, Path | None, Mapping[str, Any]]:
  """The variant, and for a folder or hub id its place and config."""
  if name in catalog.variants():
    return catalog.variant(name), None, {}
  if not (name.startswith(('hf-hub:', '.', '/', '~')) or Path(name).exists()):
    raise UsageError(f'no model {name!r}{catalog.suggest(name, catalog.list_models())}')
  folder = weights.fetch(name)
  config = weights.read_config(folder)
  if 'architecture' not in config:
    raise TlxError(f'{name}/config.json names no "architecture"; it has {", ".join(config)}')
  return catalog.variant(config['architecture']), folder, config


def _read(variant, location, config, preprocess, num_classes, dropout, drop_path) -> Pretrained:
  asked, where = variant, f'{location} -> {variant.name}'
  record = variant.checkpoint if variant.checkpoint and location == variant.checkpoint.location else None
  path = weights.fetch(location, revision=record and record.revision, sha256=record and record.sha256)
  tensors = weights.read_tensors(path)
  if record and not config and location.startswith('hf-hub:'):
    config = weights.read_config(path)
    preprocess = _preprocess(config, variant)
  layout, variant = _layout(variant, tensors, where)
  table = tuple(variant.family.LAYOUTS[layout](variant.config))
  found = _classes(table, tensors)
  module = build(variant, found if num_classes is None else num_classes, dropout, drop_path)
  fresh = HEAD + '/' if num_classes not in (None, found) else None
  like = abstract(module)
  if fresh:  # a fresh head starts at zero: the first steps then move the backbone little
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like['params'].get(HEAD, {}))
    like = {**like, 'params': {**like['params'], HEAD: zeros}}
  variables, dropped = rules.read(tensors, table, like, fresh=fresh, where=where)
  names = _class_names(config, module.head.num_classes) if not fresh else ()
  licence = asked.checkpoint.license if asked.checkpoint else 'unknown'
  return Pretrained(
    module,
    jax.tree.map(jnp.asarray, variables),
    preprocess,
    names,
    Source(variant.name, layout, location, licence, config, dropped),
  )


def _layout(variant: catalog.Variant, tensors: Mapping[str, np.ndarray], where: str) -> tuple[str, catalog.Variant]:
  """The layout whose names the tensors share most, and the variant that weights of this layout belong to."""
  tables = {name: tuple(layout(variant.config)) for name, layout in variant.family.LAYOUTS.items()}
  shared = {name: sum(rule.source in tensors for rule in table) for name, table in tables.items()}
  best = max(shared, key=shared.get)
  if shared[best] < len(tables[best]) / 2:
    names = ', '.join(list(tensors)[:3]) or 'nothing'
    raise rules.WeightMismatchError(
      f'{where}: weights of another architecture, which share {shared[best]} tensor names with it '
      f'(they hold {names}, ...); choose the model that they belong to'
    )
  rename = getattr(variant.family, 'LAYOUT_VARIANTS', {}).get(best, str)
  return best, catalog.variant(rename(variant.name))


def _classes(table: Sequence[rules.Rule], tensors: Mapping[str, np.ndarray]) -> int:
  """Outputs of the checkpoint's head; 0 where it has none."""
  bias = next(rule.source for rule in table if rule.target == f'params/{HEAD}/logits/bias')
  return len(tensors[bias]) if bias in tensors else 0


def build(variant: catalog.Variant, num_classes: int, dropout: float = 0.0, drop_path: float = 0.0) -> TransferModel:
  """The module of a variant, without weights; num_classes = 0 leaves out the head."""
  return TransferModel(Backbone(variant.config, drop_path), Head(num_classes, dropout))


def _variant_of(module: TransferModel) -> catalog.Variant:
  return next(v for v in catalog.variants().values() if v.config == module.backbone.config)


def _preprocess(config: Mapping[str, Any], variant: catalog.Variant) -> Preprocess:
  """What config.json records, or else the variant's own record."""
  default = variant.checkpoint.preprocess if variant.checkpoint else Preprocess()
  record = config.get('pretrained_cfg') or {}
  size = record.get('input_size', (3, default.size, default.size))
  return Preprocess(
    size=int(size[-1]),
    crop=float(record.get('crop_pct', default.crop)),
    interpolation=record.get('interpolation', default.interpolation),
    mean=tuple(record.get('mean', default.mean)),
    std=tuple(record.get('std', default.std)),
  )


def _class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
  names = config.get('label_names') or (config.get('pretrained_cfg') or {}).get('label_names')
  if names:
    return tuple(names)
  return imagenet_classes() if num_classes == 1000 else ()


def _config(variant, module, preprocess: Preprocess, class_names: Sequence[str]) -> dict[str, Any]:
  """timm's config.json."""
  record = {
    'input_size': [3, preprocess.size, preprocess.size],
    'crop_pct': preprocess.crop,
    'interpolation': preprocess.interpolation,
    'mean': list(preprocess.mean),
    'std': list(preprocess.std),
    'num_classes': module.head.num_classes,
  }
  return {
    'architecture': variant.name,
    'num_classes': module.head.num_classes,
    'num_features': module.backbone.config.width,
    'label_names': list(class_names),
    'pretrained_cfg': record,
  }
