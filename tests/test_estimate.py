"""Estimates: their arithmetic, and independence from the block size."""

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
