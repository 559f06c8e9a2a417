"""Windows, relative positions, rotary positions: against the plain definitions, and against timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.nn import rotary, window
from tlx.weights.resample_tables import relative_table

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('side', [1, 2, 5])
def test_every_pair_reads_the_entry_of_its_step(side):
  table = RNG.normal(size=((2 * side - 1) ** 2, 3)).astype(np.float32)
  place = np.stack(np.divmod(np.arange(side * side), side), axis=1)
  step = place[:, None] - place[None] + side - 1
  expected = table[step[..., 0] * (2 * side - 1) + step[..., 1]].transpose(2, 0, 1)
  np.testing.assert_array_equal(window.relative_positions(jnp.asarray(table), side), expected)


def test_the_gradient_of_positions_adds_up_in_one_order():
  table = jnp.zeros((49, 2))
  program = jax.make_jaxpr(jax.grad(lambda table: (window.relative_positions(table, 4) ** 2).sum()))(table)
  assert 'pad' in str(program) and 'scatter' not in str(program)


@pytest.mark.parametrize(('size', 'side', 'shift'), [((8, 8), 4, 0), ((8, 12), 4, 2), ((5, 7), 3, 1), ((2, 3), 4, 2)])
def test_windows_go_back_to_their_map(size, side, shift):
  x = jnp.asarray(RNG.normal(size=(2, *size, 3)))
  windows = window.partition(x, side, shift)
  assert windows.shape[1:] == (side * side, 3)
  np.testing.assert_array_equal(window.restore(windows, size, side, shift), x)


@pytest.mark.parametrize(('size', 'side', 'shift'), [((8, 12), 4, 2), ((5, 7), 3, 1)])
def test_a_wall_parts_what_the_shift_brought_together(size, side, shift):
  # A place's part of the map, as the slices of Liu et al. number them, and all filled-up places with the last part.
  padded = [-(-n // side) * side for n in size]
  part = np.zeros((1, *padded, 1))
  slices = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
  for i, rows in enumerate(slices):
    for j, columns in enumerate(slices):
      part[:, rows, columns] = 3 * i + j
  number = np.asarray(window.partition(jnp.asarray(part), side))[..., 0]
  expected = np.where(number[:, :, None] == number[:, None, :], 0, window.SEPARATE)
  bias = window.window_bias(jnp.zeros((1, side**2, side**2)), 2 * len(number), size, side, shift)
  np.testing.assert_array_equal(bias[:, 0], np.tile(expected, (2, 1, 1)))


def test_the_class_token_has_rows_of_its_own():
  module = window.RelativePositionBias(2, 3, class_token=True)
  table = jnp.asarray(RNG.normal(size=(9 + 3, 3)))
  bias = module.apply({'params': {'table': table}})
  np.testing.assert_array_equal(bias[:, 1:, 1:], window.relative_positions(table[:9], 2))
  np.testing.assert_array_equal(bias[:, 0, 1:], np.repeat(table[9][:, None], 4, axis=1))
  np.testing.assert_array_equal(bias[:, 1:, 0], np.repeat(table[10][:, None], 4, axis=1))
  np.testing.assert_array_equal(bias[:, 0, 0], table[11])


def test_tables_that_do_not_fit_are_refused_and_fitting_ones_stay():
  table = RNG.normal(size=(25 + 3, 2)).astype(np.float32)
  assert relative_table(table, table.shape, extra=3) is table
  for shape in ((49 + 3, 4), (48 + 3, 2), (16 + 3, 2)):
    with pytest.raises(ValueError, match='not of square grids'):
      relative_table(table, shape, extra=3)


@pytest.mark.parity
@pytest.mark.parametrize(('old', 'new', 'extra'), [(7, 5, 0), (7, 12, 0), (14, 24, 3), (4, 2, 3), (2, 7, 0)])
def test_tables_of_another_size_are_as_in_timm(old, new, extra):
  torch = pytest.importorskip('torch')
  resize = pytest.importorskip('timm.layers').resize_rel_pos_bias_table
  table = RNG.normal(size=((2 * old - 1) ** 2 + extra, 3)).astype(np.float32)
  shape = ((2 * new - 1) ** 2 + extra, 3)
  expected = resize(torch.from_numpy(table), new_window_size=(new, new), new_bias_shape=shape).numpy()
  np.testing.assert_allclose(relative_table(table, shape, extra), expected, atol=2e-6)


@pytest.mark.parametrize('halves', [False, True])
def test_turned_products_depend_on_the_step_alone(halves):
  places = np.arange(4.0)
  angles = rotary.axial_angles(places, places, rotary.frequencies(2))
  query, key = (jnp.broadcast_to(jnp.asarray(RNG.normal(size=(1, 1, 2, 8))), (1, 17, 2, 8)) for _ in range(2))
  turned = [rotary.rotate(x, angles, prefix=1, halves=halves) for x in (query, key)]
  np.testing.assert_array_equal(turned[0][:, 0], query[:, 0])
  products = np.einsum('bnhd,bmhd->hnm', *(x[:, 1:] for x in turned)).reshape(2, 4, 4, 4, 4)
  np.testing.assert_allclose(products[:, 0, 1, 2, 2], products[:, 1, 2, 3, 3], atol=1e-5)
  np.testing.assert_allclose(products[:, 3, 2, 0, 1], products[:, 3, 3, 0, 2], atol=1e-5)
  assert np.abs(products[:, 0, 0, 0, 1] - products[:, 0, 0, 1, 0]).min() > 1e-3


def test_halves_pair_other_channels():
  angles = jnp.asarray(RNG.normal(size=(3, 4)))
  x = jnp.asarray(RNG.normal(size=(1, 3, 1, 8)))
  order = np.arange(8).reshape(2, 4).T.reshape(-1)  # channel i beside channel i + 4
  neighbours = rotary.rotate(x[..., order], angles)
  np.testing.assert_allclose(rotary.rotate(x, angles, halves=True)[..., order], neighbours, rtol=1e-6)
