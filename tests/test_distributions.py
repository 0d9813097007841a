"""Probability laws against quadrature, sums over all outcomes and their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen import distributions
from gen.distributions import (
    bernoulli_nll,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_mixture_log_prob,
)


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, 0.0), (1.3, -0.7), (-2.0, 1.1), (0.2, -4.0)])
def test_kl_equals_quadrature(mean, logvar):
    sd = math.exp(logvar / 2)
    z = np.linspace(mean - 12 * sd, mean + 12 * sd, 200_001)
    log_q = -0.5 * ((z - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    exact = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    kl = gaussian_kl(jnp.array([[mean]]), jnp.array([[logvar]]))
    np.testing.assert_allclose(kl, [exact], rtol=1e-5, atol=1e-6)


def test_likelihoods_equal_their_definitions():
    logits, x = np.array([[-1.0, 0.3, 2.0]]), np.array([[0.0, 1.0, 1.0]])
    p = 1 / (1 + np.exp(-logits))
    exact = -np.log(np.where(x == 1, p, 1 - p)).sum()
    np.testing.assert_allclose(bernoulli_nll(jnp.array(logits), jnp.array(x)), [exact], rtol=1e-6)
    mean, logvar = np.array([[0.5, -1.0, 3.0]]), np.log([[0.2, 1.0, 4.0]])
    exact = stats.norm.logpdf(x, mean, np.exp(logvar / 2)).sum()
    log_prob = gaussian_log_prob(jnp.array(x), jnp.array(mean), jnp.array(logvar))
    np.testing.assert_allclose(log_prob, [exact], rtol=1e-6)


def test_bernoulli_likelihood_sums_to_one_over_all_images():
    images = jnp.array([[(i >> bit) & 1 for bit in range(8)] for i in range(256)], jnp.float32)
    logits = jnp.tile(jnp.linspace(-2.0, 3.0, 8), (256, 1))
    np.testing.assert_allclose(jnp.exp(-bernoulli_nll(logits, images)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_bernoulli_likelihood_and_gradient_are_finite_at_extreme_logits(logit):
    x = jnp.array([[0.0], [0.5], [1.0]])
    nll = jax.jit(jax.value_and_grad(lambda logits: bernoulli_nll(logits, x).sum()))
    assert all(np.all(np.isfinite(value)) for value in nll(jnp.full((3, 1), logit)))


def test_bernoulli_entropy_is_the_expected_surprise_and_zero_at_both_ends():
    p = jnp.array([0.0, 0.2, 0.5, 1.0])
    surprise = -0.2 * np.log(0.2) - 0.8 * np.log(0.8)
    expected = [0.0, surprise, np.log(2), 0.0]
    np.testing.assert_allclose(distributions.bernoulli_entropy(p), expected, rtol=1e-6)


@pytest.mark.parametrize("logits", [[0.4], [0.4, -1.0, 2.0]])
def test_categorical_draws_have_the_probabilities_of_categorical_log_prob(logits):
    """The index at each of 10,000 evenly spaced u occurs as often as its probability says."""
    count = max(2, len(logits))
    table = np.tile(np.float32(logits), (10_000, 1))
    log_p = jax.jit(distributions.categorical_log_prob)(table[:count], np.arange(count))
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-6)
    u = np.float32((np.arange(10_000) + 0.5) / 10_000)
    index = jax.jit(distributions.categorical_from_uniform)(table, u)
    shares = np.bincount(np.asarray(index), minlength=count) / 10_000
    np.testing.assert_allclose(shares, np.exp(log_p), atol=2e-4)


def test_indices_of_weight_zero_are_never_drawn():
    weights = jnp.array([[0.0, 1.0, 0.0, 3.0, 0.0]])
    u = jnp.array([0.0, 0.2499, 0.25, 0.9999999])
    index = distributions.invert_cdf(jnp.tile(weights, (4, 1)), u)
    np.testing.assert_array_equal(index, [1, 1, 3, 3])


def test_the_gradient_of_the_categorical_scatters_no_constants():
    """XLA would evaluate such a scatter, of the size of x, while it compiles."""
    index = jnp.zeros((2, 3), jnp.int32)

    def total(logits):
        return distributions.categorical_log_prob(logits, index).sum()

    text = str(jax.make_jaxpr(jax.grad(total))(jnp.zeros((2, 3, 5))))
    assert text.count("scatter-add") == 1  # of the chosen logits


def test_gaussian_mixture_equals_the_sum_over_its_components():
    rng = np.random.RandomState(0)
    z, mean, logvar = rng.randn(5, 4, 3), rng.randn(7, 3), rng.uniform(-3, 1, (7, 3))
    densities = stats.norm.pdf(z[..., None, :], mean, np.exp(logvar / 2)).prod(axis=-1)
    expected = np.log(densities.mean(axis=-1))
    log_prob = gaussian_mixture_log_prob(*map(jnp.asarray, (z, mean, logvar)))
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5, atol=1e-5)
