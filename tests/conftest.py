"""Fixtures: a tiny pretrained model in a folder, a tiny folder of images, and runs of the command line."""

import gc
import mmap
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest_plugins = ['sampling']
QUICK = {  # programs that compile in two thirds of the time and run slower: the tests' are small
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': 'true',
  'xla_cpu_use_fusion_emitters': 'false',
  'xla_cpu_parallel_codegen_split_count': 1,
}


def known(flags: dict) -> str:
  """Those flags that this XLA has: XLA ends a process that names another one."""
  for library in Path(find_spec('jaxlib').origin).parent.glob('libjax_common.*'):
    with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      return ' '.join(f'--{name}={value}' for name, value in flags.items() if content.find(name.encode()) >= 0)
  return ''


os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # one worker has one core: more threads would spin while they wait
if 'XLA_FLAGS' not in os.environ:  # `XLA_FLAGS= pytest` compiles as for users
  os.environ['XLA_FLAGS'] = known(QUICK)
gc.set_threshold(200_000, 50, 100)  # tracing makes many objects that live on: a tenth of its time
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:  # one for all tests of this session, and none of the user's
  compiled = tempfile.TemporaryDirectory(prefix='tlx-compiled-', ignore_cleanup_errors=True)
  os.environ |= {'JAX_COMPILATION_CACHE_DIR': compiled.name, 'JAX_COMPILATION_CACHE_MAX_SIZE': str(2**31)}  # locks
if 'TLX_FEATURE_CACHE' not in os.environ:  # likewise
  features = tempfile.TemporaryDirectory(prefix='tlx-features-', ignore_cleanup_errors=True)
  os.environ['TLX_FEATURE_CACHE'] = features.name


class TinyModels(dict):
  """{family: folder} of the smallest variant of each family with random weights, made when it is asked for."""

  def __init__(self, folder: Path):
    self.folder = folder

  def __missing__(self, family: str) -> str:
    import tlx
    from tlx import catalog, pretrained

    name = [name for name in catalog.find('models', family).VARIANTS if name.endswith('_test')][-1]
    module = pretrained.build(catalog.variant(name), 7)
    preprocess = tlx.Preprocess(size=32, crop=1.0)
    tlx.save(self.folder / name, module, randomised(pretrained.abstract(module)), preprocess=preprocess)
    self[family] = str(self.folder / name)
    return self[family]


@pytest.fixture(scope='session')
def tiny_models(tmp_path_factory) -> TinyModels:
  return TinyModels(tmp_path_factory.mktemp('models'))


@pytest.fixture(scope='session')
def tiny_model(tiny_models) -> str:
  """A folder with batch norm and depthwise convolutions in it, which takes little to trace."""
  return tiny_models['mobilenetv1']


def noise(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 30), ending: str = 'jpg') -> Path:
  """Makes {folder below the root: number of images in it}, all of them different."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for name, count in counts.items():
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f'{i}.{ending}')
  return root


@pytest.fixture(scope='session')
def tiny_images(tmp_path_factory) -> Path:
  """40 x 36 pictures of three colours, 10 training and 5 validation files each."""
  from PIL import Image

  root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
  for split, count in (('train', 10), ('val', 5)):
    for channel, name in enumerate(('blue', 'green', 'red')):
      folder = root / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 120, (36, 40, 3), dtype=np.uint8)
        pixels[..., 2 - channel] += 100
        Image.fromarray(pixels).save(folder / f'{i}.png')
  return root


def randomised(variables):
  """Variables in which every tensor is random, so that no zero hides an error; variances stay positive."""
  import jax

  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
    if name in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(scale=0.2, size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, variables)


def tlx_command(*arguments, devices: int = 1, **options) -> subprocess.CompletedProcess:
  """`tlx ARGUMENTS` in a process of its own, with that many CPU devices."""
  command = [sys.executable, '-m', 'tlx', *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment(devices), **options)


def environment(devices: int = 1) -> dict[str, str]:
  """Of a process with that many CPU devices, wherever it runs; those that share a core wait long for one another."""
  flags = [os.environ['XLA_FLAGS'], f'--xla_force_host_platform_device_count={devices}']
  if devices > 1:
    flags += [f'--xla_cpu_collective_call_{kind}_timeout_seconds=250' for kind in ('warn_stuck', 'terminate')]
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': ' '.join(flags),
    'COLUMNS': '160',
    'PYTHONPATH': str(Path(__file__).parents[1]),
  }
