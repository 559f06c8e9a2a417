"""The deletion test: how fast a class's probability falls while the most important positions are removed.

Petsiuk et al. 2018 (RISE, Sec. 4.3, https://arxiv.org/abs/1806.07421) remove the hottest positions first. The smaller
the area under the curve of probability over removed share, the better the heat shows what the model uses. Here:

- A position is a cell of a square grid, by default Grad-CAM's own. The control removes cells of the same grid in random
  order, because other sizes would do another kind of damage: single random pixels are noise that harms a model
  everywhere.
- Removed cells are replaced by a strong blur (sigma: 1/20 of the side). The paper's flat colour ('mean') adds sharp
  edges that the image did not have; the order that adds the most edges would then do the most damage, and scattered
  cells add the most.
- The class is the most probable one for the whole image. Ties are broken at random.

100 photographs of cats and dogs, `tlx explain deletion efficientnet_lite0 --data folder:PATH --count 100 --steps 16`:
the area is 0.076 for Grad-CAM, 0.072 for integrated gradients and 0.141 for random cells.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tlx.data import pipeline, transforms
from tlx.data.augment import to_float
from tlx.explain import pictures
from tlx.explain.attribution import gradcam, gradcam_layer, integrated_gradients
from tlx.explain.objectives import of_class
from tlx.explain.outputs import LOGITS, Explanation, check_head, look
from tlx.types import DataSource, Pretrained, TlxError, UsageError, Variables

FILLS = ('blur', 'mean')
ORDERS = {'gradcam': 'Grad-CAM', 'integrated_gradients': 'integrated gradients', 'random': 'random'}


def deletion(
  model: Pretrained,
  source: DataSource,
  *,
  layer: str | None = None,
  cells: int | None = None,
  fill: str = 'blur',
  points: int = 14,
  steps: int = 32,
  seed: int = 0,
  batch_size: int = 16,
) -> Iterator[Explanation]:
  """Computes the mean curves of Grad-CAM, integrated gradients and random order over the images of a source.

  Args:
    model: with a head.
    source: the images.
    layer: of Grad-CAM; `gradcam_layer` chooses by default.
    cells: rows and columns of the grid; by default those of the layer's map.
    fill: one of FILLS.
    points: points of each curve after its start.
    steps: of integrated gradients. Their baseline is the fill, so they explain exactly what deletion removes.
    seed: of the random order.
    batch_size: images per step.

  Yields:
    The result so far, after each batch.

  Raises:
    UsageError: if the model has no head, `layer` is not a layer with a map, or `cells` exceeds the input's pixels.
    TlxError: if no image can be read.
  """
  check_head(model)
  most = min(model.preprocess.shape)
  if cells and cells > most:
    raise UsageError(f'--cells {cells}: the model sees {most} pixels along each side; choose fewer cells')
  layer = gradcam_layer(model, layer)
  run = jax.jit(curves(model, layer, cells, fill, points, steps))
  batch_size = min(batch_size, len(source))
  batches = pipeline.eval_batches(source, batch_size=batch_size, transform=transforms.evaluation(model.preprocess))
  found = []
  for batch in batches:
    if batch['mask'].any():
      keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), batch['index'])
      found.append(np.asarray(run(model.variables, to_float(batch['image']), keys))[batch['mask']])
      yield _explanation(np.concatenate(found), len(source), {'layer': layer, 'fill': fill})
  if not found:
    raise TlxError('none of the photographs can be read')


def curves(
  model: Pretrained, layer: str, cells: int | None, fill: str, points: int, steps: int
) -> Callable[[Variables, jax.Array, jax.Array], jax.Array]:
  """Makes the function that computes the curves of a batch.

  Args:
    model: with a head.
    layer: of Grad-CAM.
    cells: rows and columns of the grid; None = those of the layer's map.
    fill: one of FILLS.
    points: points of each curve after its start.
    steps: of integrated gradients.

  Returns:
    A function (variables, pixels [b, s, s, 3], keys [b]) -> probabilities float32 [b, len(ORDERS), points + 1].
  """
  looks, heats = look(model), gradcam(model, layer)

  def run(variables: Variables, pixels: jax.Array, keys: jax.Array) -> jax.Array:
    filled = blurred(pixels) if fill == 'blur' else jnp.broadcast_to(jnp.array(model.preprocess.mean), pixels.shape)
    classes = looks(variables, pixels)[LOGITS].argmax(-1)
    heat = heats(variables, pixels, classes)
    n, side = cells or heat.shape[1], pixels.shape[1]
    parts = integrated_gradients(model, steps, baseline=filled)(variables, pixels, classes)
    place = jnp.arange(side) * n // side  # the cell of each pixel, along either axis
    sums = jax.nn.one_hot(place, n).T
    chance = jax.vmap(lambda key: jax.random.uniform(key, (n, n)))(keys)
    values = jnp.stack([jax.image.resize(heat, chance.shape, 'linear'), sums @ parts.sum(-1) @ sums.T, chance], axis=1)
    ranks = _ranks(values, chance)

    def probability(share: jax.Array) -> jax.Array:
      taken = ranks < jnp.round(share * n * n)
      masks = taken[:, :, place][:, :, :, place, None]
      shown = jnp.where(masks, filled[:, None], pixels[:, None])
      rows = jax.nn.softmax(looks(variables, shown.reshape(-1, *pixels.shape[1:]))[LOGITS])
      return of_class(rows, jnp.repeat(classes, len(ORDERS))).reshape(-1, len(ORDERS))

    return jnp.moveaxis(jax.lax.map(probability, jnp.linspace(0, 1, points + 1)), 0, -1)

  return run


def areas(found: np.ndarray) -> np.ndarray:
  """Area under each curve [..., points + 1] over shares from 0 to 1, by the trapezoidal rule.

  >>> print(areas(np.array([1.0, 0.5, 0.0])))
  0.5
  """
  return np.trapezoid(found, dx=1 / (found.shape[-1] - 1), axis=-1)


def blurred(pixels: jax.Array) -> jax.Array:
  """Blurs pixels [b, s, s, 3] by a Gaussian with sigma s / 20, normalised at the borders."""
  side = pixels.shape[1]
  distance = (jnp.arange(side)[:, None] - jnp.arange(side)) * 20 / side
  kernel = jnp.exp(-jnp.square(distance) / 2)
  kernel = kernel / kernel.sum(axis=1, keepdims=True)
  return jnp.einsum('ij,bjkc,lk->bilc', kernel, pixels, kernel)


def _ranks(values: jax.Array, chance: jax.Array) -> jax.Array:
  """Ranks the cells of each map [b, m, n, n], the highest value first; `chance` [b, n, n] breaks ties."""
  flat = values.reshape(*values.shape[:2], -1)
  ties = jnp.broadcast_to(chance.reshape(len(chance), 1, -1), flat.shape)
  return jnp.lexsort((ties, -flat)).argsort(axis=-1).reshape(values.shape)


def _explanation(found: np.ndarray, total: int, about: dict[str, Any]) -> Explanation:
  """Figures and chart from curves [n, orders, points + 1]."""
  each, mean = areas(found), found.mean(axis=0)
  area, heats = dict(zip(ORDERS, each.mean(axis=0))), list(ORDERS)[:-1]
  figures = {
    **about,
    'photographs': len(found),
    'probability': float(mean[0, 0]),
    'probability_of_nothing': float(mean[0, -1]),  # all removed; with few classes it is high, and so are all areas
    **{f'area_{name}': float(value) for name, value in area.items()},
    **{f'{name}_over_random': float(area[name] / area['random']) for name in heats},
    **{f'{name}_below_random': float((each[:, i] < each[:, -1]).mean()) for i, name in enumerate(heats)},
    'curves': dict(zip(ORDERS, mean)),
  }
  shares = np.linspace(0, 1, mean.shape[-1])
  series = {f'{text} {area[name]:.3f}': (shares, curve) for (name, text), curve in zip(ORDERS.items(), mean)}
  highest = (0, 1.05 * float(mean.max()))
  drawn = pictures.chart(series, 'share of the image removed', 'probability', within=highest)
  return Explanation(figures, {'deletion': drawn}, done=len(found), total=total)
