"""Feature maps: what each channel of a named layer answers to a photograph."""

from collections.abc import Sequence

import jax
import numpy as np

from tlx.explain import pictures
from tlx.explain.outputs import Explanation, as_map, check_layer, look
from tlx.types import Pretrained

TILE = 112  # pixels, of one channel's map


def feature_maps(model: Pretrained, picture: np.ndarray, layers: Sequence[str] = (), most: int = 16) -> Explanation:
  """A grid for each layer: the photograph, then the channels with the highest mean magnitude, the most active first.

  picture: uint8 [s, s, 3], as the model sees it. layers: all by default. Raises UsageError for what is no layer.
  """
  names = [check_layer(model.module, name) for name in layers] or model.module.backbone.names
  seen = jax.jit(look(model))(model.variables, pictures.to_floats(picture)[None])
  grids, figures = {}, {}
  photograph = pictures.resized(picture, TILE, TILE)
  for name in names:
    maps = np.asarray(as_map(model.module, seen[name])[0], np.float32)
    activity = np.abs(maps).mean((0, 1))
    order = np.argsort(-activity, kind='stable')[:most]
    tiles = [_tile(maps[..., channel]) for channel in order]
    texts = [name, *(f'channel {c}' for c in order)]
    grids[name] = pictures.grid([photograph, *tiles], texts, columns=6)
    figures[name] = {
      'shape': maps.shape,
      'channels': order,
      'activity': activity[order],
      'dead': int((activity == 0).sum()),  # channels that answer nothing at all
    }
  return Explanation({'layers': figures}, grids)


def _tile(values: np.ndarray) -> np.ndarray:
  return pictures.resized(pictures.coloured(pictures.spread(values)), TILE, TILE, smooth=False)
