"""The autoencoder against its definition and, where it is linear, against principal components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import train
from gen.core import UserError
from gen.models.autoencoder import Autoencoder


def test_default_is_the_chapters_network():
    params = jax.eval_shape(Autoencoder().init, jax.random.key(0)).params
    kernels = sorted(leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    assert kernels == sorted([(784, 256), (256, 128), (128, 256), (256, 784)])


def test_initial_weights_are_glorot_uniform():
    params = jax.jit(Autoencoder().init)(jax.random.key(0)).params
    kernel = params["encoder"]["params"]["Hidden_0"]["Dense_0"]["kernel"]
    limit = np.sqrt(6 / (784 + 256))
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.01)
    assert not any(leaf.any() for leaf in jax.tree.leaves(params) if leaf.ndim == 1)


def test_loss_is_the_mean_of_the_scores_and_of_the_squared_errors(digits):
    model = Autoencoder(shape=digits.shape, hidden=(12,), latent=5)
    state = jax.jit(model.init)(jax.random.key(0))
    batch = {"x": jnp.asarray(digits.train["x"][:7], jnp.float32) / digits.peak}
    _, metrics = jax.jit(model.step)(state, batch, jax.random.key(1))
    errors = (batch["x"] - model.reconstruct(state, batch)) ** 2
    np.testing.assert_allclose(metrics["loss"], errors.mean(), rtol=1e-5)
    np.testing.assert_allclose(model.score(state, batch), errors.mean(axis=(1, 2, 3)), rtol=1e-5)
    mse = model.evaluate(state, batch, jax.random.key(1))["mse"]
    np.testing.assert_allclose(mse.value, errors.mean(), rtol=1e-5)
    assert (mse.kind, mse.n) == ("exact", 7)


def test_linear_autoencoder_finds_the_principal_subspace():
    """The least squared error of a linear code of 3 is the variance outside the first 3 principal
    components (Baldi & Hornik 1989)."""
    scales = np.array([2.0, 1.5, 1.0, 0.5, 0.4, 0.3])
    x = np.asarray(jax.random.normal(jax.random.key(0), (512, 6))) * scales
    variances = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    best = variances[3:].sum() / x.size

    model = Autoencoder(shape=(6,), hidden=(), latent=3, activation="linear", output="linear")
    data = {"x": np.asarray(x, np.float32)}
    *_, last = train.fit(model, data, steps=5000, batch_size=512, steps_per_dispatch=100)
    error = float(model.score(last.carry.state, {"x": jnp.asarray(data["x"])}).mean())
    assert best <= error < 1.02 * best


@pytest.mark.parametrize("flags", [{"latent": 0}, {"hidden": (8, -1)}, {"learning_rate": 0.0}])
def test_impossible_hyperparameters_are_refused(flags):
    with pytest.raises(UserError):
        Autoencoder(**flags)
