"""Time and memory of indexing a folder of classes: tlx beside torchvision's ImageFolder, in processes of their own.

    python experiments/benchmarks/index.py --classes 1000 --images 200000

The files are empty hard links of one image, because neither opens a file to index it. Each turn is a new process; the
table shows medians of the turns, which alternate. `checked` is `tlx.datasets.folder.load`, which also opens each file.
On 2 shared cores, 2026-11-25: tlx 1.85 s and 30 MiB, torchvision 2.42 s and 34 MiB.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

CONTESTANTS = ('tlx', 'torchvision', 'checked')


def turn(contestant: str, root: str) -> None:
  """Prints seconds, MiB above those of the imports, and the number of images that were found."""
  if contestant == 'torchvision':
    from torchvision.datasets import ImageFolder

    work = lambda: len(ImageFolder(root).samples)
  else:
    from tlx.datasets import folder

    index = lambda: sum(len(paths) for paths in folder.index(Path(root))[1].splits['train'].values())
    work = index if contestant == 'tlx' else lambda: sum(map(sum, folder.load(root, seed=0).info.counts.values()))
  memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  before, start = memory(), time.perf_counter()
  found = work()
  print(time.perf_counter() - start, memory() - before, found)


def make(root: Path, classes: int, images: int) -> None:
  """Makes the folder. A file system allows some 65,000 links of one file, so each class has an image of its own."""
  for label in range(classes):
    folder = root / f'class_{label:04}'
    folder.mkdir()
    first = folder / 'image_000000.jpg'
    Image.new('RGB', (32, 24), (label % 256, label // 256, 0)).save(first)
    for i in range(1, images // classes):
      os.link(first, folder / f'image_{i:06}.jpg')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--classes', type=int, default=1000)
  parser.add_argument('--images', type=int, default=200_000)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--turn', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.turn:
    return turn(*args.turn)
  with tempfile.TemporaryDirectory() as root:
    make(Path(root), args.classes, args.images)
    run = lambda name: subprocess.run([sys.executable, __file__, '--turn', name, root], capture_output=True, text=True)
    turns = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
      for name in CONTESTANTS:
        done = run(name)
        turns[name].append(tuple(map(float, done.stdout.split())) if done.returncode == 0 else None)
  for name, found in turns.items():
    if None in found:
      print(f'{name:<12} could not run: is it installed?')
      continue
    seconds, mib, images = (statistics.median(column) for column in zip(*found))
    print(f'{name:<12} {seconds:7.2f} s {mib:7.0f} MiB {images:9,.0f} images')


if __name__ == '__main__':
  main()
