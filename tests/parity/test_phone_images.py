"""What phones write: HEIC with the extra `heic`, and AVIF."""

import numpy as np
import pytest
from PIL import Image

from tlx.datasets import folder

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(('extension', 'kind'), [('HEIC', 'HEIF'), ('avif', 'AVIF')])
def test_what_phones_write_is_read(tmp_path, extension, kind):
  pytest.importorskip('pillow_heif').register_heif_opener()
  rng = np.random.default_rng(0)
  for i in range(6):
    path = tmp_path / 'ab'[i % 2] / f'{i}.{extension}'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, kind)
  info = folder.load(str(tmp_path), seed=0).info
  assert sum(map(sum, info.counts.values())) == 6 and not info.notes and not info.rejected
