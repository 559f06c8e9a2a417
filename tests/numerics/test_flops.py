"""Multiply-adds: against numbers worked out by hand, against XLA's own count, and layer by layer against the whole."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax
from tiny import NAMES, matrix

from tlx import catalog, pretrained
from tlx.cost import flops
from tlx.nn.conv import conv2d

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 8 * 8 * 8
IMAGE = (2, 9, 11, 6)
EQUATIONS = {'bij,bjk->bik': ((3, 4, 5), (3, 5, 6), 3 * 4 * 5 * 6), 'ij,kij->k': ((4, 5), (7, 4, 5), 7 * 4 * 5)}
CONVS = {  # kernel, options: (places, values of the kernel behind each output, outputs)
  'plain': ((3, 3, 6, 7), {'padding': 'torch'}, 9 * 11, 3 * 3 * 6, 7),
  'strided': ((3, 3, 6, 7), {'padding': 'torch', 'strides': 2}, 5 * 6, 3 * 3 * 6, 7),
  'valid': ((3, 5, 6, 7), {'padding': 'valid'}, 7 * 7, 3 * 5 * 6, 7),
  'dilated': ((3, 3, 6, 7), {'padding': 'valid', 'dilation': 2}, 5 * 7, 3 * 3 * 6, 7),
  'pointwise': ((1, 1, 6, 7), {'padding': 'torch', 'strides': 2}, 5 * 6, 6, 7),
  'grouped': ((3, 3, 2, 9), {'padding': 'torch', 'groups': 3}, 9 * 11, 3 * 3 * 2, 9),
  'depthwise': ((3, 3, 1, 12), {'padding': 'torch', 'groups': 6}, 9 * 11, 3 * 3, 12),
}


def shape(*axes):
  return jax.ShapeDtypeStruct(axes, jnp.float32)


def xla_flops(function, *arguments):
  """Of the program as it is before XLA changes it."""
  return jax.jit(function).lower(*arguments).cost_analysis()['flops']


@pytest.mark.parametrize('equation', EQUATIONS)
def test_matrix_products(equation):
  a, b, expected = EQUATIONS[equation]
  assert flops.multiply_adds(lambda a, b: jnp.einsum(equation, a, b), shape(*a), shape(*b)) == expected


@pytest.mark.parametrize('name', CONVS)
def test_convolutions_whatever_form_a_platform_prefers(name):
  kernel, options, places, behind, outputs = CONVS[name]
  convolve = lambda x, kernel: conv2d(x, kernel, **options)
  assert flops.multiply_adds(convolve, shape(*IMAGE), shape(*kernel)) == IMAGE[0] * places * behind * outputs


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
def test_both_gradients_of_a_convolution_cost_as_much_as_itself(strides):
  convolve = lambda x, k: lax.conv_general_dilated(x, k, strides, 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  gradients = jax.grad(lambda x, k: jnp.square(convolve(x, k)).sum(), argnums=(0, 1))
  arguments = shape(*IMAGE), shape(3, 3, 6, 7)
  assert flops.multiply_adds(gradients, *arguments) == 3 * flops.multiply_adds(convolve, *arguments)


def test_a_transposed_convolution_is_counted_from_its_input():
  numbers = ('NHWC', 'HWIO', 'NHWC')
  up = lambda x, kernel: lax.conv_transpose(x, kernel, (2, 2), 'SAME', dimension_numbers=numbers)
  assert flops.multiply_adds(up, shape(1, 5, 6, 3), shape(4, 4, 3, 7)) == 5 * 6 * 4 * 4 * 3 * 7


def test_a_convolution_of_another_rank_and_layout():
  convolve = lambda x, kernel: lax.conv_general_dilated(x, kernel, (2,), [(1, 1)])  # [b, c, n], [out, in, k]
  assert flops.multiply_adds(convolve, shape(2, 4, 10), shape(6, 4, 3)) == 2 * 5 * 4 * 3 * 6


@jax.custom_vjp
def with_own_gradient(x):
  return x @ x


with_own_gradient.defvjp(lambda x: (with_own_gradient(x), x), lambda x, g: (g @ x.T + x.T @ g,))


@jax.custom_jvp
def with_own_tangent(x):
  return x @ x


with_own_tangent.defjvp(lambda x, t: (with_own_tangent(*x), t[0] @ x[0] + x[0] @ t[0]))
NESTED = {
  'jit': (jax.jit(lambda x: jax.jit(jnp.matmul)(x, x)), 1),
  'custom_vjp': (with_own_gradient, 1),
  'custom_jvp': (with_own_tangent, 1),
  'gradient': (jax.grad(lambda x: with_own_gradient(x).sum()), 2),  # the sum itself is not asked for
  'value and gradient': (jax.value_and_grad(lambda x: with_own_gradient(x).sum()), 3),
  'what nobody asks for': (lambda x: (x @ x, x + 1)[1], 0),
  'remat': (jax.checkpoint(lambda x: x @ x), 1),
  'scan': (lambda x: lax.scan(lambda y, _: (y @ x, None), x, length=5)[0], 5),
  'scan of scans': (lambda x: lax.map(lambda _: lax.fori_loop(0, 3, lambda _, y: y @ x, x), jnp.arange(4)), 12),
  'vmap': (lambda x: jax.vmap(lambda row: x @ row)(x), 1),
  'cond': (lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x), 2),
  'platform': (lambda x: lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x), 1),
  'while without products': (lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x) @ x, 1),
  'elementwise': (lambda x: jax.nn.relu(x * x + 1).sum(), 0),
}  # fmt: skip


@pytest.mark.parametrize('name', NESTED)
def test_what_lies_inside_is_found(name):
  function, products = NESTED[name]
  assert flops.multiply_adds(function, MATRIX) == products * PRODUCT


def test_a_while_loop_that_multiplies_is_refused():
  with pytest.raises(ValueError, match=r'unknown number of times; use lax\.scan'):
    flops.multiply_adds(lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), MATRIX)


def test_agrees_with_xla_where_the_two_count_the_same():
  """No padding, whose zeros XLA leaves out, and little but products: XLA counts two FLOPs for each multiply-add."""

  def network(x, kernels, matrix):
    for kernel, groups in zip(kernels, (1, 1, 4)):
      numbers = ('NHWC', 'HWIO', 'NHWC')
      x = lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=numbers, feature_group_count=groups)
      x = jax.nn.relu(x)
    return x.mean((1, 2)) @ matrix

  arguments = shape(2, 24, 24, 3), [shape(5, 5, 3, 32), shape(3, 3, 32, 32), shape(3, 3, 8, 32)], shape(32, 10)
  ratio = xla_flops(network, *arguments) / flops.multiply_adds(network, *arguments)
  assert 2 <= ratio < 2.02


class TwoHeads(nn.Module):
  """As Inception: a second head, whose variables are made at once and which runs in training only."""

  @nn.compact
  def __call__(self, x, train=False):
    if train or self.is_initializing():
      nn.Dense(50, name='aux')(x.mean((1, 2)))
    return nn.Dense(10, name='logits')(x.mean((1, 2)))


def test_a_head_for_training_has_parameters_and_costs_nothing():
  assert flops.model_cost(TwoHeads(), 8) == (3 * 50 + 50 + 3 * 10 + 10, 3 * 10)


@pytest.mark.parametrize('name', matrix(NAMES))
def test_layers_add_up_to_the_model(name):
  module = pretrained.build(catalog.variant(name), 10)
  image = pretrained.example(module)
  variables = pretrained.abstract(module)
  rows = flops.layers(module, image.shape[1])
  features = jax.eval_shape(lambda variables: pretrained.features(module, variables, image), variables)
  assert [row.name for row in rows] == [*module.backbone.names, 'head']
  assert [row.shape for row in rows[:-1]] == [features[row.name].shape[1:] for row in rows[:-1]]
  assert rows[-1].shape == (10,)
  total = sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)
  assert total == flops.model_cost(module, image.shape[1])
  assert total[1] == flops.multiply_adds(module.apply, variables, image)
