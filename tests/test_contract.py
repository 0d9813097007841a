"""The contract, checked for every entry of the registry, at the size of the 8×8 digits."""

import inspect
import math
from dataclasses import fields, is_dataclass
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import equal

from gen import core, parallel, train
from gen.checkpoint import open_checkpoints
from gen.estimate import Estimate
from gen.models.hmm import Poisson

pytestmark = pytest.mark.filterwarnings("ignore:log Z lies")  # after so little training

BATCH = 16


@pytest.fixture(scope="session")
def setup(entry, digits):
    """(model, its first state, a decoded batch)."""
    model, decode = entry
    rows = {name: jnp.asarray(values[:BATCH]) for name, values in digits.train.items()}
    return model, jax.jit(model.init)(jax.random.key(0)), decode(rows, jax.random.key(1))


def run(step, state, batch, steps):
    """`steps` steps with fresh keys; the last state and all metrics."""
    history = []
    for i in range(steps):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(2), i))
        history.append(jax.block_until_ready(metrics))
    return state, history


def test_model_is_a_frozen_dataclass_of_documented_hyperparameters(entry):
    model: Any = entry[0]
    documented(model)
    assert model.family
    assert model.density in ("tractable", "approximate", "implicit", "none")


def documented(model):
    assert is_dataclass(model)
    source = inspect.getsource(type(model))
    assert hash(model) == hash(
        type(model)(**{f.name: getattr(model, f.name) for f in fields(model)})
    )
    for field in fields(model):
        after = source.split(f"    {field.name}: ")[1].splitlines()[1]
        assert after.strip().startswith('"""'), f"{field.name} has no docstring"
        if is_dataclass(getattr(model, field.name)):
            documented(getattr(model, field.name))


def test_init_is_deterministic_and_depends_on_the_key(setup):
    model, state, _ = setup
    assert equal(state, jax.jit(model.init)(jax.random.key(0)))
    if not any(np.any(leaf) for leaf in jax.tree.leaves(model.parameters(state))):
        pytest.skip("starts at zero, whatever the key: its objective is convex")
    assert not equal(state, jax.jit(model.init)(jax.random.key(1)))


def test_state_is_a_named_tuple_of_arrays_none_of_them_twice(setup):
    _, state, _ = setup
    assert hasattr(state, "_fields")
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]
    assert len(set(buffers)) == len(buffers)


def test_step_compiles_once_keeps_shapes_and_can_be_donated(setup):
    model, state, batch = setup
    state = jax.tree.map(jnp.copy, state)
    chex.clear_trace_counter()
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    step = jax.jit(chex.assert_max_traces(model.step, n=1), donate_argnums=0)
    state, history = run(step, state, batch, 3)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == shapes
    for metrics in history:
        for name, value in metrics.items():
            assert value.shape == (), name
            assert np.isfinite(value), name


def test_step_is_a_function_of_its_arguments(setup):
    model, state, batch = setup
    step = jax.jit(model.step)
    once, _ = run(step, state, batch, 3)
    again, _ = run(step, state, batch, 3)
    assert equal(once, again)


def test_no_key_is_used_twice(setup):
    model, state, batch = setup
    with jax.debug_key_reuse(True):
        jax.jit(model.step)(state, batch, jax.random.key(3))
        jax.jit(model.init)(jax.random.key(3))
        if "sample" in core.capabilities(model):
            jax.jit(model.sample, static_argnums=2)(state, jax.random.key(3), 4)


def test_training_lowers_the_objective(setup, entry, digits):
    """From where `init` leaves it: what a model takes from the data to begin with counts, too."""
    model, decode = entry
    _, first = jax.jit(model.step)(*setup[1:], jax.random.key(0))
    losses = [
        progress.metrics["loss"]
        for progress in train.fit(
            model, digits.train, steps=300, batch_size=64, decode=decode, report_every=1
        )
        if progress.metrics and "loss" in progress.metrics
    ]
    if not losses and model.family == "GAN":
        pytest.skip("two objectives against each other: neither need fall")
    if not losses and model.family == "Boltzmann machine":
        pytest.skip("its objective has no value: log Z is unknown")
    assert np.mean(losses[-40:]) < 0.95 * first["loss"]


def test_mesh_equals_one_device(setup):
    """Every metric of 100 steps within 2e-5, and the state within 1e-5 on average.

    Not every weight: where a gradient is zero but for rounding, dividing by √v makes a full step of
    it, up or down. Such a weight differs and hardly matters.
    """
    model, state, batch = setup
    one, one_history = run(jax.jit(model.step), state, batch, 100)
    mesh = parallel.make_mesh(8)

    def sharded(state, batch, key):
        return model.step(state, parallel.split_rows(batch, mesh), key)

    everywhere = parallel.replicated(mesh)
    step = jax.jit(sharded, out_shardings=everywhere)
    many, many_history = run(step, jax.device_put(state, everywhere), batch, 100)
    chex.assert_trees_all_close(
        jax.device_get(one_history), jax.device_get(many_history), rtol=2e-5, atol=2e-5
    )
    distance = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).ravel(), one, many)
    assert np.concatenate(jax.tree.leaves(distance)).mean() < 1e-5


def test_pmap_replicas_agree_and_learn_from_every_shard(setup):
    model, state, batch = setup
    step = parallel.pmap_step(model, 4)
    shards = parallel.shard(batch, 4)
    states, history = run(step, parallel.replicate(state, 4), shards, 3)
    for leaf in jax.tree.leaves((states, history)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    # Another last shard gives another state: the mean is over all of them.
    other = {**shards, "x": np.concatenate([shards["x"][:3], 1 - np.asarray(shards["x"][3:])])}
    others, _ = run(step, parallel.replicate(state, 4), other, 3)
    assert not equal(states, others)


def test_seeds_under_vmap_equal_each_alone(entry, digits):
    model, decode = entry
    options = {"steps": 30, "batch_size": BATCH, "decode": decode, "report_every": 10}
    *_, together = train.fit(model, digits.train, seed=[0, 7], **options)
    *_, alone = train.fit(model, digits.train, seed=7, **options)
    of_seven = jax.tree.map(lambda leaf: leaf[1], together.carry)
    chex.assert_trees_all_close(of_seven, alone.carry, rtol=1e-4, atol=1e-4)
    assert together.metrics
    assert alone.metrics
    for name, values in together.metrics.items():
        np.testing.assert_allclose(values[1], alone.metrics[name], rtol=1e-4)


def test_grouping_steps_changes_nothing(entry, digits):
    model, decode = entry
    options = {"steps": 25, "batch_size": BATCH, "decode": decode, "report_every": 10}
    one = list(train.fit(model, digits.train, steps_per_dispatch=1, **options))
    grouped = list(train.fit(model, digits.train, steps_per_dispatch=7, **options))
    assert [p.step for p in grouped] == [7, 10, 17, 20, 25]
    carries = (without_key_biases(progress[-1].carry) for progress in (one, grouped))
    chex.assert_trees_all_close(*carries, rtol=1e-5, atol=1e-6)


def without_key_biases(tree):
    """The leaves by path, but for the biases of attention's keys, which softmax does not see: their
    gradient is rounding alone, of which Adam makes full steps."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if "['key']['bias']" not in name}


def test_restored_run_continues_bit_for_bit(entry, digits, tmp_path):
    model, decode = entry
    options = {"batch_size": BATCH, "decode": decode, "report_every": 10, "seed": 3}
    options |= {"steps_per_dispatch": 7}
    *_, whole = train.fit(model, digits.train, steps=25, **options)
    *_, half = train.fit(model, digits.train, steps=13, pause_every=[13], **options)
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(half.step, half.carry, {"note": 1})
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        target = jax.eval_shape(lambda: train.begin(model, digits.train, BATCH, 3, decode=decode))
        restored = checkpoints.restore(target)
    assert restored
    assert (restored.step, restored.info, restored.damaged) == (13, {"note": 1}, {})
    assert equal(restored.tree, half.carry)
    *_, resumed = train.fit(
        model, digits.train, steps=25, start=(restored.step, restored.tree), **options
    )
    assert equal(resumed.carry, whole.carry)
    assert resumed.metrics == whole.metrics


def test_evaluate_gives_estimates_that_do_not_depend_on_training_keys(setup):
    model, state, batch = setup
    estimates = model.evaluate(state, batch, jax.random.key(5))
    assert estimates
    for name, estimate in estimates.items():
        assert isinstance(estimate, Estimate)
        assert np.isfinite(estimate.value)
        assert estimate.stderr >= 0
        assert estimate.n >= BATCH or name.startswith("log_z")
    assert estimates == model.evaluate(state, batch, jax.random.key(5))


def test_capabilities_do_what_they_say(setup):
    model, state, batch = setup
    able = core.capabilities(model)
    counts = isinstance(getattr(model, "emission", None), Poisson)
    if "sample" in able:
        samples = model.sample(state, jax.random.key(6), 5)
        assert samples.shape == (5, *model.shape)
        assert samples.min() >= 0
        assert samples.max() <= 1 or counts
        assert not equal(samples[0], samples[1])
    if "reconstruct" in able:
        assert model.reconstruct(state, batch).shape == batch["x"].shape
    if "encode" in able and "decode" in able:
        codes = model.encode(state, batch)
        decoded = model.decode(state, codes)
        if "reconstruct" in able:
            assert codes.shape == (BATCH, model.latent)
            again = model.reconstruct(state, batch)
            np.testing.assert_allclose(decoded, again, rtol=1e-5, atol=1e-6)
        else:
            assert codes.shape == (BATCH, math.prod(model.shape))
            assert decoded.shape == batch["x"].shape
    if "score" in able:
        scores = model.score(state, batch)
        assert scores.shape == (BATCH,)
        noise = jax.random.uniform(jax.random.key(7), batch["x"].shape)
        learned, _ = run(jax.jit(model.step), state, batch, 150)
        score = jax.jit(model.score)
        assert score(learned, {**batch, "x": noise}).mean() > score(learned, batch).mean()
    if "log_prob" in able:
        np.testing.assert_allclose(
            model.log_prob(state, batch), -model.score(state, batch), rtol=1e-5
        )
        nll = model.evaluate(state, batch, jax.random.key(0))["nll"]
        np.testing.assert_allclose(nll.value, -model.log_prob(state, batch).mean(), rtol=1e-5)
        assert nll.kind == "exact"
    if "complete" in able:
        mask = jnp.zeros(model.shape).at[:4].set(1)
        whole = model.complete(state, batch["x"], mask, jax.random.key(8))
        assert whole.shape == batch["x"].shape
        np.testing.assert_array_equal(whole[:, :4], batch["x"][:, :4])
        assert whole.min() >= 0
        assert whole.max() <= 1 or counts
        assert set(np.unique(whole)) <= {0, 1} or counts
    if "filters" in able:
        assert model.filters(state).shape[1:] == model.shape
    if "objective" in able:
        assert model.objective(state, batch, jax.random.key(9)).shape == (BATCH,)
