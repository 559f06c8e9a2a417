"""One training step of each library on the same work: variant, batch, pixels, optimizer and trainable parameters.

A contestant takes a `Work` and returns a function that makes one step and waits for it. Every step turns uint8 pixels
into input, computes the cross-entropy, clips the gradient at norm 1 and updates the trainable parameters by AdamW.
Heavy imports are inside the functions, because each contestant runs in a process of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLASSES = 10


class Work(NamedTuple):
  """What to train."""

  model: str  # a variant of tlx and timm
  regime: str  # probe, last or full
  batch_size: int
  image_size: int
  dtype: str = 'float32'  # of the computation

  def batch(self) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [b, s, s, 3], int32 [b]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (self.batch_size, self.image_size, self.image_size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, self.batch_size, np.int32)


def learning(work: Work):
  """(the variant, the phase of the regime). 'last' is the last stage and everything after it."""
  from tlx import catalog

  variant = catalog.variant(work.model)
  names = [layer.name for layer in variant.config.layers()]
  stages = [name.split('_')[0] for name in names if name.startswith('stage')]
  last = names[[name.split('_')[0] for name in names].index(stages[-1]) :] if stages else names[-3:]
  strategy = {'probe': 'linear_probe', 'last': f'partial:{len(last)}', 'full': 'full'}[work.regime]
  return variant, catalog.strategy(strategy).phases(names)[0]


def tlx(work: Work, cached: bool = False) -> Callable[[], None]:
  import jax
  import jax.numpy as jnp

  from tlx import pretrained
  from tlx.prefix import boundary
  from tlx.tasks import classification
  from tlx.train import optimizer, sharding, state, step

  _, phase = learning(work)
  model = pretrained.load(work.model, pretrained=False, num_classes=CLASSES, image_size=work.image_size)
  start = boundary.boundary(model.module, phase) if cached else None
  recipe = step.Recipe(
    model.module, classification.Classification(CLASSES), model.preprocess, dtype=jnp.dtype(work.dtype), start=start
  )
  tx = optimizer.Optimizer().build(phase, 1000, state.split(model.variables['params'], phase)[0])
  place, (images, labels) = sharding.make('jit'), work.batch()
  batch = {'label': labels, 'mask': np.ones(len(labels), bool)}
  if cached:
    every = {'image': images, 'index': np.arange(len(labels)), **batch}
    _, found = place.evaluate(boundary.prefix_step(dataclasses.replace(recipe, start=None), start))(
      model.variables, every
    )
    batch['features'] = np.asarray(found['features'])
  else:
    batch |= {'image': images, 'aspect': np.ones(len(labels), np.float32)}
  batch = place.put_batch(batch)
  carried = [place.put_state(state.create(model.variables, phase, tx, seed=0, ema=False))]
  program = place.train(step.train_step(recipe, phase, tx), carried[0], batch)

  def one() -> None:
    carried[0], metrics = program(carried[0], batch)
    jax.block_until_ready(metrics)

  return one


def tlx_cached(work: Work) -> Callable[[], None]:
  """tlx after the first epoch: on cached features of the frozen layers."""
  if work.regime == 'full':
    raise LookupError('no layer is frozen')
  return tlx(work, cached=True)


def tlx_plain(work: Work) -> Callable[[], None]:
  """tlx with the convolution that `flax.linen.Conv` calls, in both passes, instead of its own CPU forms."""
  from tlx.nn import conv

  conv.by_platform = lambda cpu, library, a, b, *static: library(a, b, *static)
  return tlx(work)


def timm(work: Work) -> Callable[[], None]:
  """timm on PyTorch: channels-last; on a GPU also `torch.compile` and automatic mixed precision."""
  import contextlib
  import os

  import torch

  with contextlib.suppress(RuntimeError):
    import torchvision_operators  # noqa: F401  operators that torchvision needs with a CPU build of PyTorch
  import timm as library

  variant, phase = learning(work)
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  sized = {'img_size': work.image_size} if variant.config.size else {}
  model = library.create_model(work.model, num_classes=CLASSES, **sized).to(device, memory_format=torch.channels_last)
  freeze(model, variant, phase)
  images, labels = (torch.from_numpy(x).to(device) for x in work.batch())
  images = images.permute(0, 3, 1, 2)  # channels-last in memory
  rule = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01)
  forward = torch.compile(model) if device == 'cuda' else model
  mixed = torch.autocast(device, torch.bfloat16) if work.dtype == 'bfloat16' else contextlib.nullcontext()
  mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

  def one() -> None:
    rule.zero_grad(set_to_none=True)
    x = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    with mixed:
      loss = torch.nn.functional.cross_entropy(forward(x), labels.long())
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    rule.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return one


def freeze(model, variant, phase) -> None:
  """Makes exactly the phase's parameters trainable, by the names in the rules; frozen batch norms run in eval mode."""
  from tlx import labels

  table = variant.family.LAYOUTS['timm'](variant.config)
  learns = {
    rule.source
    for rule in table
    if rule.target and labels.label(rule.target.removeprefix('params/'), phase.rates) != labels.FROZEN
  }
  model.train()
  for name, parameter in model.named_parameters():
    parameter.requires_grad_(name in learns)
  for module in model.modules():
    own = list(module.parameters(recurse=False))
    if list(module.buffers(recurse=False)) and own and not any(p.requires_grad for p in own):
      module.eval()


def keras(work: Work) -> Callable[[], None]:
  """Keras on JAX, for networks that `keras.applications` has; it has no regime 'last'."""
  import os

  os.environ['KERAS_BACKEND'] = 'jax'
  import keras as library

  names = {
    'resnet50': 'ResNet50',
    'mobilenetv3_large_100': 'MobileNetV3Large',
    'vgg16': 'VGG16',
    'efficientnet_b0': 'EfficientNetB0',
  }
  if work.model not in names or work.regime == 'last':
    raise LookupError(f'keras.applications has no {work.model} for {work.regime}')
  if work.dtype == 'bfloat16':
    library.mixed_precision.set_global_policy('mixed_bfloat16')
  backbone = getattr(library.applications, names[work.model])(
    include_top=False, weights=None, pooling='avg', input_shape=(work.image_size, work.image_size, 3)
  )
  backbone.trainable = work.regime == 'full'
  model = library.Sequential([library.layers.Rescaling(1 / 255), backbone, library.layers.Dense(CLASSES)])
  model.compile(
    library.optimizers.AdamW(1e-3, weight_decay=0.01, clipnorm=1.0),
    library.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  images, labels = work.batch()
  return lambda: model.train_on_batch(images, labels)


ALL = {'tlx': tlx, 'cached': tlx_cached, 'timm': timm, 'plain': tlx_plain, 'keras': keras}
