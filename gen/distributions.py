"""Probability laws that several families share: log-probabilities, draws, divergences."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp


def logit(p: jax.Array) -> jax.Array:
    """Return log p / (1 − p), elementwise."""
    return jnp.log(p) - jnp.log1p(-p)


def bernoulli_nll(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Return −log p(x) of independent Bernoulli variables, summed over the last axis, in nats.

    −x log σ(l) − (1 − x) log σ(−l) = log(1 + exp l) − x l, which is stable for large logits. For x
    strictly between 0 and 1 it is a cross-entropy and not a likelihood.
    """
    chex.assert_equal_shape((logits, x))
    return jnp.sum(jax.nn.softplus(logits) - x * logits, axis=-1)


def bernoulli_sample(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw independent 0 or 1 with P(1) = σ(logits), as floats of the logits' type."""
    uniform = jax.random.uniform(key, logits.shape)
    return (uniform < jax.nn.sigmoid(logits)).astype(logits.dtype)


def bernoulli_entropy(p: jax.Array) -> jax.Array:
    """Return −p log p − (1 − p) log(1 − p), elementwise in nats; 0 at both ends."""
    return -jax.scipy.special.xlogy(p, p) - jax.scipy.special.xlog1py(1 - p, -p)


def categorical_log_prob(logits: jax.Array, index: jax.Array) -> jax.Array:
    """Return log p(index) of categorical variables.

    Args:
      logits: [..., C]. One logit (C = 1) is the log-odds of index 1 against index 0; otherwise the
        probabilities are the softmax over C indices.
      index: integers [...].

    Returns:
      [...], nats.
    """
    if logits.shape[-1] == 1:
        return -jax.nn.softplus(jnp.where(index == 1, -logits[..., 0], logits[..., 0]))
    # optax.softmax_cross_entropy_with_integer_labels computes the same. Its gradient scatters
    # constants into an array of the size of x, which XLA evaluates, for seconds, while compiling.
    chosen = jnp.take_along_axis(logits, index[..., None], axis=-1).squeeze(-1)
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def categorical_from_uniform(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """Draw an index by inverting the distribution function at a uniform draw.

    Args:
      logits: [..., C], as in `categorical_log_prob`. With one logit the index is 1 where
        u < σ(logit).
      uniform: u in [0, 1), [...].
    """
    if logits.shape[-1] == 1:
        return (uniform < jax.nn.sigmoid(logits[..., 0])).astype(jnp.int32)
    return invert_cdf(jax.nn.softmax(logits), uniform)


def invert_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Return the index at which the cumulative sum of the weights first exceeds u times its total.

    Args:
      weights: probabilities up to a common factor, [..., C].
      uniform: u in [0, 1), [...].
    """
    cumulative = jnp.cumsum(weights, axis=-1)  # whose last entry may round to less than the total
    threshold = uniform[..., None] * cumulative[..., -1:]
    return jnp.sum(threshold >= cumulative[..., :-1], axis=-1)


def gaussian_log_prob(x: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Return log N(x; mean, diag exp(logvar)), summed over the last axis, in nats of a density.

    Args:
      x: [..., D].
      mean: broadcasts to x.
      logvar: log-variances, which broadcast to x.
    """
    each = (x - mean) ** 2 * jnp.exp(-logvar) + logvar + math.log(2 * math.pi)
    return -0.5 * jnp.sum(each, axis=-1)


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Return KL(N(mean, diag exp(logvar)) ‖ N(0, I)), summed over the last axis, in nats.

    ½ Σ (mean² + exp(logvar) − 1 − logvar): Kingma & Welling 2014, https://arxiv.org/abs/1312.6114,
    appendix B.
    """
    chex.assert_equal_shape((mean, logvar))
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=-1)


def gaussian_mixture_log_prob(z: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Return log 1/K Σ_k N(z; mean_k, diag exp(logvar_k)), in nats of a density.

    (z − m)² / v = z² / v − 2 z m / v + m² / v, summed over D, takes two matrix products, and no
    array has an entry for each z, component and dimension.

    Args:
      z: [..., D].
      mean: means of the components, [K, D].
      logvar: log-variances of the components, [K, D].

    Returns:
      [...].
    """
    precision = jnp.exp(-logvar)
    with jax.default_matmul_precision("highest"):  # its terms nearly cancel
        squares = z**2 @ precision.T - 2 * z @ (mean * precision).T
    constant = jnp.sum(mean**2 * precision + logvar + math.log(2 * math.pi), axis=1)
    each = -0.5 * (squares + constant.reshape((1,) * (z.ndim - 1) + (-1,)))  # [..., K]
    return jax.nn.logsumexp(each, axis=-1) - math.log(len(mean))
