"""Writes tests/numerics/recorded.json: what timm computes of one variant of each family, drawn at random.

  PYTHONPATH=tests/numerics python tests/parity/record.py [FAMILY ...]

for all families or for those named. Needs torch, timm, torchvision, from which SqueezeNet comes, and
segmentation_models_pytorch, from which the Mix Transformer comes. Everything is computed in float64 and kept with seven
digits.
"""

import importlib.metadata
import json
import sys
import zlib
from typing import Any

import numpy as np
import reference
import test_recorded
import torchvision_operators  # noqa: F401  makes torchvision importable

from tlx import catalog

LIBRARIES = ('torch', 'timm', 'torchvision', 'segmentation-models-pytorch')
SEED = 0
LIMIT = 30_000_000  # parameters of a variant; where all have more, the smallest
KEPT = 5  # parameter tensors whose gradient is kept, one of each fifth of the network
NO_GRADIENT = 1e-6  # of the whole: a shift that batch statistics take away has rounding for a gradient
ONLY_SIZE = {'inception': 96, 'swin': 224, 'swinv2': 256}  # the least that the family, or its windows, take
SPREAD = {'mobilenetv1': 8.0, 'mobilenetv2': 8.0}  # of the images: enough that activations reach the six of ReLU6


def choose(family: str, known: set[str]) -> str:
  """A variant below the limit that the other library knows."""
  parameters = {name: f.parameters for name, f in catalog.find('models', family).FIGURES.items() if name in known}
  small = sorted(name for name, count in parameters.items() if count < LIMIT)
  small = small or [min(parameters, key=lambda name: (parameters[name], name))]
  return str(np.random.default_rng([SEED, zlib.crc32(family.encode())]).choice(small))


def size_of(family: str, variant: str) -> int:
  """Pixels: few, and odd for convolutions, so that each stride has something to pad."""
  patch = getattr(catalog.variant(variant).config, 'patch', None)
  return ONLY_SIZE.get(family, 75 if patch is None else 64 if 64 % patch == 0 else 56)


def build(variant: str, size: int) -> Any:
  """The torch module, with the drawn tensors in it."""
  import timm
  import torch
  import torchvision

  if variant in mix_transformers():
    module = mix_transformer(variant)
  elif variant in timm.list_models():
    sized = {'img_size': size} if catalog.variant(variant).config.size else {}
    module = timm.create_model(variant, num_classes=test_recorded.CLASSES, **sized)
  else:
    module = torchvision.models.get_model(variant, num_classes=test_recorded.CLASSES)
  for name, tensor in (*module.named_parameters(), *module.named_buffers()):
    if isinstance(tensor, torch.nn.Parameter) or name.endswith(test_recorded.STATISTICS):
      tensor.data.copy_(torch.from_numpy(test_recorded.drawn(name, tuple(tensor.shape))))
  return module


def mix_transformers() -> dict[str, Any]:
  """{variant: its arguments} of segmentation_models_pytorch."""
  from segmentation_models_pytorch.encoders.mix_transformer import mix_transformer_encoders

  return {name: dict(entry['params']) for name, entry in mix_transformer_encoders.items()}


def mix_transformer(variant: str) -> Any:
  """With a classifier on the mean of the last map, as transformers has it, and with the epsilon of transformers."""
  import torch
  from segmentation_models_pytorch.encoders.mix_transformer import LayerNorm, MixVisionTransformer

  class Classifier(MixVisionTransformer):
    def forward(self, x):
      return self.head(self.forward_features(x)[-1].mean((2, 3)))

  arguments = mix_transformers()[variant] | {'norm_layer': LayerNorm}
  del arguments['out_channels']
  module = Classifier(**arguments)
  module.head = torch.nn.Linear(arguments['embed_dims'][-1], test_recorded.CLASSES)
  return module


def measure(family: str, known: set[str]) -> dict[str, Any]:
  """The record of one family."""
  variant = choose(family, known)
  size, spread = size_of(family, variant), SPREAD.get(family, 1.0)
  module, pixels = build(variant, size), test_recorded.images(size, spread)
  passes = {train: reference.their_pass(module, pixels, train=train, dtype='float64') for train in (False, True)}
  train = passes[True]
  losses = np.log(np.exp(train.logits).sum(-1)) - train.logits[np.arange(len(pixels)), test_recorded.LABELS]
  statistics = {'statistics': rounded(test_recorded.norm(train.statistics))} if train.statistics else {}
  return {
    'variant': variant,
    'size': size,
    'spread': spread,
    'eval': summary(passes[False]),
    'train': {
      **summary(train),
      'loss': rounded(losses.mean()),
      'gradient': rounded(test_recorded.norm(train.gradients)),
      'gradients': kept(family, train.gradients),
      **statistics,
    },
  }


def summary(result: reference.Pass) -> dict[str, Any]:
  return {
    'logits': [[rounded(x) for x in row[: test_recorded.FIRST]] for row in result.logits],
    'norm': rounded(test_recorded.norm({'': result.logits})),
  }


def kept(family: str, gradients: reference.Tensors) -> dict[str, float]:
  """L2 norms of a few tensors' gradients, drawn at random, one of each part of the network."""
  norms = {name: test_recorded.norm({'': x}) for name, x in gradients.items()}
  least = NO_GRADIENT * test_recorded.norm(gradients)
  parts = np.array_split([name for name, value in norms.items() if value > least], KEPT)
  rng = np.random.default_rng([SEED, zlib.crc32(family.encode())])
  return {name: rounded(norms[name]) for name in (str(rng.choice(part)) for part in parts)}


def rounded(value: float) -> float:
  return float(f'{value:.7g}')


def main(families: list[str]) -> None:
  import timm
  import torchvision

  known = {*timm.list_models(), *torchvision.models.list_models(), *mix_transformers()}
  header = {
    'command': test_recorded.COMMAND,
    'versions': {name: importlib.metadata.version(name) for name in LIBRARIES},
    'seed': SEED,
    'limit': LIMIT,
  }
  records = test_recorded.RECORDED['families']
  for family in families or catalog.names('models'):
    records[family] = measure(family, known)
    print(family, records[family]['variant'], records[family]['eval']['norm'], flush=True)
    test_recorded.FILE.write_text(json.dumps({**header, 'families': dict(sorted(records.items()))}, indent=1) + '\n')


if __name__ == '__main__':
  main(sys.argv[1:])
