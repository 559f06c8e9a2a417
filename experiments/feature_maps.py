"""What EfficientNet-Lite0's channels answer to a cat, and which photographs of a data set excite its last layer most.

  python experiments/feature_maps.py OUT PATH     with PATH/val/CLASS/*.jpg

Measured with five flowers, 2 CPU cores, 2026-11-21: 9 s. On the cat 5 of the stem's 32 channels answer nothing, 827 of
the last layer's 1,280, and none of any other layer, whose outputs no activation cuts. Of the last layer's most
selective channels one is excited by butterflies, one by faces and what stands like an eye in a flower.
"""

import sys
from pathlib import Path

from skimage import data

from tlx import catalog
from tlx.actions import explain, runs
from tlx.data import transforms
from tlx.explain.exciting import exciting
from tlx.explain.features import feature_maps


def main(out: str, path: str) -> None:
  model, folder = runs.load_any('efficientnet_lite0'), catalog.dataset(f'folder:{path}')
  maps = feature_maps(model, transforms.evaluation(model.preprocess)(data.chelsea()))
  explain.save(Path(out) / 'maps', maps)
  print('channels that answer nothing:', {name: layer['dead'] for name, layer in maps.figures['layers'].items()})
  *_, found = exciting(model, folder.splits['validation'], folder.info.class_names, 'final_conv')
  explain.save(Path(out) / 'exciting', found)


if __name__ == '__main__':
  main(*sys.argv[1:])
