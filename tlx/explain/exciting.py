"""The images of a data set that activate the channels of a layer most, and where in the image they do.

The activation of a channel is its maximum over all positions (Zeiler & Fergus 2014, Sec. 4,
https://arxiv.org/abs/1311.2901). While batches stream, only the best so far are kept, and no features.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tlx.data import decode, pipeline, transforms
from tlx.data.augment import to_float
from tlx.explain import pictures
from tlx.explain.outputs import Explanation, as_map, check_layer, look
from tlx.types import DataSource, Pretrained, TlxError, UsageError

TILE = 112  # height and width of one image in the sheet, pixels


class Best(NamedTuple):
  """Statistics of `count` images for each of d channels, and the k images with the highest activation, in order."""

  count: int
  total: np.ndarray  # float64 [d]
  squares: np.ndarray  # float64 [d]
  values: np.ndarray  # float32 [<= k, d]
  indices: np.ndarray  # int32 [<= k, d], positions in the data set

  @classmethod
  def none(cls, channels: int) -> 'Best':
    return cls(0, *np.zeros((2, channels)), np.zeros((0, channels), np.float32), np.zeros((0, channels), np.int32))

  def merge(self, peaks: np.ndarray, index: np.ndarray, k: int) -> 'Best':
    """Adds images with maxima `peaks` float32 [b, d]. Of equal values the earlier one stays ahead."""
    values = np.concatenate([self.values, peaks])
    indices = np.concatenate([self.indices, np.broadcast_to(index[:, None], peaks.shape)])
    order = np.argsort(-values, axis=0, kind='stable')[:k]
    total, squares = (peaks.astype(np.float64) ** power for power in (1, 2))
    return Best(
      self.count + len(peaks),
      self.total + total.sum(axis=0),
      self.squares + squares.sum(axis=0),
      np.take_along_axis(values, order, axis=0),
      np.take_along_axis(indices, order, axis=0),
    )

  @property
  def selectivity(self) -> np.ndarray:
    """[d]: distance of the best k images' mean from the mean of all, in standard deviations; 0 if all are equal."""
    mean = self.total / self.count
    deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
    above = self.values.mean(axis=0) - mean
    return np.where(deviation > 1e-6 * np.abs(mean), above / np.maximum(deviation, 1e-30), 0)


def exciting(
  model: Pretrained,
  source: DataSource,
  names: Sequence[str],
  layer: str,
  channel: int | None = None,
  *,
  most: int = 8,
  photographs: int = 8,
  batch_size: int = 32,
) -> Iterator[Explanation]:
  """Draws a row for each of the `most` selective channels, or two rows (images, heat) for one channel.

  Args:
    model: any backbone.
    source: the images.
    names: class names of the data set.
    layer: a layer's name.
    channel: one channel's number; None = the most selective ones.
    most: number of channels.
    photographs: images of each channel.
    batch_size: images per step.

  Yields:
    The result so far, after each batch. Its picture is drawn when it is needed.

  Raises:
    UsageError: if there is no such layer or channel.
    TlxError: if no image can be read.
  """
  check_layer(model.module, layer)
  maps = lambda variables, images: as_map(model.module, look(model)(variables, to_float(images))[layer])
  peaks = jax.jit(lambda variables, images: maps(variables, images).max(axis=(1, 2)))
  batch_size = min(batch_size, len(source))
  transform = transforms.evaluation(model.preprocess)
  named, best = functools.cache(lambda index: source[index].name), None
  for batch in pipeline.eval_batches(source, batch_size=batch_size, transform=transform):
    found = np.asarray(peaks(model.variables, batch['image']), np.float32)
    if best is None:
      best = Best.none(_checked(layer, channel, found.shape[1]))
    best = best.merge(found[batch['mask']], batch['index'][batch['mask']], photographs)
    if best.count:
      chosen = np.argsort(-best.selectivity, kind='stable')[:most] if channel is None else np.array([channel])
      rows = [_row(best, c, named, source.labels, names) for c in chosen.tolist()]
      draw = functools.partial(_sheet, model, maps, source, transform, rows)
      figures = {'layer': layer, 'photographs': best.count, 'channels': rows}
      yield Explanation(figures, {layer: draw}, done=best.count, total=len(source))
  if not best.count:
    raise TlxError('none of the photographs can be read')


def _checked(layer: str, channel: int | None, count: int) -> int:
  if channel is not None and not 0 <= channel < count:
    raise UsageError(f'--channel {channel} is out of range: layer {layer!r} has 0 to {count - 1}')
  return count


def _row(best: Best, channel: int, named, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
  indices = best.indices[:, channel].tolist()
  return {
    'channel': channel,
    'selectivity': float(best.selectivity[channel]),
    'mean': float(best.total[channel] / best.count),
    'values': best.values[:, channel],
    'indices': indices,
    'names': [named(index) for index in indices],
    'labels': [names[labels[index]] for index in indices],
  }


def _sheet(model: Pretrained, maps, source: DataSource, transform, rows: Sequence[dict]) -> np.ndarray:
  """Draws the images and their heat. It reads these few images again and recomputes their maps."""
  channels = np.array([row['channel'] for row in rows])
  one = jax.jit(lambda variables, image: maps(variables, image[None])[0][..., channels])

  @functools.cache
  def seen(index: int) -> tuple[np.ndarray, np.ndarray]:
    image = source[index].image
    picture = transform(decode.picture(image, scale=transform.grey) if isinstance(image, bytes) else image)
    return picture, np.asarray(one(model.variables, picture), np.float32)

  tiles, texts = [], []
  for place, row in enumerate(rows):
    photos, heats = zip(*((picture, heat[..., place]) for picture, heat in map(seen, row['indices'])))
    shades = pictures.spread(np.stack(heats))  # one scale a row
    small = [pictures.resized(photo, TILE, TILE) for photo in photos]
    told = [f'{label} {value:.3g}' for label, value in zip(row['labels'], row['values'])]
    head = np.full_like(small[0], 255)
    if len(rows) == 1:
      tiles, texts = [head, *small], ['photographs', *told]
    tiles += [head, *(pictures.overlay(photo, shade) for photo, shade in zip(small, shades))]
    texts += [f'channel {row["channel"]}', *told]
  return pictures.grid(tiles, texts, columns=len(rows[0]['indices']) + 1)
