"""BatchNorm and the convolutions against PyTorch: outputs, running statistics and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.nn.conv import conv2d
from tlx.nn.norm import BatchNorm

torch = pytest.importorskip('torch')
pytestmark = pytest.mark.parity
RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def to_nchw(x):
  return torch.from_numpy(np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2))))


def to_nhwc(x):
  return np.transpose(x.detach().numpy(), (0, 2, 3, 1))


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('train', [True, False])
def test_batch_norm(train):
  x, weight = 1 + 3 * normal(4, 5, 6, 7), normal(4, 5, 6, 7)
  params = {'scale': normal(7), 'bias': normal(7)}
  stats = {'mean': normal(7), 'var': np.exp(normal(7))}
  module = torch.nn.BatchNorm2d(7).train(train)
  module.load_state_dict(
    {
      'weight': torch.from_numpy(params['scale']),
      'bias': torch.from_numpy(params['bias']),
      'running_mean': torch.from_numpy(stats['mean'].copy()),
      'running_var': torch.from_numpy(stats['var'].copy()),
      'num_batches_tracked': torch.tensor(0),
    }
  )
  theirs = to_nchw(x).requires_grad_()
  expected = module(theirs)
  (expected * to_nchw(weight)).sum().backward()

  def loss(params, x):
    y, moved = BatchNorm().apply({'params': params, 'batch_stats': stats}, x, train, mutable='batch_stats')
    return jnp.sum(y * weight), (y, moved['batch_stats'])

  (by_params, by_x), (y, moved) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
  close(y, to_nhwc(expected))
  close(moved['mean'], module.running_mean.numpy())
  close(moved['var'], module.running_var.numpy())
  close(by_x, to_nhwc(theirs.grad))
  close(by_params['scale'], module.weight.grad.numpy())
  close(by_params['bias'], module.bias.grad.numpy())


@pytest.mark.parametrize('window, stride, groups, dilation', [(3, 2, 8, 1), (5, 1, 8, 2), (3, 2, 1, 1), (1, 2, 1, 1)])
def test_torch_padding(window, stride, groups, dilation):
  x, kernel = normal(2, 9, 10, 8), normal(window, window, 8 // groups, 8)
  theirs = torch.from_numpy(np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1))))
  padding = (window - 1) * dilation // 2
  expected = torch.nn.functional.conv2d(to_nchw(x), theirs, None, stride, padding, dilation, groups)
  ours = conv2d(jnp.asarray(x), jnp.asarray(kernel), strides=stride, padding='torch', groups=groups, dilation=dilation)
  np.testing.assert_allclose(ours, to_nhwc(expected), rtol=1e-4, atol=2e-5)  # sums of up to 72 products
