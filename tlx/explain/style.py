"""Style transfer: the content of one image in the style of another.

Gatys et al. 2016, "Image style transfer using convolutional neural networks" (CVPR): Gram matrices of several layers,
the content of one layer, and total variation. Colours can be preserved as in Gatys et al. 2016b
(https://arxiv.org/abs/1606.05897). It works from coarse to fine, because the layers see only a small part of a large
image: each size starts from the result of the size before.
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

LAYERS = 5  # number of style layers in a backbone with one resolution
COARSE, MIDDLE = 16, 8  # strides of the paper's last style layer and of its content layer, pixels
FRAME = 16  # margin around the picture, pixels; cut off at the end, because the layers' padding causes artefacts there
COARSEST, USUAL_SIZE = 128, 512  # pixels of the longer side
TILE = 256  # longer side of a picture on the progress sheet, pixels


class Weights(NamedTuple):
  """Weights of the parts of the loss. Content and style are about 1 for two unlike images."""

  content: float = 1.0
  style: float = 1000.0
  variation: float = 3.0


USUAL = Weights()


@dataclasses.dataclass(frozen=True)
class Transfer:
  """The loss: which layers it reads, and the weight of each part."""

  look: Look
  style_layers: tuple[str, ...]
  content_layer: str
  weights: Weights
  frame: int = FRAME  # border that the style ignores, because padding affects it there, pixels

  def textures(self, seen: Seen) -> dict[str, jax.Array]:
    """The style layers without their borders. A transformer's tokens stay as they are."""
    return {name: _inner(seen[name], self.frame / seen[PIXELS].shape[1]) for name in self.style_layers}

  def targets(self, variables: Variables, photo: jax.Array, manner: jax.Array) -> tuple[jax.Array, dict]:
    """The content of `photo` and the Gram matrices of `manner`; both are pixels float [1, h, w, 3]."""
    textures = self.textures(self.look(variables, manner))
    return self.look(variables, photo)[self.content_layer], {n: objectives.gram(x) for n, x in textures.items()}

  def parts(self, fixed: tuple, parameters: jax.Array) -> dict[str, jax.Array]:
    """The parts of the loss.

    Args:
      fixed: variables and `targets`.
      parameters: pixels float [1, h, w, 3], or grey [1, h, w, 1].

    Returns:
      Each part by name, float [].
    """
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
  """Finds the style layers and the content layer by the order and the shapes of the layers alone.

  Style: the first layer at each resolution down to stride 16. Content: the second layer at stride 8. In VGG-19 these
  are the paper's conv1_1, 2_1, 3_1, 4_1 and 5_1, and conv4_2. A transformer with one resolution gives five layers,
  evenly spaced over its depth, and the middle one.

  Returns:
    (style layers, content layer).
  """
  seen = shapes(model)
  maps = [name for name in model.module.backbone.names if seen[name].ndim > 2]
  stride = {name: _stride(model.preprocess.shape[0], seen[name]) for name in maps}
  firsts = list({stride[name]: name for name in reversed(maps) if stride[name] <= COARSE}.values())[::-1]
  if len(set(stride.values())) < 3:
    places = np.linspace(0, len(maps) - 1, min(LAYERS, len(maps)))
    return tuple(maps[round(place)] for place in places), maps[len(maps) // 2]
  near = [name for name in maps if stride[name] == MIDDLE] or [maps[len(maps) // 2]]
  return tuple(firsts), near[min(1, len(near) - 1)]


def _stride(size: int, values: jax.ShapeDtypeStruct) -> int:
  """Pixels between two positions of a layer: the nearest power of two, as missing padding costs a position or two."""
  side = values.shape[1] if values.ndim == 4 else values.shape[1] ** 0.5
  return 2 ** round(np.log2(size / side))


def sizes_to(model: Pretrained, size: int | None) -> tuple[int, ...]:
  """The sizes of the longer side, from coarse to fine, each twice the one before.

  Args:
    model: any backbone.
    size: of the result, pixels; None = the model's only size, or else 512.

  Returns:
    Sizes in pixels; only one for a model with a fixed input size.

  Raises:
    UsageError: if the model does not take the size.
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
  """Makes a picture with the content of one image and the style of another.

  Args:
    model: any backbone.
    content: uint8 [h, w, 3] of any size.
    style: uint8 [h, w, 3] of any size.
    sizes: longer sides in pixels, from coarse to fine.
    steps: gradient steps at each size.
    style_layers: names; those of `paper_layers` by default.
    content_layer: a name; that of `paper_layers` by default.
    weights: of the parts of the loss.
    colours: 'style' takes the colours of the style. 'luminance' transfers brightness only and keeps the content's
      colours. 'histogram' first gives the style the mean and covariance of the content's colours.
    optimizer: 'lbfgs' or 'adam'.
    seed: shuffles the content for the reference figure `content_of_shuffled`.
    every: steps between two results.

  Yields:
    The result so far.

  Raises:
    UsageError: for an unknown layer.
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
    aim = model.variables, *targets(model.variables, photo, manner)  # without the margin, for the figures
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
  """Gives the style's pixels, float [..., 3], the mean and covariance of the content's, and clips them to [0, 1].

  It is the linear map by the square roots of both covariances (Gatys et al. 2016b, Sec. 3.1).
  """
  (mean, spread), (wanted, target) = _moments(style), _moments(content)
  matrix = _power(target, 0.5) @ _power(spread, -0.5)
  return np.clip((style - mean) @ matrix.T + wanted, 0, 1).astype(np.float32)


def recoloured(luminance, photo: np.ndarray) -> np.ndarray:
  """Replaces the luminance [..., 1] of a photo float [..., 3]; its other two YIQ components stay."""
  return np.asarray(photo + (luminance - grey(photo)))


def shuffled(rng: np.random.Generator, photo: np.ndarray, cells: int = 8) -> np.ndarray:
  """Shuffles the cells of a grid in an image [1, h, w, c]. Its textures stay, its content is lost."""
  _, height, width, depth = photo.shape
  h, w = height // cells, width // cells
  grid = photo[0, : h * cells, : w * cells].reshape(cells, h, cells, w, depth).swapaxes(1, 2)
  grid = rng.permutation(grid.reshape(cells**2, h, w, depth)).reshape(cells, cells, h, w, depth).swapaxes(1, 2)
  mixed = photo.copy()  # pixels beyond the last whole cell stay
  mixed[0, : h * cells, : w * cells] = grid.reshape(h * cells, w * cells, depth)
  return mixed


def _coloured(photo: np.ndarray, manner: np.ndarray, colours: str) -> tuple[np.ndarray, np.ndarray]:
  """Prepares the pair: unchanged, the style in the content's colours, or both in grey with the content's contrast."""
  if colours == 'histogram':
    return photo, matched(manner, photo)
  if colours == 'style':
    return photo, manner
  light, other = (np.asarray(grey(picture)) for picture in (photo, manner))
  other = np.clip((other - other.mean()) * light.std() / max(other.std(), 1e-6) + light.mean(), 0, 1)
  return tuple(np.repeat(values, 3, axis=-1) for values in (light, other))


def _moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  rows = np.asarray(pixels, np.float64).reshape(-1, 3)
  return rows.mean(0), np.cov(rows, rowvar=False) + 1e-6 * np.eye(3)  # a grey picture has no variance in two components


def _power(matrix: np.ndarray, power: float) -> np.ndarray:
  """A power of a symmetric positive definite matrix."""
  values, vectors = np.linalg.eigh(matrix)
  return vectors * values**power @ vectors.T


def _at(picture: np.ndarray, size: int) -> np.ndarray:
  """Resizes uint8 [h, w, 3] to float32 [1, h', w', 3] with that longer side; the shorter one is at least one pixel."""
  height, width = (max(1, round(side * size / max(picture.shape[:2]))) for side in picture.shape[:2])
  return pictures.to_floats(pictures.resized(picture, height, width))[None]


def _square(picture: np.ndarray) -> np.ndarray:
  """Crops the central square of a picture uint8 [h, w, 3]."""
  height, width = picture.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return picture[top : top + side, left : left + side]


def _enlarged(start: np.ndarray, result: jax.Array | None) -> jax.Array:
  """The result of the previous size, resized to the start's size; the start itself at the first size."""
  return _clipped(jnp.asarray(start) if result is None else jax.image.resize(result, start.shape, 'cubic'))


def _inner(values: jax.Array, share: float) -> jax.Array:
  """Cuts a share of the height off each border of a map [b, h, w, d]; at least one position remains."""
  if values.ndim != 4:
    return values
  cut = min(math.ceil(share * values.shape[1]), *((side - 1) // 2 for side in values.shape[1:3]))
  return values[:, cut : values.shape[1] - cut, cut : values.shape[2] - cut]


def _framed(pixels, frame: int) -> jax.Array:
  """Pads with a reflection of `frame` pixels."""
  return jnp.pad(pixels, [(0, 0), (frame, frame), (frame, frame), (0, 0)], 'reflect')


def _clipped(pixels: jax.Array) -> jax.Array:
  return jnp.clip(pixels, 0, 1)


def _optimizer(name: str, steps: int) -> optax.GradientTransformation:
  return optax.lbfgs() if name == 'lbfgs' else optax.adam(optax.cosine_decay_schedule(0.02, steps))


def _pictures(content: np.ndarray, style: np.ndarray, shown: Sequence[np.ndarray], losses: Mapping[str, list]) -> dict:
  """The picture, a sheet of its progress, and the loss at each step of each size."""
  last = shown[-1]
  height, width = (max(1, round(side * TILE / max(last.shape[:2]))) for side in last.shape[:2])
  tiles = [pictures.fitted(picture, height, width) for picture in (pictures.to_bytes(content)[0], style, *shown)]
  texts = ['content', 'style', *(f'{max(picture.shape)} pixels' for picture in shown)]
  lines = {f'{size} pixels': (range(1, len(values) + 1), values) for size, values in losses.items()}
  chart = pictures.chart(lines, 'step', 'loss', log=True)
  return {'picture': last, 'progress': pictures.grid(tiles, texts, columns=4), 'loss': chart}
