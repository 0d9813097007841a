"""The autoencoder against its definition and, where it is linear, against principal components."""

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gen import train
from gen.core import UserError
from gen.models.autoencoder import Autoencoder
from gen.nets import MLP


def test_the_default_is_the_textbooks_network():
    model = Autoencoder()
    state = jax.eval_shape(model.init, jax.random.key(0))
    params: dict[tuple[str, ...], Any] = flatten_dict(state.params)
    assert {path: leaf.shape for path, leaf in params.items() if leaf.ndim == 2} == {
        ("encoder", "Dense_0", "kernel"): (784, 784),
        ("encoder", "Dense_1", "kernel"): (784, 256),
        ("encoder", "Dense_2", "kernel"): (256, 128),
        ("decoder", "Dense_0", "kernel"): (128, 128),
        ("decoder", "Dense_1", "kernel"): (128, 256),
        ("decoder", "Dense_2", "kernel"): (256, 784),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(model.parameters(state))) == 1_100_320


def test_initial_weights_are_glorot_uniform():
    params = jax.jit(Autoencoder().init)(jax.random.key(0)).params
    kernel = np.asarray(params["encoder"]["Dense_1"]["kernel"])
    limit = np.sqrt(6 / (784 + 256))
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.01)
    assert not any(leaf.any() for leaf in jax.tree.leaves(params) if leaf.ndim == 1)


def test_loss_is_the_mean_of_the_scores_and_of_the_squared_errors(digits):
    model = Autoencoder(shape=digits.shape, encoder=MLP((12, 5)), decoder=MLP((12,)))
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": np.asarray(digits.train["x"][:7], np.float32) / digits.format.peak}
    key = jax.random.key(1)
    _, metrics = jax.jit(model.step)(state, batch, key)
    errors = (batch["x"] - np.asarray(jax.jit(model.reconstruct)(state, batch))) ** 2
    np.testing.assert_allclose(metrics["loss"], errors.mean(), rtol=1e-5)
    scores = jax.jit(model.score)(state, batch, key)
    np.testing.assert_allclose(scores, errors.mean(axis=(1, 2, 3)), rtol=1e-5)
    mse = model.evaluate(state, batch, key)["mse"]
    np.testing.assert_allclose(mse.value, errors.mean(), rtol=1e-5)
    assert (mse.kind, mse.n) == ("exact", 7)


def test_linear_autoencoder_finds_the_principal_subspace():
    """The least squared error of a linear code of 3 is the variance outside the first 3 principal
    components (Baldi & Hornik 1989)."""
    scales = np.array([2.0, 1.5, 1.0, 0.5, 0.4, 0.3])
    x = np.asarray(jax.random.normal(jax.random.key(0), (256, 6))) * scales
    variances = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    best = variances[3:].sum() / x.size

    model = Autoencoder(shape=(6,), encoder=MLP((3,), "linear"), decoder=MLP(()), output="linear")
    data = {"x": np.asarray(x, np.float32)}
    *_, last = train.fit(model, data, steps=3000, batch_size=256, steps_per_dispatch=1000)
    error = model.evaluate(last.carry.state, data, jax.random.key(0))["mse"].value
    assert best <= error < 1.02 * best


def test_impossible_hyperparameters_are_refused():
    with pytest.raises(UserError, match=r"hidden is \(8, -1\), must be positive"):
        Autoencoder(encoder=MLP((8, -1)))
