"""Convolutions: the CPU's forms against the library's, in value, gradients, FLOPs and under every transformation."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment

from tlx.nn import conv
from tlx.nn.conv import Spec

KEY = jax.random.key(0)
KINDS = {'dense': (1, 4, 6), 'depthwise': (4, 4, 4), 'multiplier 2': (4, 4, 8), 'grouped': (2, 4, 6)}
PADDINGS = ('same', 'torch', 'valid', 2, ((0, 1), (2, 0)))
# Only shapes that take a form of their own on a CPU, and one of each that do not; the rest rotates through them.
OWN_FORMS = [
  *itertools.product(['depthwise'], (1, 3, 5), (1, 2, 3)),
  *(('multiplier 2', window, stride) for window, stride in ((3, 1), (5, 2), (2, 3))),
  *(('grouped', window, stride) for window, stride in ((1, 1), (3, 1), (3, 2), (2, 3))),
  *(('dense', window, stride) for window, stride in ((1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (3, 3), (5, 1), (5, 2))),
]
CASES = [(*case, 1 + (i // 2) % 2, PADDINGS[i % 5], ((7, 9), (8, 6))[i % 2]) for i, case in enumerate(OWN_FORMS)] + [
  ('depthwise', 7, 1, 1, 'torch', (8, 9)),
  ('depthwise', 7, 2, 2, 'same', (9, 8)),
  ('dense', 3, 1, 2, 'same', (9, 8)),
  ('dense', 4, 4, 1, 'valid', (9, 8)),
  ('grouped', 3, 2, 2, 'torch', (9, 8)),
]


def spec_of(size, window, stride, dilation, padding, groups=1):
  pads = conv.explicit_padding(padding, size, (window, window), (stride, stride), (dilation, dilation))
  return Spec((stride, stride), pads, groups, (dilation, dilation))


def normal(seed, shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.fold_in(KEY, seed), shape).astype(dtype)


def three(form, x, kernel, dy, spec):
  """(value, input gradient, kernel gradient) of one form, 'cpu' or 'library'."""
  value, by_input, by_kernel = (getattr(conv, f'{form}_{n}') for n in ('conv', 'input_gradient', 'kernel_gradient'))
  return value(x, kernel, spec), by_input(dy, kernel, x.shape, spec), by_kernel(x, dy, kernel.shape, spec)


def close(a, b, tolerance):
  assert a.shape == b.shape
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(jnp.abs(b).max()), 1e-3))


@pytest.mark.parametrize('kind, window, stride, dilation, padding, size', CASES)
def test_cpu_forms_equal_the_library(monkeypatch, kind, window, stride, dilation, padding, size):
  monkeypatch.setattr(conv.conv_cpu, 'WIDE', 1)  # so that 4 channels take the strided products
  monkeypatch.setattr(conv.conv_cpu, 'LARGE', 1)
  monkeypatch.setattr(conv.conv_cpu, 'BLOCK', 4096)  # so that the kernel gradient takes several blocks
  groups, channels, features = KINDS[kind]
  spec = spec_of(size, window, stride, dilation, padding, groups)
  x, kernel = normal(0, (2, *size, channels)), normal(1, (window, window, channels // groups, features))
  out = conv.output_size(x.shape, kernel.shape, spec)
  if min(out) < 1:
    padding, spec = 5, spec_of(size, window, stride, dilation, 5, groups)
    out = conv.output_size(x.shape, kernel.shape, spec)
  dy = normal(2, (2, *out, features))

  @jax.jit
  def both(x, kernel, dy):
    return three('cpu', x, kernel, dy, spec), three('library', x, kernel, dy, spec)

  for ours, theirs in zip(*both(x, kernel, dy)):
    close(ours, theirs, 1e-5)


@pytest.mark.parametrize(
  'kind, window, stride', [('dense', 1, 1), ('dense', 3, 2), ('depthwise', 5, 2), ('grouped', 3, 1)]
)
def test_bfloat16_stays_near_float32(monkeypatch, kind, window, stride):
  monkeypatch.setattr(conv.conv_cpu, 'LARGE', 1)
  monkeypatch.setattr(conv.conv_cpu, 'BLOCK', 512)
  groups, channels, features = KINDS[kind]
  spec = spec_of((9, 8), window, stride, 1, 'same', groups)
  arrays = normal(0, (2, 9, 8, channels)), normal(1, (window, window, channels // groups, features))
  arrays = [a.astype(jnp.bfloat16) for a in (*arrays, normal(2, (2, -(-9 // stride), -(-8 // stride), features)))]
  ours = jax.jit(lambda *a: three('cpu', *a, spec))(*arrays)
  exact = jax.jit(lambda *a: three('library', *a, spec))(*(a.astype(jnp.float32) for a in arrays))
  for a, b in zip(ours, exact):
    assert a.dtype == jnp.bfloat16
    close(a.astype(jnp.float32), b, 2**-8)  # bfloat16 keeps 8 bits: one rounding of an exact sum


def depthwise(x, kernel):
  return conv.conv2d(x, kernel, strides=2, padding='torch', groups=x.shape[-1])


X, KERNEL = normal(0, (2, 9, 9, 4)), normal(1, (3, 3, 1, 4))


def loss(x, kernel):
  return jnp.square(depthwise(x, kernel)).sum()


def flops(f, *args):
  return jax.jit(f).lower(*args).compile().cost_analysis()['flops']


def test_gradients_through_conv2d():
  spec = spec_of((9, 9), 3, 2, 1, 'torch', 4)
  reference = jax.grad(lambda x, k: jnp.square(conv.library_conv(x, k, spec)).sum(), (0, 1))(X, KERNEL)
  for a, b in zip(jax.jit(jax.grad(loss, (0, 1)))(X, KERNEL), reference):
    close(a, b, 1e-5)
  nested = jax.grad(lambda k: jnp.square(jax.grad(loss)(X, k)).sum())(KERNEL)
  assert nested.shape == KERNEL.shape and bool(jnp.isfinite(nested).all())
  hessian_vector = jax.jvp(jax.grad(lambda x: loss(x, KERNEL)), (X,), (X,))[1]
  close(hessian_vector, jax.grad(loss)(X, KERNEL), 1e-5)  # the loss is quadratic in x


@pytest.mark.parametrize('channels, features', [(6, 10), (10, 6)])
@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_linear_is_a_matrix_product_in_value_and_gradients(channels, features, dtype, tolerance):
  x, kernel = normal(0, (2, 5, channels), dtype), normal(1, (channels, features), dtype)
  weight = normal(2, (2, 5, features), dtype)

  def three(multiply, x, kernel):
    loss = lambda x, kernel: (multiply(x, kernel) * weight).astype(jnp.float32).sum()
    return multiply(x, kernel), *jax.grad(loss, (0, 1))(x, kernel)

  for ours, plain in zip(jax.jit(lambda *a: three(conv.linear, *a))(x, kernel), three(jnp.matmul, x, kernel)):
    assert ours.dtype == dtype
    close(ours.astype(jnp.float32), plain.astype(jnp.float32), tolerance)
  one_by_one = jax.vmap(lambda x, weight: jax.grad(lambda k: (conv.linear(x, k) * weight).sum())(kernel))(x, weight)
  close(one_by_one.astype(jnp.float32).sum(0), jnp.einsum('btc,btd->cd', x, weight).astype(jnp.float32), 4 * tolerance)


def test_vmap_scan_and_remat():
  xs, kernels = normal(3, (3, *X.shape)), normal(4, (3, *KERNEL.shape))
  each = jnp.stack([jax.grad(loss, 1)(x, k) for x, k in zip(xs, kernels)])
  close(jax.vmap(jax.grad(loss, 1))(xs, kernels), each, 1e-5)
  scanned = jax.lax.scan(lambda _, a: (None, jax.grad(jax.checkpoint(loss), 1)(*a)), None, (xs, kernels))[1]
  close(scanned, each, 1e-5)


def test_only_the_cpu_branch_is_compiled_and_counted():
  taps = 9 * 2 * 5 * 5 * 4  # multiply-adds of the strided depthwise convolution
  assert flops(depthwise, X, KERNEL) <= 2 * taps
  forward, by_x = flops(lambda x, k: depthwise(x, k).sum(), X, KERNEL), flops(jax.grad(loss, 0), X, KERNEL)
  by_kernel, by_both = flops(jax.grad(loss, 1), X, KERNEL), flops(jax.grad(loss, (0, 1)), X, KERNEL)
  assert by_x < 2.7 * forward and by_kernel < 2.7 * forward  # forward and one product, not two
  assert by_both > 0.9 * (by_x + by_kernel - forward)
  transformed = {
    'vmap': jax.vmap(loss, (0, None)),
    'scan': lambda xs, k: jax.lax.scan(lambda c, x: (c + jax.grad(loss)(x, k), None), X, xs)[0],
  }
  for name, f in transformed.items():
    assert 'convolution' not in jax.jit(f).lower(X[None], KERNEL).as_text(), name


@pytest.mark.parametrize('platform', ['tpu', 'cuda', 'rocm'])
def test_accelerators_get_the_library_form(platform):
  text = jax.jit(jax.grad(loss, (0, 1))).trace(X, KERNEL).lower(lowering_platforms=(platform,)).as_text()
  assert text.count('stablehlo.convolution') == 3


def test_padding_rules():
  assert conv.explicit_padding('same', (224, 225), (3, 3), (2, 2), (1, 1)) == ((0, 1), (1, 1))
  assert conv.explicit_padding('torch', (224, 225), (3, 5), (2, 2), (2, 1)) == ((2, 2), (2, 2))
  with pytest.raises(ValueError, match="padding 'full'"):
    conv.explicit_padding('full', (8, 8), (3, 3), (1, 1), (1, 1))


def test_shapes_that_do_not_fit():
  with pytest.raises(ValueError, match='groups=2'):
    conv.conv2d(X, KERNEL, padding='same', groups=2)
  with pytest.raises(ValueError, match='larger images'):
    conv.conv2d(X[:, :2, :2], KERNEL, padding='valid', groups=4)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_layers_follow_the_dtype_of_their_input(dtype):
  x = X.astype(dtype)
  for layer in (conv.Conv(6, 3, strides=2, use_bias=True), conv.Dense(6)):
    variables = layer.init(KEY, x)
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert layer.apply(variables, x).dtype == dtype


def test_conv_starts_from_fan_out():
  kernel = conv.Conv(256, 3).init(KEY, jnp.zeros((1, 4, 4, 64)))['params']['kernel']
  assert kernel.shape == (3, 3, 64, 256)
  assert float(kernel.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tlx.nn.conv import conv2d
mesh = Mesh(jax.devices(), 'data')
x = jax.device_put(jax.random.normal(jax.random.key(0), (8, 9, 9, 4)), NamedSharding(mesh, P('data')))
kernel = jax.device_put(jax.random.normal(jax.random.key(1), (3, 3, 1, 4)), NamedSharding(mesh, P()))
loss = lambda x, k: jnp.square(conv2d(x, k, strides=2, padding='same', groups=4)).sum()
step = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
text = step.as_text()
assert 'all-gather' not in text and 'all-reduce' in text, text
alone = jax.jit(jax.grad(loss, (0, 1)))(*jax.device_get((x, kernel)))
for a, b in zip(step(x, kernel), alone):
  assert float(abs(jax.device_get(a) - jax.device_get(b)).max()) < 1e-4
"""


def test_a_sharded_batch_stays_sharded():
  subprocess.run([sys.executable, '-c', SHARDED], check=True, env=environment(4))
