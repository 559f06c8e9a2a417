"""Maps of a data set by features of EfficientNet-Lite0: how well pretrained features separate classes they never saw.

  python experiments/data_map.py OUT PATH [RUN]     with PATH/val/CLASS/*.jpg; a RUN on PATH marks its mistakes

Measured on 400 validation photographs of cats and dogs, 2 CPU cores, 2026-11-21, 16 s for both maps: the nearest 15
neighbours vote for the right class for 98.3 % of the photographs in the pretrained features, 96.0 % on the map of PCA
and 97.5 % on that of t-SNE. The trustworthiness is 0.946 for t-SNE and 0.836 for PCA. Cats and dogs form two clouds;
the probe's 6 mistakes lie where the clouds meet. Five flowers (200 photographs): 86.5 % in the features, 80.0 % on
t-SNE's map.
"""

import sys
from pathlib import Path

from tlx import catalog
from tlx.actions import explain, runs
from tlx.explain.data_map import data_map


def main(out: str, path: str, *folders: str) -> None:
  data = catalog.dataset(f'folder:{path}')
  for number, name in enumerate(('efficientnet_lite0', *folders)):
    model = runs.load_any(name)
    batches, total = explain.batches(data.splits['validation'], model.preprocess, 2000, 0)
    *_, found = data_map(model, batches, data.info.class_names, total=total)
    explain.save(Path(out) / str(number), found)
    print(name, found.figures)


if __name__ == '__main__':
  main(*sys.argv[1:])
