"""Whole runs of `tlx finetune`: time to the first step, cold and warm, and a probe with and without cached features.

  python experiments/benchmarks/whole_runs.py

Each run is a process of its own, and its time counts from the start of the process. 'cold' starts with an empty folder
of compiled programs; 'warm' starts with the programs that the previous run stored.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIRST_STEP = ['--strategy', 'full', '--image-size', '96', '--epochs', '1', '--batch-size', '16', '--log-every', '1']
PROBE = ['--strategy', 'linear_probe', '--epochs', '4']
ROUNDS = 3


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    times = [(first_step(root / str(i)), first_step(root / str(i))) for i in range(ROUNDS)]
    for name, seconds in zip(('cold', 'warm'), zip(*times)):
      print(f'first step of full fine-tuning, 96 px, {name}: {statistics.median(seconds):.1f} s {seconds}', flush=True)
    for cache in ('off', 'auto'):
      found = [probe(root / f'{cache}{i}', cache) for i in range(ROUNDS)]
      rate = statistics.median(each['images_per_second'] for each in found)
      seconds = statistics.median(each['seconds'] for each in found)
      print(f'linear probe, 4 epochs, --cache {cache}: {seconds:.1f} s, {rate:,.0f} images/s in its steps', flush=True)


def first_step(home: Path) -> float:
  """Seconds from the start of the process to the first line of the log."""
  out = Path(tempfile.mkdtemp(dir=home.parent)) / 'run'
  began = time.perf_counter()
  process = start(home, out, FIRST_STEP)
  log = out / 'metrics.jsonl'
  while not (log.exists() and log.stat().st_size) and process.poll() is None:
    time.sleep(0.02)
  seconds = time.perf_counter() - began
  process.kill()
  process.wait()
  return round(seconds, 2)


def probe(home: Path, cache: str) -> dict:
  """The result.json of a linear probe."""
  out = home / 'run'
  process = start(home, out, [*PROBE, '--cache', cache])
  if process.wait():
    raise SystemExit(f'the probe failed: exit status {process.returncode}')
  return json.loads((out / 'result.json').read_text())


def start(home: Path, out: Path, options: list[str]) -> subprocess.Popen:
  env = {**os.environ, 'XDG_CACHE_HOME': str(home / 'cache')}
  command = [sys.executable, '-m', 'tlx', 'finetune', '--out', str(out), *options]
  return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)


if __name__ == '__main__':
  main()
