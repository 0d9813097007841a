"""Exact inference in a hidden Markov model: pure functions on the arrays of one sequence.

The forward-backward algorithm (filtering, then smoothing), the Viterbi algorithm and sampling from
the posterior over paths, each by one scan over the T steps of the sequence, O(T K²) for K states
(Rabiner 1989, https://doi.org/10.1109/5.18626, section III). `jax.vmap` takes batches of sequences.
`gen.models.hmm.parallel` has the same algorithms in parallel over blocks of steps.

Three arrays describe the model and the sequence:

- `log_initial` [K]: log p(z_1 = k).
- `log_transition` [K, K]: log p(z_t = j | z_t−1 = i), normalised over j, one row for each i.
- `log_likelihood` [T, K]: log p(x_t | z_t = k). A row of zeros sums out a missing observation.

−∞ is the logarithm of an impossible event.

Each step is normalised and the logarithms of the normalisers are summed (Rabiner's scaling, section
V.A), so no length of sequence overflows or underflows. A state whose probability given the
observations up to its step is below 1e-38 (float32) is set to 0. It becomes positive again only by
a transition from another state. `viterbi` works on logarithms and has no such limit.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen.distributions import invert_cdf

TINY = 1e-37
"""A lower bound on divisors, just above the least normal float32."""

matmul = partial(jnp.matmul, precision="highest")
"""Matrix product in full float32, which a GPU may otherwise round to TF32."""


class Filtered(NamedTuple):
    """The result of the forward pass. x_≤t stands for the observations x_1 … x_t."""

    state: jax.Array  # p(z_t = k | x_≤t), [T, K]
    predicted: jax.Array  # p(z_t+1 = k | x_≤t), [T, K]
    log_evidence: jax.Array  # log p(x_t | x_≤t−1), [T] nats; the sum is log p(x)


def filter(
    log_initial: jax.Array, log_transition: jax.Array, log_likelihood: jax.Array
) -> Filtered:
    """Run the forward pass (filtering).

    The state is updated by the observation, whose evidence is the normaliser, then predicted:

        p(z_t = k | x_≤t) ∝ p(z_t = k | x_≤t−1) p(x_t | z_t = k),
        p(z_t+1 = j | x_≤t) = Σ_i p(z_t = i | x_≤t) p(j | i).

    Args:
      log_initial: log p(z_1), [K].
      log_transition: log p(z_t | z_t−1), [K, K].
      log_likelihood: log p(x_t | z_t), [T, K].
    """
    transition = jnp.exp(log_transition)

    def step(predicted, log_likelihood):
        log_joint = log(predicted) + log_likelihood  # log p(z_t = k, x_t | x_≤t−1)
        highest = finite(jax.lax.stop_gradient(log_joint.max()))
        joint = jnp.exp(log_joint - highest)
        total = joint.sum()
        state = joint / jnp.maximum(total, TINY)
        predicted = matmul(state, transition)
        return predicted, Filtered(state, predicted, highest + log(total))

    _, filtered = jax.lax.scan(step, jnp.exp(log_initial), log_likelihood)
    return filtered


def smooth(
    log_transition: jax.Array, filtered: Filtered, following: jax.Array | None = None
) -> jax.Array:
    """Run the backward pass (smoothing): return p(z_t = k | x_1 … x_T), [T, K].

    p(z_t = i | x) = p(z_t = i | x_≤t) Σ_j p(j | i) p(z_t+1 = j | x) / p(z_t+1 = j | x_≤t).

    Args:
      log_transition: log p(z_t | z_t−1), [K, K].
      filtered: the result of the forward pass.
      following: p(z_T+1 | x) where the sequence goes on and x has later observations, [K]. By
        default x ends at step T, and the prediction of `filtered` is taken.
    """
    transition = jnp.exp(log_transition)

    def step(following, now):
        state, predicted = now
        smoothed = state * matmul(transition, ratio(following, predicted))
        smoothed /= jnp.maximum(smoothed.sum(), TINY)  # the sum is 1 but for rounding
        return smoothed, smoothed

    following = filtered.predicted[-1] if following is None else following
    inputs = filtered.state, filtered.predicted
    return jax.lax.scan(step, following, inputs, reverse=True)[1]


def expected_transitions(
    log_transition: jax.Array, filtered: Filtered, smoothed: jax.Array, length: jax.Array | int
) -> jax.Array:
    """Return the expected number of transitions from i to j, [K, K].

    It is Σ_t p(z_t = i, z_t+1 = j | x) = p(j | i) Σ_t p(z_t = i | x_≤t) r_t+1(j) with
    r_t+1(j) = p(z_t+1 = j | x) / p(z_t+1 = j | x_≤t), one matrix product.

    Args:
      log_transition: log p(z_t | z_t−1), [K, K].
      filtered: the result of the forward pass.
      smoothed: the result of the backward pass, [T, K].
      length: the number of steps of the sequence; the rest of the T steps is padding.
    """
    later = ratio(smoothed[1:], filtered.predicted[:-1])
    within = jnp.arange(1, len(smoothed)) < length
    later = jnp.where(within[:, None], later, 0.0)
    return jnp.exp(log_transition) * matmul(filtered.state[:-1].T, later)


def viterbi(
    log_initial: jax.Array,
    log_transition: jax.Array,
    log_likelihood: jax.Array,
    length: jax.Array | int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the Viterbi algorithm (Viterbi 1967, https://doi.org/10.1109/TIT.1967.1054010).

    Args:
      log_initial: log p(z_1), [K].
      log_transition: log p(z_t | z_t−1), [K, K].
      log_likelihood: log p(x_t | z_t), [T, K].
      length: the number of steps of a padded sequence; by default T.

    Returns:
      The most probable path arg max_z p(z | x), [T], which stays in its last state in the padding,
      and log max_z p(z, x), [].
    """
    steps = len(log_likelihood)
    within = jnp.arange(steps) < (steps if length is None else length)
    score, came_from, highest = best_scores(
        log_initial + log_likelihood[0], log_transition, log_likelihood[1:], within[1:]
    )
    # The sum of the steps' shares is more accurate than a total that is carried along.
    return trace_back(came_from, score.argmax()), highest.sum() + score.max()


def best_scores(
    score: jax.Array, log_transition: jax.Array, log_likelihood: jax.Array, within: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the forward pass of the Viterbi algorithm.

    δ_t(j) = max_i [δ_t−1(i) + log p(j | i)] + log p(x_t | z_t = j), and its maximum over j is
    subtracted at each step.

    Args:
      score: δ before the first of the steps: the log-probability of the best path that ends in each
        state, up to a constant, [K].
      log_transition: log p(z_t | z_t−1), [K, K].
      log_likelihood: log p(x_t | z_t), [T, K].
      within: False for padding, through which paths stay where they are, [T].

    Returns:
      δ after the last step, [K]; the state before each state on the best path that ends in it,
      [T, K]; and what was subtracted at each step, [T].
    """
    states = jnp.arange(len(score))

    def step(score, now):
        log_likelihood, within = now
        joint = score[:, None] + log_transition  # of the best path to i, then j
        came_from = jnp.where(within, joint.argmax(0), states)
        score = jnp.where(within, joint.max(0) + log_likelihood, score)
        highest = finite(score.max())
        return score - highest, (came_from, highest)

    score, (came_from, highest) = jax.lax.scan(step, score, (log_likelihood, within))
    return score, came_from, highest


def trace_back(came_from: jax.Array, last: jax.Array) -> jax.Array:
    """Return the path [T] that ends in the state `last` and has z_t = came_from[t, z_t+1]."""

    def step(later, came_from):
        return came_from[later], came_from[later]

    _, path = jax.lax.scan(step, last, came_from, reverse=True)
    return jnp.append(path, last)


def posterior_sample(key: jax.Array, log_transition: jax.Array, filtered: Filtered) -> jax.Array:
    """Draw a path z ~ p(z_1 … z_T | x), [T], by forward filtering and backward sampling.

    The last state is drawn from p(z_T | x), and then, from later to earlier steps,

        z_t ~ p(z_t = i | z_t+1, x_≤t) ∝ p(z_t = i | x_≤t) p(z_t+1 | i).

    Args:
      key: the source of the draws.
      log_transition: log p(z_t | z_t−1), [K, K].
      filtered: the result of the forward pass.
    """
    transition = jnp.exp(log_transition)
    uniform = jax.random.uniform(key, (len(filtered.state),))

    def step(later, now):
        state, uniform = now
        drawn = invert_cdf(state * transition[:, later], uniform)
        return drawn, drawn

    last = invert_cdf(filtered.state[-1], uniform[-1])
    _, path = jax.lax.scan(step, last, (filtered.state[:-1], uniform[:-1]), reverse=True)
    return jnp.append(path, last)


def finite(x: jax.Array) -> jax.Array:
    """Return x with 0 in place of −∞, to subtract it from values that may all be −∞."""
    return jnp.where(jnp.isneginf(x), 0.0, x)


def log(p: jax.Array) -> jax.Array:
    """Return log p, elementwise. Its gradient at 0, where it is −∞, is 0 and not NaN."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a / b, elementwise, and 0 where b is 0, and a with it."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
