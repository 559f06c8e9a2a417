"""A step that does not fit is refused before it runs, with what was compiled and does fit."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import tlx
from tlx import catalog
from tlx.cost import certificate
from tlx.cost.compiled import flops
from tlx.train import memory, state, step

GB = 10**9
RECIPE = step.Recipe(None, None, tlx.Preprocess(32, 1.0))


class Compiler:
  """Builds programs of these sizes: what lasts, and what each micro-batch and each that computes again keeps."""

  def __init__(self, lasting, temporary, remat=None, fixed=0):
    self.lasting, self.fixed, self.built = lasting, fixed, []
    self.temporary = {False: temporary, True: remat or temporary}

  def __call__(self, recipe):
    self.built.append((recipe.micro_batches, recipe.remat))
    return program(self.lasting, self.fixed + self.temporary[recipe.remat] // recipe.micro_batches)

  def fit(self, batch_size=64, choose=False, **changes):
    _, recipe = memory.fit(self, dataclasses.replace(RECIPE, **changes), batch_size, choose)
    return recipe.micro_batches, recipe.remat


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
  monkeypatch.setattr(memory, 'limit', lambda device: 10 * GB)


def test_what_fits_is_compiled_once():
  fitting = Compiler(4 * GB, 6 * GB)
  assert fitting.fit() == fitting.fit(choose=True) == (1, False)
  assert fitting.built == [(1, False)] * 2
  assert memory.fit(lambda recipe: len, RECIPE, 64) == (len, RECIPE)  # pmap's


def test_the_fewest_micro_batches_that_fit_are_named():
  with pytest.raises(tlx.TlxError, match=r'needs 26\.00 GB .* has 10\.00 GB; --micro-batches 4 needs 8\.00 GB'):
    Compiler(2 * GB, 24 * GB).fit()
  with pytest.raises(tlx.TlxError, match='--micro-batches 6 needs'):  # from 2 already, and 4 does not divide 6
    Compiler(3 * GB, 24 * GB).fit(batch_size=6, micro_batches=2)


def test_the_fewest_that_fit_are_taken_where_asked_and_no_fewer_are_compiled():
  compiler = Compiler(2 * GB, 24 * GB, fixed=GB)
  assert compiler.fit(choose=True) == (4, False)
  assert compiler.built == [(1, False), (4, False)]
  tight = Compiler(2 * GB, 24 * GB, fixed=3 * GB)  # 4 would do if all that is temporary shrank
  assert tight.fit(choose=True) == (8, False)
  assert tight.built == [(1, False), (4, False), (8, False)]


def test_computing_again_is_named_where_no_micro_batch_is_small_enough():
  with pytest.raises(tlx.TlxError, match=r'; --remat needs 5\.00 GB'):
    Compiler(2 * GB, 24 * GB, remat=3 * GB).fit(batch_size=2, choose=True)
  with pytest.raises(tlx.TlxError, match=r'; --remat --micro-batches 2 needs 8\.00 GB'):
    Compiler(2 * GB, 24 * GB, remat=12 * GB).fit(batch_size=2)
  assert Compiler(2 * GB, 24 * GB, remat=12 * GB).fit(batch_size=2, remat=True, choose=True) == (2, True)


def test_what_nothing_makes_fit_is_said():
  compiler = Compiler(11 * GB, GB)
  with pytest.raises(tlx.TlxError, match='choose a smaller model or image'):
    compiler.fit(choose=True)
  assert compiler.built == [(1, False), (1, True)]


@pytest.mark.parametrize(
  ('name', 'share'), [pytest.param('resnet_test', 0.5, marks=pytest.mark.full), ('vit_test', 0.7)]
)
def test_computing_again_keeps_less_and_gives_the_same_gradients(name, share):
  """Dropout and stochastic depth draw the same numbers twice; batch statistics move once."""
  pretrained = tiny.built(name, dropout=0.3, drop_path=0.3)
  (phase,) = catalog.strategy('full').phases(pretrained.module.backbone.names)
  trainable, frozen = state.split(pretrained.variables['params'], phase)
  batch = tiny.batch(pixels=pretrained.preprocess.size)
  part = {**batch, 'image': batch['image'] / np.float32(255)}

  def losses(remat):
    recipe = step.Recipe(pretrained.module, tiny.task(), pretrained.preprocess, remat=remat)
    return step.loss_function(recipe, phase, frozen)

  arguments = trainable, pretrained.variables.get('batch_stats', {}), part, jax.random.key(0)
  kept, again = (jax.jit(jax.value_and_grad(losses(remat), has_aux=True))(*arguments) for remat in (False, True))
  scale = max(float(abs(x).max()) for x in jax.tree.leaves(kept[1]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale), kept, again)
  assert certificate.kept_bytes(losses(True), *arguments) < share * certificate.kept_bytes(losses(False), *arguments)


def test_a_real_program_counts_its_arrays():
  compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256))).compile()
  assert 2 * 256 * 256 * 4 <= memory.peak_bytes(compiled) < 4 * 256 * 256 * 4
  assert flops(compiled) == pytest.approx(2 * 256**3, rel=0.01)


def test_this_machine_has_memory(monkeypatch):
  monkeypatch.undo()
  assert memory.limit(jax.devices()[0]) > GB // 2
