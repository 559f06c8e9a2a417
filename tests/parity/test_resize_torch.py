"""Resized maps against torch's interpolation, values and gradients; the largest errors were 4e-15 (float32 9e-7)."""

import jax
import numpy as np
import pytest
import reference

from tlx.nn import resize

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
MODES = {
  'bilinear': dict(mode='bilinear', align_corners=False),
  'bilinear_corners': dict(mode='bilinear', align_corners=True),
  'nearest': dict(mode='nearest'),
}
SIZES = [  # old, new
  ((5, 7), (5, 7)), ((5, 7), (10, 21)), ((5, 7), (13, 9)), ((13, 18), (6, 7)), ((1, 1), (4, 3)), ((6, 4), (1, 1)),
]  # fmt: skip


def both(name, old, new, dtype):
  """(ours, theirs): values and the gradient of a weighted sum, as arrays [b, h, w, c]."""
  rng = np.random.default_rng(0)
  x, weights = (rng.normal(size=(2, *side, 3)).astype(dtype) for side in (old, new))
  with jax.enable_x64(dtype == 'float64'):
    value, back = jax.vjp(lambda x: getattr(resize, name)(x, new), x)
    ours = value, back(weights)[0]
  assert {part.dtype.name for part in ours} == {dtype}
  theirs = reference.to_torch(x, getattr(torch, dtype)).requires_grad_()
  output = torch.nn.functional.interpolate(theirs, size=new, **MODES[name])
  output.backward(reference.to_torch(weights, output.dtype))
  return [np.asarray(part) for part in ours], [
    part.detach().numpy().transpose(0, 2, 3, 1) for part in (output, theirs.grad)
  ]


@pytest.mark.parametrize(('old', 'new'), SIZES)
@pytest.mark.parametrize('name', MODES)
def test_values_and_gradients(name, old, new):
  for dtype, limit in (('float64', 1e-12), ('float32', 1e-5)):
    for found, expected in zip(*both(name, old, new, dtype)):
      assert found.shape == expected.shape and reference.relative(found, expected) < limit


def test_nearest_rounds_as_torch_does_at_every_size():
  sides = [(old, new) for old in (3, 7, 10, 33, 65) for new in range(1, 140)]
  for old, new in sides:
    row = torch.arange(old, dtype=torch.float32)[None, None, None]
    expected = torch.nn.functional.interpolate(row, size=(1, new), mode='nearest')[0, 0, 0].numpy()
    np.testing.assert_array_equal(resize._nearest_places(old, new), expected, str((old, new)))
