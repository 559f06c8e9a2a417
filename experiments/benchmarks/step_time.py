"""Time and memory of a training step of tlx, of timm on PyTorch, of Keras on JAX, and of tlx with plain convolutions.

  python experiments/benchmarks/step_time.py [--models M ...] [--regimes probe last full] [--batch-size 16]

Each contestant runs in a process of its own. After compilation they take turns, round after round. A ratio is the
median over the rounds of their time / tlx's: above 1 tlx is faster. Memory is the maximum that a process held during
its steps, minus what its imports hold. On a CPU tlx runs with the settings of its command line
(`tlx.__main__.settings`).

Measured with `--rounds 3 --seconds 0.7`, 16 x float32 on 2 idle CPU cores (AVX-512), jax 0.10.2, PyTorch 2.13.0, timm
1.0.31, 2026-11-21: milliseconds of a tlx step, ratio (timm / tlx), megabytes of tlx / of timm. A second measurement of
a ratio differed by up to a tenth. Probe, last stage and the figures below the table were measured with one heap for all
threads, before the last change of `tlx.__main__`; full was measured after it.

                              probe               last stage           full
  efficientnet_lite0     96    16  1.57  234/347     21  1.87  284/357   115  1.10   755/619
  efficientnet_lite0    224    90  1.98  503/617    113  1.89  700/624   459  1.23  1850/1833
  resnet50              224   461  1.30  596/635    651  1.11  824/803  1802  0.92  2337/2241
  mobilenetv3_large_100 224    48  2.47  314/513     57  2.34  342/544   286  1.30  1457/1288
  vgg16                 224  1378  1.02 1488/1261  2455  1.10 3765/3249 5764  0.92  4967/4391
  vit_small_patch16_224 224   544  1.72  455/445    679  1.56  602/679  1812  1.39  2034/1701

`--contestants tlx cached timm --regimes probe`: on cached features a step takes 0.5 ms (Lite0 at 96) and 0.7 ms
(ResNet-50), 50 and 800 times as fast as timm's. `--contestants tlx plain`: with the convolution that flax.linen.Conv
calls, Lite0 at 96 takes 11.3 (probe) and 7.5 (full) times as long, MobileNetV3 12.3 and 7.9.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import contestants

from tlx.__main__ import settings, step_in_main_thread

MODELS = ['efficientnet_lite0@96', 'efficientnet_lite0@224', 'resnet50@224', 'mobilenetv3_large_100@224', 'vgg16@224',
          'vit_small_patch16_224@224']  # fmt: skip


AS_TLX_STARTS = ('tlx', 'cached')  # contestants that run with the command line's malloc settings


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--models', nargs='+', default=MODELS, metavar='VARIANT@PIXELS')
  parser.add_argument('--regimes', nargs='+', default=['probe', 'last', 'full'], choices=['probe', 'last', 'full'])
  parser.add_argument('--contestants', nargs='+', default=['tlx', 'timm'], choices=list(contestants.ALL))
  parser.add_argument('--batch-size', type=int, default=16)
  parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=1.0, help='minimum time of one turn')
  parser.add_argument('--json', action='store_true')
  options = parser.parse_args()
  for model in options.models:
    name, _, size = model.partition('@')
    for regime in options.regimes:
      work = contestants.Work(name, regime, options.batch_size, int(size or 224), options.dtype)
      found = measure(work, options.contestants, options.rounds, options.seconds)
      print(json.dumps({**work._asdict(), **found}) if options.json else line(work, found), flush=True)


def measure(work: contestants.Work, names: list[str], rounds: int, seconds: float) -> dict[str, dict]:
  """{contestant: milliseconds per step, ratio to tlx, memory in bytes, seconds to its second step}."""
  running = {name: Turns(name, work) for name in names}
  running = {name: each for name, each in running.items() if each.ready()}
  times = {name: [] for name in running}
  for _ in range(rounds):
    for name, each in running.items():
      times[name].append(each.turn(seconds))
  return {
    name: {
      'ms': 1e3 * statistics.median(times[name]),
      'ratio': statistics.median(b / a for a, b in zip(times['tlx'], times[name])),
      **each.end(),
    }
    for name, each in running.items()
  }


def line(work: contestants.Work, found: dict[str, dict]) -> str:
  about = f'{work.model} {work.image_size} px, {work.regime}, {work.batch_size} x {work.dtype}:'
  rows = [
    f'  {name:6} {each["ms"]:9.1f} ms/step  {each["ratio"]:6.2f} x tlx  {each["memory"] / 1e6:7.0f} MB  '
    f'{each["start"]:6.1f} s to the second step'
    for name, each in found.items()
  ]
  return '\n'.join([about, *rows])


class Turns:
  """A contestant in a process of its own, which works only when asked."""

  def __init__(self, name: str, work: contestants.Work):
    context = multiprocessing.get_context('spawn')
    self.ask, theirs = context.Pipe()
    os.environ['GLIBC_TUNABLES'] = settings() if name in AS_TLX_STARTS else ''
    self.process = context.Process(target=serve, args=(name, work, theirs), daemon=True)
    self.process.start()
    theirs.close()

  def ready(self) -> bool:
    """Waits until the contestant is compiled and has made two steps; False if it cannot do this work."""
    try:
      self.start = self.ask.recv()
    except EOFError:
      return False
    return True

  def turn(self, seconds: float) -> float:
    """Runs steps for that many seconds; returns seconds per step."""
    self.ask.send(seconds)
    return self.ask.recv()

  def end(self) -> dict[str, float]:
    self.ask.send(None)
    memory = self.ask.recv()
    self.process.join()
    return {'memory': memory, 'start': self.start}


def serve(name: str, work: contestants.Work, ask) -> None:
  """The process of a contestant."""
  try:
    if name in AS_TLX_STARTS:
      step_in_main_thread()
    import_all(name)
    before, began = resident('VmRSS'), time.perf_counter()
    step = contestants.ALL[name](work)
    step(), step()
  except (ImportError, LookupError) as error:
    print(f'{name}: {error}', file=sys.stderr)
    return
  ask.send(time.perf_counter() - began)
  ctypes.CDLL(None).malloc_trim(0)  # frees the memory of compilation and resets its peak, to measure steps only
  Path('/proc/self/clear_refs').write_text('5')
  while (seconds := ask.recv()) is not None:
    began, steps = time.perf_counter(), 0
    while not steps or time.perf_counter() - began < seconds:
      step()
      steps += 1
    ask.send((time.perf_counter() - began) / steps)
  ask.send(resident('VmHWM') - before)


def import_all(name: str) -> None:
  """Imports everything a contestant needs, so that the memory of imports does not count."""
  if name == 'timm':
    import torch  # noqa: F401
  else:
    import jax

    jax.numpy.zeros(()).block_until_ready()
  import tlx  # noqa: F401


def resident(field: str) -> int:
  """A memory figure of this process from /proc, in bytes."""
  rows = dict(row.split(':', 1) for row in Path('/proc/self/status').read_text().splitlines())
  return int(rows[field].split()[0]) * 1024


if __name__ == '__main__':
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  main()
