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
