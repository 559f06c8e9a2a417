"""Feature maps: the output of each channel of a named layer for one image."""

from collections.abc import Sequence

import jax
import numpy as np

from tlx.explain import pictures
from tlx.explain.outputs import Explanation, as_map, check_layer, look
from tlx.types import Pretrained

TILE = 112  # height and width of one channel's map in the grid, pixels


def feature_maps(model: Pretrained, picture: np.ndarray, layers: Sequence[str] = (), most: int = 16) -> Explanation:
  """Draws a grid for each layer: the image, then the channels in descending order of mean magnitude.

  Args:
    model: any backbone.
    picture: uint8 [s, s, 3], at the model's input size.
    layers: names; all layers by default.
    most: channels of each layer.

  Returns:
    The figures, and one picture per layer.

  Raises:
    UsageError: if there is no such layer.
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
      'dead': int((activity == 0).sum()),  # channels that are zero everywhere
    }
  return Explanation({'layers': figures}, grids)


def _tile(values: np.ndarray) -> np.ndarray:
  return pictures.resized(pictures.coloured(pictures.spread(values)), TILE, TILE, smooth=False)
