"""A map of a data set: its features in two dimensions, where similar images lie close together."""

import base64
import colorsys
import importlib.util
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from tlx.data.augment import to_float
from tlx.explain import pictures
from tlx.explain.outputs import LOGITS, Explanation, check_picture, look
from tlx.nn.model import POOLED
from tlx.report import html
from tlx.types import Batch, Pretrained, TlxError, UsageError

TILE, SHEET = 64, 32  # height and width of a thumbnail, pixels; thumbnails in a row of their common sheet
SIDE = 900  # height and width of the picture, pixels
NEIGHBOURS = 15  # that the figures compare
FEWEST = 4  # minimum number of images
# Safe for colour-blind readers (Okabe and Ito 2008, https://jfly.uni-koeln.de/color); their black is left out.
COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))


class Points(NamedTuple):
  """The examples to draw, one per row."""

  features: np.ndarray  # float32 [n, d], of L2 norm 1
  labels: np.ndarray  # int32 [n]
  predictions: np.ndarray  # int32 [n]
  confidence: np.ndarray  # float32 [n]
  index: np.ndarray  # int32 [n], position in the split
  thumbnails: np.ndarray  # uint8 [n, TILE, TILE, 3]


def data_map(
  model: Pretrained, batches: Iterable[Batch], names: Sequence[str], *, total: int, seed: int = 0
) -> Iterator[Explanation]:
  """Draws a page that zooms, and a picture: first with PCA, then with t-SNE (van der Maaten and Hinton 2008).

  The figures hold:

  - `neighbours_agree`: the share of examples whose nearest 15 neighbours vote for their label, with a vote of 1 / rank
    each; in the features (by cosine) and on each map.
  - `trustworthiness` of each map (Venna and Kaski 2001): 1 if all neighbours on the map are neighbours in the features.

  Args:
    model: with a head.
    batches: from `pipeline.eval_batches`.
    names: class names of the data set. If the model has the same, the map marks mistakes.
    total: number of batches.
    seed: of PCA and t-SNE.

  Yields:
    The result so far, after each batch and after each map.

  Raises:
    TlxError: if scikit-learn is not installed.
    UsageError: for fewer than 4 images, and for a model whose outputs are not for whole images.
  """
  if importlib.util.find_spec('sklearn') is None:
    raise TlxError('a map needs scikit-learn; run: pip install scikit-learn')
  check_picture(model)
  parts = []
  for part in _parts(model, batches):
    parts.append(part)
    yield Explanation({'images': sum(len(p.labels) for p in parts)}, done=len(parts), total=total + 2)
  points = Points(*map(np.concatenate, zip(*parts)))
  if len(points.labels) < FEWEST:
    raise UsageError(f'{len(points.labels)} images are too few for a map; it needs at least {FEWEST}')
  points = points._replace(features=points.features / np.linalg.norm(points.features, axis=1, keepdims=True))
  known = list(names) == list(model.class_names)
  wrong = points.predictions != points.labels if known else np.zeros(len(points.labels), bool)
  figures: dict[str, Any] = {
    'images': len(points.labels),
    'neighbours_agree': _agreement(points.features, points.labels),
  }
  if known:
    figures |= {'accuracy': float(1 - wrong.mean()), 'mistakes': int(wrong.sum())}
  places: dict[str, np.ndarray] = {}
  for count, (name, project) in enumerate({'pca': _pca, 'tsne': _tsne}.items(), 1):
    places[name], more = project(points.features, seed)
    figures[name] = {**more, **_faithful(points, places[name])}
    found = {'map': _picture(points, places[name], names, wrong)}
    yield Explanation(dict(figures), found, {'map': _page(points, places, names, known)}, total + count, total + 2)


def _parts(model: Pretrained, batches: Iterable[Batch]) -> Iterator[Points]:
  @jax.jit
  def see(variables, images):
    seen = look(model)(variables, to_float(images))
    return seen[POOLED], jax.nn.softmax(seen[LOGITS])

  for batch in batches:
    pooled, probabilities = map(np.asarray, see(model.variables, batch['image']))
    tiles = np.stack([pictures.resized(image, TILE, TILE) for image in batch['image']])
    columns = pooled, batch['target']['label'], probabilities.argmax(1), probabilities.max(1), batch['index'], tiles
    yield Points(*(column[batch['mask']] for column in columns))


def _pca(features: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
  from sklearn.decomposition import PCA

  fitted = PCA(2, random_state=seed).fit(features)
  return fitted.transform(features), {'explained_variance': float(fitted.explained_variance_ratio_.sum())}


def _tsne(features: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  components = min(50, *features.shape)
  reduced = PCA(components, random_state=seed).fit_transform(features)
  perplexity = min(30.0, (len(features) - 1) / 3)
  fitted = TSNE(2, perplexity=perplexity, init='pca', random_state=seed)
  return fitted.fit_transform(reduced), {'perplexity': perplexity, 'divergence': float(fitted.kl_divergence_)}


def _faithful(points: Points, places: np.ndarray) -> dict[str, float]:
  from sklearn.manifold import trustworthiness

  count = min(NEIGHBOURS, (len(places) - 1) // 2)
  return {
    'neighbours_agree': _agreement(places, points.labels),
    'trustworthiness': float(trustworthiness(points.features, places, n_neighbors=count)),
  }


def _agreement(values: np.ndarray, labels: np.ndarray) -> float:
  """Share of examples whose nearest neighbours vote for their label."""
  from sklearn.neighbors import NearestNeighbors

  count = min(NEIGHBOURS, len(values) - 1)
  near = NearestNeighbors(n_neighbors=count).fit(values).kneighbors(return_distance=False)
  votes = np.zeros((len(values), labels.max() + 1))
  np.add.at(votes, (np.arange(len(values))[:, None], labels[near]), 1 / np.arange(1, count + 1))
  return float((votes.argmax(1) == labels).mean())


def colour(index: int) -> tuple[int, int, int]:
  """The colour of a class, RGB in 0 to 255."""
  if index < len(COLOURS):
    return COLOURS[index]
  hue = (index * 0.618034) % 1  # the golden ratio spreads any number of hues evenly
  return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.35 + 0.25 * (index % 2), 0.7))


def _unit(places: np.ndarray) -> np.ndarray:
  """Scales both axes by one factor into [0, 1], centred at 0.5."""
  low, high = places.min(0), places.max(0)
  return 0.5 + (places - (low + high) / 2) / max((high - low).max(), 1e-12)


def _picture(points: Points, places: np.ndarray, names: Sequence[str], wrong: np.ndarray) -> np.ndarray:
  """The map as thumbnails with a frame in the colour of their class, and a legend.

  Mistakes lie on top and have a second frame in the colour of the predicted class.
  """
  side = 28
  sheet = np.full((SIDE, SIDE, 3), 255, np.uint8)
  corners = np.rint(_unit(places) * (SIDE - side)).astype(int)
  for i in np.argsort(wrong, kind='stable'):
    frame = np.full((side, side, 3), colour(points.labels[i]), np.uint8)
    if wrong[i]:
      frame[3:-3, 3:-3] = colour(points.predictions[i])
    edge = 6 if wrong[i] else 3
    frame[edge:-edge, edge:-edge] = pictures.resized(points.thumbnails[i], side - 2 * edge, side - 2 * edge)
    x, y = corners[i]
    sheet[y : y + side, x : x + side] = frame
  return np.concatenate([sheet, pictures.legend(names, [colour(i) for i in range(len(names))], SIDE)], 1)


def _page(points: Points, places: dict[str, np.ndarray], names: Sequence[str], known: bool) -> str:
  data = {
    'tile': TILE,
    'columns': SHEET,
    'names': list(names),
    'colours': ['#{:02x}{:02x}{:02x}'.format(*colour(i)) for i in range(len(names))],
    'label': points.labels.tolist(),
    'prediction': points.predictions.tolist() if known else None,
    'confidence': points.confidence.round(4).tolist() if known else None,
    'index': points.index.tolist(),
    'places': {name: np.round(_unit(each), 5).tolist() for name, each in places.items()},
  }
  context = {'data': data, 'sheet': _sheet(points.thumbnails), 'count': len(points.labels), 'known': known}
  return html.render('tlx.explain', 'map.html.j2', 'map.js.j2', context)


def _sheet(thumbnails: np.ndarray) -> str:
  """All thumbnails as one JPEG in a data URL."""
  rows = -(-len(thumbnails) // SHEET)
  padded = np.zeros((rows * SHEET, *thumbnails.shape[1:]), np.uint8)
  padded[: len(thumbnails)] = thumbnails
  tiles = padded.reshape(rows, SHEET, TILE, TILE, 3).swapaxes(1, 2).reshape(rows * TILE, SHEET * TILE, 3)
  encoded = io.BytesIO()
  Image.fromarray(tiles).save(encoded, 'JPEG', quality=80)
  return 'data:image/jpeg;base64,' + base64.b64encode(encoded.getvalue()).decode()
