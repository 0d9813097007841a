"""Estimates, importance-weighted bounds and normalisers, against their definitions."""

import json
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import estimate
from gen.ais import Annealing, ais, log_sum_over_bits, log_z, reverse_ais
from gen.bounds import importance_bound
from gen.estimate import Estimate


def test_mean_and_standard_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    made = estimate.mean(values, "exact", note=1)
    assert made.value == 4.0
    np.testing.assert_allclose(made.stderr, values.std(ddof=1) / 2)
    assert (made.kind, made.n, made.settings) == ("exact", 4, {"note": 1})


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (103.4196, 0.2345, "103.42 ± 0.23 (exact, n = 10)"),
        (103.4196, 23.45, "103 ± 23 (exact, n = 10)"),
        (0.017229, 0.000082, "0.017229 ± 0.000082 (exact, n = 10)"),
        (1.5, 0.0, "1.5000 ± 0.0000 (exact, n = 10)"),
    ],
)
def test_text_has_two_digits_of_the_error(value, stderr, text):
    assert str(Estimate(value, stderr, "exact", 10)) == text


def test_over_seeds_keeps_the_error_over_examples():
    made = estimate.over_seeds([Estimate(v, 0.5, "exact", 10) for v in (1.0, 2.0, 3.0)])
    assert (made.value, made.stderr, made.settings["seeds"]) == (2.0, 0.5, 3)
    np.testing.assert_allclose(made.settings["seeds_stderr"], 1 / np.sqrt(3))
    # Only settings that all seeds share are kept.
    seeds = [Estimate(1.0, 0.5, "AIS", 10, {"chains": 9, "ess": ess}) for ess in (3.0, 7.0)]
    settings = estimate.over_seeds(seeds).settings
    assert "ess" not in settings
    assert (settings["chains"], settings["seeds"]) == (9, 2)


def test_over_seeds_keeps_the_doubts_of_every_seed():
    marks = ({}, {"doubts": "wide"}, {"doubts": "crossed, wide"})
    seeds = [Estimate(1.0, 0.5, "AIS", 10, settings) for settings in marks]
    assert estimate.over_seeds(seeds).settings["doubts"] == "crossed, wide"
    assert "doubts" not in estimate.over_seeds(seeds[:1] * 2).settings


def test_a_ratio_weighs_examples_by_their_size_and_has_the_error_of_the_delta_method():
    values, sizes = np.array([2.0, 9.0, 4.0]), np.array([1.0, 3.0, 2.0])
    made = estimate.ratio(values, sizes, "exact", unit="step")
    residual = values - 2.5 * sizes
    np.testing.assert_allclose(made.value, 2.5)
    np.testing.assert_allclose(made.stderr, np.sqrt(1.5 * (residual**2).sum()) / 6)
    assert (made.kind, made.n, made.settings) == ("exact", 3, {"unit": "step"})


def test_bits_are_nats_by_log_two_and_by_the_number_of_variables():
    nats = Estimate(8 * np.log(2), 4 * np.log(2), "exact", 9, {"discretization": 2 * np.log(2)})
    bits = estimate.in_bits(nats, 4)
    np.testing.assert_allclose([bits.value, bits.stderr], [2.0, 1.0])
    np.testing.assert_allclose(bits.settings["discretization"], 0.5)


@pytest.mark.parametrize("values", [[1.0, 2.0], [1.0]])
def test_an_estimate_survives_json(values):
    made = estimate.mean(values, "upper bound", draws=3)
    again = estimate.from_json(json.loads(json.dumps(estimate.to_json(made))))
    assert str(again) == str(made)
    assert again.settings == made.settings


def test_per_example_equals_a_loop_at_every_block_size():
    data = {"x": np.arange(14, dtype=np.float32).reshape(7, 2)}
    key = jax.random.key(0)

    def f(batch, key):
        noise = jax.random.normal(key, batch["x"].shape)
        return batch["x"].sum(axis=1), noise.sum(axis=1)

    expected = [
        f({"x": jnp.asarray(row[None])}, row_key)
        for row, row_key in zip(data["x"], jax.random.split(key, 7), strict=True)
    ]
    for block in (3, 7, 100):
        sums, noise = estimate.per_example(f, data, key, block)
        np.testing.assert_allclose(sums, [e[0][0] for e in expected], rtol=1e-6)
        np.testing.assert_allclose(noise, [e[1][0] for e in expected], atol=1e-5)


def test_kinds_have_no_order_without_a_mark():
    exact, other = Estimate(90.0, 0.1, "exact", 10), Estimate(80.0, 0.1, "exact", 10)
    bound = Estimate(85.0, 0.1, "upper bound", 10)
    assert other < exact
    assert exact >= other
    assert sorted([exact, other]) == [other, exact]
    for compare in (lambda: exact < bound, lambda: bound >= exact, lambda: sorted([exact, bound])):
        with pytest.raises(TypeError, match="different kinds"):
            compare()
    assert exact <= exact
    assert not exact < exact
    assert exact > other
    with pytest.raises(TypeError):
        assert exact < cast(Any, 3.0)


@pytest.mark.parametrize("samples", [1, 50, 51])
def test_importance_bound_equals_its_definition_in_blocks(samples):
    """The weights come from a fixed table. The last block is cut, and blocks add up."""
    table = jax.random.normal(jax.random.key(0), (200, 3)) * 30

    def log_weight(key, n):
        row = jax.random.randint(key, (n,), 0, 200)
        return table[row]

    @jax.jit
    def bound_and_draws(key):
        size = min(50, samples)
        keys = [jax.random.fold_in(key, index) for index in range(-(-samples // size))]
        draws = [log_weight(block_key, size) for block_key in keys]
        return importance_bound(log_weight, key, samples, block=50), jnp.concatenate(draws)

    bound, draws = bound_and_draws(jax.random.key(1))
    log_w = np.asarray(draws[:samples], np.float64)
    top = log_w.max(0)
    w = np.exp(log_w - top)
    np.testing.assert_allclose(bound.log_mean, np.log(w.mean(0)) + top, rtol=1e-5)
    np.testing.assert_allclose(bound.ess, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-3)


def test_importance_bound_needs_no_more_memory_for_more_draws():
    """The compiled program's buffers do not grow."""

    def size(samples):
        def bound(key):
            return importance_bound(lambda key, n: jax.random.normal(key, (n, 100)), key, samples)

        compiled: Any = jax.jit(bound).lower(jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert size(5000) <= size(500) * 1.01


@pytest.mark.parametrize(("bits", "block"), [(0, 12), (3, 12), (7, 3), (7, 7)])
def test_sums_over_bits_count_every_state_once(bits, block):
    """Σ over x of Π_d w_d^x_d is Π_d (1 + w_d)."""
    log_w = jnp.linspace(-2.0, 3.0, bits)
    total = log_sum_over_bits(lambda x: x @ log_w, bits, block)
    np.testing.assert_allclose(total, np.log1p(np.exp(log_w)).sum(), rtol=1e-6, atol=1e-6)


def gaussian_path(mean, start_scale=2.0):
    """Return the path from N(0, s²) to the unnormalised N(mean, 1), whose log Z is ½ log 2π.

    All densities on the path are Gaussian, and the transitions are exact draws from them.
    """

    def precision(beta):
        return (1 - beta) / start_scale**2 + beta

    def log_density(x, beta):
        return -0.5 * (1 - beta) * x**2 / start_scale**2 - 0.5 * beta * (x - mean) ** 2

    def transition(x, beta, key):
        centre = beta * mean / precision(beta)
        return centre + jax.random.normal(key, x.shape) / jnp.sqrt(precision(beta))

    def start(key, n):
        return start_scale * jax.random.normal(key, (n,))

    log_z = jnp.log(start_scale) + 0.5 * jnp.log(2 * jnp.pi)
    return Annealing(log_density, transition, start, log_z)


@pytest.mark.parametrize("temperatures", [1, 30])
def test_ais_from_both_sides_reaches_the_integral_of_a_gaussian(temperatures):
    path, key, n = gaussian_path(1.5), jax.random.key(0), 20_000
    forward = ais(path, temperatures, key, n)
    exact_draws = 1.5 + jax.random.normal(jax.random.key(1), (n,))
    reverse = reverse_ais(path, temperatures, jax.random.key(2), exact_draws)
    result = log_z(forward, reverse)
    exact = 0.5 * np.log(2 * np.pi)
    assert abs(result.forward - exact) < 4 * result.forward_stderr
    assert abs(result.reverse - exact) < 4 * result.reverse_stderr
    # A forward log weight is below log Z in expectation and a reverse one above; more temperatures
    # bring both nearer to it.
    assert forward.mean() < exact < reverse.mean()
    assert reverse.mean() - forward.mean() < 4 / temperatures


def test_log_z_of_equal_weights_has_no_error_and_of_one_large_weight_an_ess_of_one():
    equal = log_z(np.full(10, 2.0), np.full(10, 3.0))
    assert equal[:3] == pytest.approx((2.0, 0.0, 10.0))
    assert equal[3:] == pytest.approx((3.0, 0.0, 10.0))
    assert equal.width == pytest.approx(1.0)
    one = log_z(np.array([100.0, 0, 0, 0]), np.zeros(4))
    assert one.forward == pytest.approx(100 - np.log(4))
    assert one.forward_ess == pytest.approx(1.0)
    assert one.forward_stderr == pytest.approx(1.0)


def test_the_standard_error_of_log_z_is_its_spread_over_repeats():
    generator = np.random.default_rng(0)
    log_w = generator.normal(size=(2_000, 50)) * 0.5
    results = [log_z(row, row) for row in log_w]
    spread = np.std([result.forward for result in results])
    stderr = np.mean([result.forward_stderr for result in results])
    np.testing.assert_allclose(stderr, spread, rtol=0.08)
