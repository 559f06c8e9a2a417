"""A step that does not fit is refused before it runs, with the way to make it fit."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import tlx
from tlx.train import room

GB = 10**9


def program(arguments, temporary, results=0, reused=0):
  memory = SimpleNamespace(
    argument_size_in_bytes=arguments,
    temp_size_in_bytes=temporary,
    output_size_in_bytes=results,
    alias_size_in_bytes=reused,
  )
  return SimpleNamespace(memory_analysis=lambda: memory)


@pytest.fixture(autouse=True)
def ten_gigabytes(monkeypatch):
  monkeypatch.setattr(room, 'limit', lambda device: 10 * GB)


def test_what_fits_passes():
  room.check(program(4 * GB, 6 * GB, 4 * GB, 4 * GB), 64, 1)
  room.check(lambda state, batch: None, 64, 1)  # pmap's


def test_the_fewest_micro_batches_that_fit_are_named():
  with pytest.raises(tlx.TlxError, match=r'needs 26\.00 GB .* has 10\.00 GB; --micro-batches 4 should fit'):
    room.check(program(2 * GB, 24 * GB), 64, 1)
  with pytest.raises(tlx.TlxError, match='--micro-batches 6 should fit'):  # from 2 already, and 4 does not divide 6
    room.check(program(2 * GB, 12 * GB, GB), 6, 2)


def test_what_no_micro_batch_makes_fit_is_said():
  with pytest.raises(tlx.TlxError, match='choose a smaller model or image'):
    room.check(program(11 * GB, GB), 64, 1)


def test_a_real_program_counts_its_arrays():
  compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256))).compile()
  assert 2 * 256 * 256 * 4 <= room.peak_bytes(compiled) < 4 * 256 * 256 * 4
  assert room.flops(compiled) == pytest.approx(2 * 256**3, rel=0.01)


def test_this_machine_has_memory(monkeypatch):
  monkeypatch.undo()
  assert room.limit(jax.devices()[0]) > GB // 2
