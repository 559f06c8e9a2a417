"""Style transfer: a photograph's content in the manner of another picture.

Gatys et al. 2016, "Image style transfer using convolutional neural networks" (CVPR): Gram matrices of some layers,
content at one, and total variation; colours kept as in Gatys et al. 2016b (https://arxiv.org/abs/1606.05897). Coarse to
fine, since the layers see little of a large picture: each size starts from what the one before it ended with.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tlx.data.pixels import grey
from tlx.explain import objectives, pictures
from tlx.explain.descend import descend
from tlx.explain.outputs import PIXELS, Explanation, Look, Seen, check_layer, check_size, look, shapes
from tlx.types import Pretrained, Variables

LAYERS = 5  # of style, spread over the depth of a backbone of one resolution
COARSE, MIDDLE = 16, 8  # strides of the paper's last style layer and of its content layer
FRAME = 16  # pixels around the picture that are cut off in the end, with what the layers' padding brings about there
COARSEST, USUAL_SIZE = 128, 512  # pixels of the longer side
TILE = 256  # pixels, of a picture on the sheet of the progress


class Weights(NamedTuple):
  """Of the parts of the loss, of which content and style are about 1 for unlike pictures."""

  content: float = 1.0
  style: float = 1000.0
  variation: float = 3.0


USUAL = Weights()


@dataclasses.dataclass(frozen=True)
class Transfer:
  """The loss: which layers, and what each part weighs."""

  look: Look
  style_layers: tuple[str, ...]
  content_layer: str
  weights: Weights
  frame: int = FRAME  # pixels at the borders of a map whose places are no part of the style: padding marks them

  def textures(self, seen: Seen) -> dict[str, jax.Array]:
    """The style's layers without their borders; a transformer's tokens are as they are."""
    return {name: _inner(seen[name], self.frame / seen[PIXELS].shape[1]) for name in self.style_layers}

  def targets(self, variables: Variables, photo: jax.Array, manner: jax.Array) -> tuple[jax.Array, dict]:
    """The photograph's content and the other picture's Gram matrices; both pictures float [1, h, w, 3]."""
    textures = self.textures(self.look(variables, manner))
    return self.look(variables, photo)[self.content_layer], {n: objectives.gram(x) for n, x in textures.items()}

  def parts(self, fixed: tuple, parameters: jax.Array) -> dict[str, jax.Array]:
    """Each part, float []; fixed: variables and targets; parameters float [1, h, w, 3], or [1, h, w, 1] of grey."""
    variables, content, grams = fixed
    seen = self.look(variables, jnp.broadcast_to(parameters, (*parameters.shape[:3], 3)))
    return {
      'content': objectives.content(self.content_layer, content)(seen)[0],
      'style': objectives.style(grams)(self.textures(seen))[0],
      'variation': objectives.variation()(seen)[0],
    }

  def loss(self, fixed: tuple, parameters: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return sum(getattr(self.weights, name) * part for name, part in self.parts(fixed, parameters).items())


def paper_layers(model: Pretrained) -> tuple[tuple[str, ...], str]:
  """Layers of style and of content, by the order and the shapes of the layers alone.

  Style: the first layer at each resolution down to stride 16; content: the second at stride 8. Of VGG-19 these are the
  paper's conv1_1, 2_1, 3_1, 4_1 and 5_1, and conv4_2. A transformer of one resolution gives five layers evenly spread
  over its depth, and the one in the middle.
  """
  seen = shapes(model)
  maps = [name for name in model.module.backbone.names if seen[name].ndim > 2]
  stride = {name: _stride(model.preprocess.size, seen[name]) for name in maps}
  firsts = list({stride[name]: name for name in reversed(maps) if stride[name] <= COARSE}.values())[::-1]
  if len(set(stride.values())) < 3:
    places = np.linspace(0, len(maps) - 1, min(LAYERS, len(maps)))
    return tuple(maps[round(place)] for place in places), maps[len(maps) // 2]
  near = [name for name in maps if stride[name] == MIDDLE] or [maps[len(maps) // 2]]
  return tuple(firsts), near[min(1, len(near) - 1)]


def _stride(size: int, values: jax.ShapeDtypeStruct) -> int:
  """Pixels between two places of a layer, the nearest power of two: borders cost some layers a place or two."""
  side = values.shape[1] if values.ndim == 4 else values.shape[1] ** 0.5
  return 2 ** round(np.log2(size / side))


def sizes_to(model: Pretrained, size: int | None) -> tuple[int, ...]:
  """The longer sides, coarse to fine, each twice the one before; a model of one size gives this alone.

  Raises UsageError where the model does not take the size.
  """
  config = model.module.backbone.config
  size = check_size(model, (config.size or USUAL_SIZE) if size is None else size)
  if config.size:
    return (size,)
  least = max(COARSEST, 2 * config.smallest)
  return (*(s for s in (size // 4, size // 2) if s >= least), size)


def style_transfer(
  model: Pretrained,
  content: np.ndarray,
  style: np.ndarray,
  *,
  sizes: Sequence[int],
  steps: int = 80,
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
  usual, fixed_size = paper_layers(model), model.module.backbone.config.size is not None
  layers = tuple(check_layer(model.module, name) for name in style_layers) or usual[0]
  content_layer = check_layer(model.module, content_layer or usual[1])
  job = Transfer(look(model), layers, content_layer, weights, 0 if fixed_size else FRAME)
  content, style = (_square(picture) if fixed_size else picture for picture in (content, style))
  result, losses, shown = None, {}, []
  for size in sizes:
    original, manner = (_at(picture, size) for picture in (content, style))
    photo, manner = _coloured(original, manner, colours)
    frame = min(job.frame, *(side - 1 for side in photo.shape[1:3]))
    targets, parts = jax.jit(job.targets), jax.jit(job.parts)
    aim = model.variables, *targets(model.variables, photo, manner)  # of the picture as its file holds it
    fixed = model.variables, *targets(model.variables, _framed(photo, frame), manner)
    references = {
      'style_of_content': parts(aim, photo)['style'],
      'content_of_shuffled': parts(aim, shuffled(np.random.default_rng(seed), photo))['content'],
    }
    start = _framed(_enlarged(photo[..., :1] if colours == 'luminance' else photo, result), frame)
    method, key = _optimizer(optimizer, steps), jax.random.key(seed)
    for found in descend(job.loss, fixed, start, method, steps, key=key, project=_clipped, every=every):
      result = found.best[:, frame : frame + photo.shape[1], frame : frame + photo.shape[2]]
      shown = [*shown, pictures.to_bytes(recoloured(result, original) if colours == 'luminance' else result)[0]]
      losses = {**losses, str(size): np.asarray(found.losses).tolist()}
      now = parts(aim, jnp.broadcast_to(result, photo.shape))
      figures = {name: float(value) for name, value in {**now, **references}.items()}
      figures |= {'style_layers': layers, 'content_layer': content_layer, 'losses': losses}
      done = sum(map(len, losses.values()))
      yield Explanation(figures, _pictures(original, style, shown, losses), done=done, total=len(sizes) * steps)


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


def _square(picture: np.ndarray) -> np.ndarray:
  """The middle of a picture uint8 [h, w, 3]."""
  height, width = picture.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return picture[top : top + side, left : left + side]


def _enlarged(start: np.ndarray, result: jax.Array | None) -> jax.Array:
  """The result of the size before, if any, at the size of the start."""
  return _clipped(jnp.asarray(start) if result is None else jax.image.resize(result, start.shape, 'cubic'))


def _inner(values: jax.Array, share: float) -> jax.Array:
  """A map [b, h, w, d] without that share of its height at each border, but at least a place of it."""
  if values.ndim != 4:
    return values
  cut = min(math.ceil(share * values.shape[1]), *((side - 1) // 2 for side in values.shape[1:3]))
  return values[:, cut : values.shape[1] - cut, cut : values.shape[2] - cut]


def _framed(pixels, frame: int) -> jax.Array:
  """With so many pixels of its mirror image around it."""
  return jnp.pad(pixels, [(0, 0), (frame, frame), (frame, frame), (0, 0)], 'reflect')


def _clipped(pixels: jax.Array) -> jax.Array:
  return jnp.clip(pixels, 0, 1)


def _optimizer(name: str, steps: int) -> optax.GradientTransformation:
  return optax.lbfgs() if name == 'lbfgs' else optax.adam(optax.cosine_decay_schedule(0.02, steps))


def _pictures(content: np.ndarray, style: np.ndarray, shown: Sequence[np.ndarray], losses: Mapping[str, list]) -> dict:
  """The picture, how it came about, and the loss at each step of each size."""
  last = shown[-1]
  height, width = (max(1, round(side * TILE / max(last.shape[:2]))) for side in last.shape[:2])
  tiles = [pictures.fitted(picture, height, width) for picture in (pictures.to_bytes(content)[0], style, *shown)]
  texts = ['content', 'style', *(f'{max(picture.shape)} pixels' for picture in shown)]
  lines = {f'{size} pixels': (range(1, len(values) + 1), values) for size, values in losses.items()}
  chart = pictures.chart(lines, 'step', 'loss', log=True)
  return {'picture': last, 'progress': pictures.grid(tiles, texts, columns=4), 'loss': chart}
