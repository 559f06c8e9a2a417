"""Style transfer: a photograph's content in the manner of another picture.

Gatys et al. 2016, "Image style transfer using convolutional neural networks" (CVPR): Gram matrices of some layers,
content at one, and total variation; colours kept as in Gatys et al. 2016b (https://arxiv.org/abs/1606.05897). Coarse to
fine, since the layers see little of a large picture: each size starts from what the one before it ended with.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlx.data.pixels import grey
from tlx.explain import objectives, pictures
from tlx.explain.descend import descend
from tlx.explain.seen import Explanation, Look, check_layer, check_size, look, shapes
from tlx.types import Pretrained, Variables

STYLES = 5  # layers at most, as in the paper
STRIDE = 8  # of the content layer, as in the paper
COARSEST = 128  # pixels of the longer side
COLOURS = ('style', 'luminance', 'histogram')


class Weights(NamedTuple):
  """Of the parts of the loss, of which content and style are about 1 for unlike pictures."""

  content: float = 1.0
  style: float = 100.0
  variation: float = 1.0


USUAL = Weights()


@dataclasses.dataclass(frozen=True)
class Transfer:
  """The loss: which layers, and what each part weighs."""

  look: Look
  style_layers: tuple[str, ...]
  content_layer: str
  weights: Weights

  def targets(self, variables: Variables, photo: jax.Array, manner: jax.Array) -> tuple[jax.Array, dict]:
    """The photograph's content and the other picture's Gram matrices; both pictures float [1, h, w, 3]."""
    seen = self.look(variables, manner)
    return self.look(variables, photo)[self.content_layer], {n: objectives.gram(seen[n]) for n in self.style_layers}

  def parts(self, fixed: tuple, parameters: jax.Array) -> dict[str, jax.Array]:
    """Each part, float []; fixed: variables and targets; parameters float [1, h, w, 3], or [1, h, w, 1] of grey."""
    variables, content, grams = fixed
    seen = self.look(variables, jnp.broadcast_to(parameters, (*parameters.shape[:3], 3)))
    aims = objectives.content(self.content_layer, content), objectives.style(grams), objectives.variation()
    return {name: aim(seen)[0] for name, aim in zip(Weights._fields, aims)}

  def loss(self, fixed: tuple, parameters: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return sum(getattr(self.weights, name) * part for name, part in self.parts(fixed, parameters).items())


def paper_layers(model: Pretrained) -> tuple[tuple[str, ...], str]:
  """Layers of style and of content, by the order and the shapes of the layers alone.

  Style: the first layer at each of the first five resolutions; content: the second at stride 8. Of VGG-19 these are the
  paper's conv1_1, 2_1, 3_1, 4_1 and 5_1, and conv4_2. A transformer of one resolution gives five layers evenly
  spread over its depth, and the one in the middle.
  """
  seen = shapes(model)
  maps = [name for name in model.module.backbone.names if seen[name].ndim > 2]
  stride = {name: _stride(model.preprocess.size, seen[name]) for name in maps}
  firsts = list({stride[name]: name for name in reversed(maps)}.values())[::-1][:STYLES]
  if len(firsts) < 3:
    places = np.linspace(0, len(maps) - 1, min(STYLES, len(maps)))
    return tuple(maps[round(place)] for place in places), maps[len(maps) // 2]
  near = [name for name in maps if stride[name] == STRIDE] or [maps[len(maps) // 2]]
  return tuple(firsts), near[min(1, len(near) - 1)]


def _stride(size: int, values: jax.ShapeDtypeStruct) -> int:
  """Pixels between two places of a layer, the nearest power of two: borders cost some layers a place or two."""
  side = values.shape[1] if values.ndim == 4 else values.shape[1] ** 0.5
  return 2 ** round(np.log2(size / side))


def sizes_to(model: Pretrained, size: int) -> tuple[int, ...]:
  """The longer sides, coarse to fine, each twice the one before; a model of one size gives this alone.

  Raises UsageError where the model does not take the size.
  """
  check_size(model, size)
  least = max(COARSEST, 2 * getattr(model.module.backbone.config, 'smallest', 32))
  if hasattr(model.module.backbone.config, 'size'):
    return (size,)
  return tuple(s for s in (size // 4, size // 2) if s >= least) + (size,)


def style_transfer(
  model: Pretrained,
  content: np.ndarray,
  style: np.ndarray,
  *,
  sizes: Sequence[int],
  steps: int = 100,
  style_layers: Sequence[str] = (),
  content_layer: str | None = None,
  weights: Weights = USUAL,
  colours: str = 'style',
  optimizer: str = 'lbfgs',
  seed: int = 0,
  every: int = 20,
) -> Iterator[Explanation]:
  """Yields the picture so far; content and style are uint8 [h, w, 3] of any size.

  Args:
    sizes: longer sides, coarse to fine. steps: at each of them.
    style_layers, content_layer: those of `paper_layers` by default. Raises UsageError for what is no layer.
    colours: 'style' takes them from there; 'luminance' transfers only that, and keeps the content's colours;
      'histogram' gives the style the mean and covariance of the content's colours first.
    optimizer: 'lbfgs' or 'adam'.
    seed: of the shuffled content that the figures name beside the picture's.
  """
  usual = paper_layers(model)
  layers = tuple(check_layer(model.module, name) for name in style_layers) or usual[0]
  job = Transfer(look(model), layers, check_layer(model.module, content_layer or usual[1]), weights)
  targets, parts = jax.jit(job.targets), jax.jit(job.parts)
  result, losses, shown = None, [], []
  for turn, size in enumerate(sizes):
    original, manner = (_at(picture, size) for picture in (content, style))
    photo, manner = _coloured(original, manner, colours)
    fixed = model.variables, *targets(model.variables, photo, manner)
    references = {'start': photo, 'shuffled': shuffled(np.random.default_rng(seed), photo)}
    references = {name: parts(fixed, picture) for name, picture in references.items()}
    start = (
      photo if result is None else jnp.clip(jax.image.resize(result, photo.shape[:3] + result.shape[3:], 'cubic'), 0, 1)
    )
    start = start[..., :1] if colours == 'luminance' else start
    work = descend(
      job.loss, fixed, start, _optimizer(optimizer, steps), steps, key=jax.random.key(seed), project=_clip, every=every
    )
    for found in work:
      result = found.best
      picture = pictures.to_bytes(recoloured(result, original) if colours == 'luminance' else result)[0]
      figures = {name: float(value) for name, value in parts(fixed, result).items()}
      figures['style_of_content'] = float(references['start']['style'])
      figures['content_of_shuffled'] = float(references['shuffled']['content'])
      figures |= {'style_layers': layers, 'content_layer': job.content_layer, 'sizes': list(sizes)}
      figures['losses'] = {**dict(zip(map(str, sizes), losses)), str(size): np.asarray(found.losses).tolist()}
      now = _pictures(original, style, [*shown, picture], figures['losses'])
      yield Explanation(figures, now, done=turn * steps + found.step, total=len(sizes) * steps)
      shown = [*shown, picture]
    losses.append(figures['losses'][str(size)])


def matched(style: np.ndarray, content: np.ndarray) -> np.ndarray:
  """The style's pixels, float [..., 3], with the mean and the covariance of the content's; clipped to [0, 1].

  Gatys et al. 2016b, Sec. 3.1: the linear map by the square roots of both covariances.
  """
  (mean, spread), (wanted, target) = _moments(style), _moments(content)
  matrix = _power(target, 0.5) @ _power(spread, -0.5)
  return np.clip((style - mean) @ matrix.T + wanted, 0, 1).astype(np.float32)


def recoloured(luminance, photo: np.ndarray) -> np.ndarray:
  """A photograph float [..., 3] with that luminance [..., 1]: its other two components of YIQ stay."""
  return np.asarray(photo + (luminance - grey(photo)))


def shuffled(rng: np.random.Generator, photo: np.ndarray, cells: int = 8) -> np.ndarray:
  """A picture [1, h, w, c] with the cells of a grid in a random order: its textures without its content."""
  _, height, width, depth = photo.shape
  h, w = height // cells, width // cells
  grid = photo[0, : h * cells, : w * cells].reshape(cells, h, cells, w, depth).swapaxes(1, 2)
  grid = rng.permutation(grid.reshape(cells**2, h, w, depth)).reshape(cells, cells, h, w, depth).swapaxes(1, 2)
  mixed = photo.copy()  # what the cells leave over at two borders stays
  mixed[0, : h * cells, : w * cells] = grid.reshape(h * cells, w * cells, depth)
  return mixed


def _coloured(photo: np.ndarray, manner: np.ndarray, colours: str) -> tuple[np.ndarray, np.ndarray]:
  """What is looked at: the pictures, the style in the content's colours, or both in grey of the content's spread."""
  if colours == 'histogram':
    return photo, matched(manner, photo)
  if colours == 'style':
    return photo, manner
  light, other = (np.asarray(grey(picture)) for picture in (photo, manner))
  other = np.clip((other - other.mean()) * light.std() / max(other.std(), 1e-6) + light.mean(), 0, 1)
  return tuple(np.repeat(values, 3, axis=-1) for values in (light, other))


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  rows = np.asarray(pixels, np.float64).reshape(-1, 3)
  return rows.mean(0), np.cov(rows, rowvar=False) + 1e-6 * np.eye(3)  # a grey picture has no spread in two of them


def _power(matrix: np.ndarray, power: float) -> np.ndarray:
  """Of a symmetric positive definite matrix."""
  values, vectors = np.linalg.eigh(matrix)
  return vectors * values**power @ vectors.T


def _at(picture: np.ndarray, size: int) -> np.ndarray:
  """uint8 [h, w, 3] -> float32 [1, h', w', 3] of that longer side, at least a pixel of the other."""
  height, width = (max(1, round(side * size / max(picture.shape[:2]))) for side in picture.shape[:2])
  return pictures.to_floats(pictures.resized(picture, height, width))[None]


def _clip(pixels: jax.Array) -> jax.Array:
  return jnp.clip(pixels, 0, 1)


def _optimizer(name: str, steps: int) -> optax.GradientTransformation:
  return optax.lbfgs() if name == 'lbfgs' else optax.adam(optax.cosine_decay_schedule(0.03, steps))


def _pictures(content: np.ndarray, style: np.ndarray, shown: Sequence[np.ndarray], losses: Mapping[str, list]) -> dict:
  """The picture, how it came about, and the loss at each step of each size."""
  side = 224
  tile = lambda picture: pictures.fitted(picture, side)
  progress = pictures.grid(
    [tile(p) for p in (pictures.to_bytes(content)[0], style, *shown)], ['content', 'style'], columns=4
  )
  return {'picture': shown[-1], 'progress': progress, 'loss': pictures.chart({f'{n} px': v for n, v in losses.items()})}
