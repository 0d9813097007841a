"""Estimates: their arithmetic, and independence from the block size."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import estimate
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
    # What the seeds do not share is not said of all of them.
    ais = [Estimate(1.0, 0.5, "AIS", 10, {"chains": 9, "ess": ess}) for ess in (3.0, 7.0)]
    settings = estimate.over_seeds(ais).settings
    assert "ess" not in settings
    assert (settings["chains"], settings["seeds"]) == (9, 2)


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
    for block in (1, 3, 7, 100):
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


@pytest.mark.parametrize("samples", [1, 7, 50, 51, 130])
def test_importance_bound_equals_its_definition_in_blocks(samples):
    """From fixed weights: the last block is cut, and blocks add up."""
    table = jax.random.normal(jax.random.key(0), (200, 3)) * 30

    def log_weight(key, n):
        row = jax.random.randint(key, (n,), 0, 200)
        return table[row]

    bound = estimate.importance_bound(log_weight, jax.random.key(1), samples, block=50)
    block = min(50, samples)
    drawn = [
        log_weight(jax.random.fold_in(jax.random.key(1), index), block)
        for index in range(-(-samples // block))
    ]
    log_w = np.asarray(jnp.concatenate(drawn)[:samples], np.float64)
    top = log_w.max(0)
    w = np.exp(log_w - top)
    np.testing.assert_allclose(bound.log_mean, np.log(w.mean(0)) + top, rtol=1e-5)
    np.testing.assert_allclose(bound.ess, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-3)


def test_importance_bound_needs_no_more_memory_for_more_draws():
    """The compiled program's buffers do not grow."""

    def size(samples):
        def bound(key):
            return estimate.importance_bound(
                lambda key, n: jax.random.normal(key, (n, 100)), key, samples
            )

        compiled: Any = jax.jit(bound).lower(jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert size(5000) <= size(500) * 1.01


@pytest.mark.parametrize(("bits", "block"), [(0, 12), (3, 12), (7, 3), (7, 7)])
def test_sums_over_bits_see_every_state_once(bits, block):
    """Σ over x of Π_d w_d^x_d is Π_d (1 + w_d)."""
    log_w = jnp.linspace(-2.0, 3.0, bits)
    total = estimate.log_sum_over_bits(lambda x: x @ log_w, bits, block)
    np.testing.assert_allclose(total, np.log1p(np.exp(log_w)).sum(), rtol=1e-6, atol=1e-6)


def gaussian_path(mean, start_scale=2.0):
    """From N(0, s²) to the unnormalised N(mean, 1), with exact draws as transitions: between them
    all densities are Gaussian, and log Z is ½ log 2π."""

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
    return estimate.Annealing(log_density, transition, start, log_z)


@pytest.mark.parametrize("temperatures", [1, 3, 30])
def test_ais_from_both_sides_reaches_the_integral_of_a_gaussian(temperatures):
    path, key, n = gaussian_path(1.5), jax.random.key(0), 20_000
    forward = estimate.ais(path, temperatures, key, n)
    exact_draws = 1.5 + jax.random.normal(jax.random.key(1), (n,))
    reverse = estimate.reverse_ais(path, temperatures, jax.random.key(2), exact_draws)
    found = estimate.log_z(forward, reverse)
    exact = 0.5 * np.log(2 * np.pi)
    assert abs(found.forward - exact) < 4 * found.forward_stderr
    assert abs(found.reverse - exact) < 4 * found.reverse_stderr
    # Each chain's weight lies below in expectation, the reverse ones' above, and both come nearer.
    assert forward.mean() < exact < reverse.mean()
    assert reverse.mean() - forward.mean() < 4 / temperatures


def test_log_z_of_equal_weights_has_no_error_and_of_one_large_weight_an_ess_of_one():
    equal = estimate.log_z(np.full(10, 2.0), np.full(10, 3.0))
    assert equal[:3] == pytest.approx((2.0, 0.0, 10.0))
    assert equal[3:] == pytest.approx((3.0, 0.0, 10.0))
    assert equal.width == pytest.approx(1.0)
    one = estimate.log_z(np.array([100.0, 0, 0, 0]), np.zeros(4))
    assert one.forward == pytest.approx(100 - np.log(4))
    assert one.forward_ess == pytest.approx(1.0)
    assert one.forward_stderr == pytest.approx(1.0)


def test_the_error_of_log_z_is_the_spread_over_chains():
    generator = np.random.default_rng(0)
    log_w = generator.normal(size=(2_000, 50)) * 0.5
    found = [estimate.log_z(row, row) for row in log_w]
    spread = np.std([of.forward for of in found])
    np.testing.assert_allclose(np.mean([of.forward_stderr for of in found]), spread, rtol=0.08)
