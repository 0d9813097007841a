"""Exact inference in a hidden Markov chain: pure functions on arrays, usable on their own.

They take one sequence of T steps and K states (`jax.vmap` takes batches):

- `log_initial` [K]: log p(z_1);
- `log_transition` [K, K]: log p(z_t = j | z_t−1 = i), a row for each i;
- `log_likelihood` [T, K]: log p(x_t | z_t = k); a row of zeros where x_t is missing, which sums it
  out. −∞ stands for what is impossible.

Each step is normalised and the logarithms of the normalisers are summed, so however long the
sequence is, nothing overflows. A state whose probability given the observations up to then is below
1e-38 (float32) counts as impossible: where no transition leads there from another state, later
observations that speak for it come too late. `viterbi` works on logarithms and has no such limit.

Every function has two forms that agree but for rounding, and that limit. With `block` 0 it is one
scan over the steps, O(T K²). Otherwise the sequence is cut into blocks of so many steps, which are
summarised side by side as K × K kernels, O(T K³); an associative scan joins the kernels, and the
blocks are run through again from where they then begin (Särkkä & García-Fernández 2021, whose form
is `block` 1). It takes 2 `block` + O(log(T / block)) steps one after another, holds T / block
kernels in memory, and is meant for one long sequence on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Filtered(NamedTuple):
    """What is known of each step's state from the observations up to then."""

    state: jax.Array  # p(z_t | x_1 … x_t), [T, K]
    next: jax.Array  # p(z_t+1 | x_1 … x_t), [T, K]
    log_evidence: jax.Array  # log p(x_t | x_1 … x_t−1), [T] nats


class Weighted(NamedTuple):
    """A distribution over states and the log-weight of the observations that led to it."""

    state: jax.Array  # [K], or a row for each state that a block may begin in
    log_weight: jax.Array  # []


def filter(
    log_initial: jax.Array, log_transition: jax.Array, log_likelihood: jax.Array, block: int = 0
) -> Filtered:
    """The forward algorithm: p(z_t | x_1 … x_t) ∝ p(z_t | x_1 … x_t−1) p(x_t | z_t)."""
    transition = jnp.exp(log_transition)

    def step(carry, log_likelihood):
        joint = log(carry.state) + log_likelihood
        state, log_evidence = normalised(joint)
        following = state @ transition
        carry = Weighted(following, carry.log_weight + log_evidence)
        return carry, Filtered(state, following, log_evidence)

    def compose(first, second):
        state, log_weight = normalised(log(first.state) + second.log_weight[None])
        return Weighted(state @ second.state, first.log_weight + log_weight)

    states = len(log_initial)
    start = Weighted(jnp.exp(log_initial), jnp.zeros(()))
    units = Weighted(jnp.eye(states), jnp.zeros(states))
    return scan(step, start, log_likelihood, block, units, compose)[1]


def log_prob(
    log_initial: jax.Array, log_transition: jax.Array, log_likelihood: jax.Array, block: int = 0
) -> jax.Array:
    """log p(x_1 … x_T), exact, [] nats."""
    return filter(log_initial, log_transition, log_likelihood, block).log_evidence.sum()


def predict_next(
    log_initial: jax.Array, log_transition: jax.Array, log_likelihood: jax.Array, block: int = 0
) -> jax.Array:
    """p(z_t+1 | x_1 … x_t), [T, K]; its last row is of the step after the last."""
    return filter(log_initial, log_transition, log_likelihood, block).next


def smooth(log_transition: jax.Array, filtered: Filtered, block: int = 0) -> jax.Array:
    """p(z_t | x_1 … x_T), [T, K], from what `filter` found: with x_≤t for x_1 … x_t,

    p(z_t = i | x) = p(z_t = i | x_≤t) Σ_j p(j | i) p(z_t+1 = j | x) / p(z_t+1 = j | x_≤t).
    """
    transition = jnp.exp(log_transition)

    def step(later, now):
        state, following = now
        posterior = state * (transition @ ratio(later, following))
        posterior /= jnp.maximum(posterior.sum(), TINY)  # its sum is 1 but for rounding
        return posterior, posterior

    # After the last step nothing is observed: there the two sides of `ratio` are equal.
    start, units = filtered.next[-1], jnp.eye(filtered.state.shape[1])
    inputs = (filtered.state, filtered.next)
    return scan(step, start, inputs, block, units, jnp.matmul, reverse=True)[1]


def pairwise(log_transition: jax.Array, filtered: Filtered, smoothed: jax.Array) -> jax.Array:
    """p(z_t = i, z_t+1 = j | x_1 … x_T), [T − 1, K, K]."""
    later = ratio(smoothed[1:], filtered.next[:-1])
    return filtered.state[:-1, :, None] * jnp.exp(log_transition)[None] * later[:, None]


def expected_transitions(
    log_transition: jax.Array, filtered: Filtered, smoothed: jax.Array, length: jax.Array | int
) -> jax.Array:
    """Σ_t p(z_t = i, z_t+1 = j | x) over the first `length` steps, [K, K], as one product."""
    later = ratio(smoothed[1:], filtered.next[:-1])
    within = jnp.arange(1, len(smoothed)) < length
    later = jnp.where(within[:, None], later, 0.0)
    return jnp.exp(log_transition) * precise(jnp.matmul)(filtered.state[:-1].T, later)


def viterbi(
    log_initial: jax.Array,
    log_transition: jax.Array,
    log_likelihood: jax.Array,
    length: jax.Array | int | None = None,
    block: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """The most probable path arg max p(z | x), [T], and log max p(z, x) (Viterbi 1967).

    Of a padded sequence, the path of its first `length` steps; after them it stays where it is.
    """
    steps, states = log_likelihood.shape
    within = jnp.arange(steps) < (steps if length is None else length)

    def step(carry, now):
        log_likelihood, within = now
        joint = carry.state[:, None] + log_transition  # of the best path to i, then j
        came_from = jnp.where(within, joint.argmax(0), jnp.arange(states))
        best = jnp.where(within, joint.max(0) + log_likelihood, carry.state)
        highest = finite(best.max())
        return Weighted(best - highest, carry.log_weight + highest), (came_from, highest)

    def compose(first, second):
        joint = first.state[..., None] + (second.state + second.log_weight[:, None])[None]
        best = joint.max(1)
        highest = finite(best.max(1))
        return Weighted(best - highest[:, None], first.log_weight + highest)

    first = log_initial + log_likelihood[0]
    start = Weighted(first, jnp.zeros(()))
    units = Weighted(jnp.where(jnp.eye(states) == 1, 0.0, -jnp.inf), jnp.zeros(states))
    inputs = (log_likelihood[1:], within[1:])
    scores, (came_from, highest) = scan(step, start, inputs, block, units, compose)
    last = scores.state.argmax()
    path = trace_back(lambda later, came_from: came_from[later], last, came_from, states, block)
    # The sum of the steps' shares is more accurate than one that was carried along.
    return path, highest.sum() + scores.state.max()


def posterior_sample(
    key: jax.Array, log_transition: jax.Array, filtered: Filtered, block: int = 0
) -> jax.Array:
    """A path z ~ p(z_1 … z_T | x_1 … x_T), [T]: the last state, then backwards

    z_t ~ p(z_t = i | z_t+1, x_1 … x_t) ∝ p(z_t = i | x_1 … x_t) p(z_t+1 | i).
    """
    transition = jnp.exp(log_transition)
    steps, states = filtered.state.shape
    uniforms = jax.random.uniform(key, (steps,))

    def draw(weights, u):
        cumulative = jnp.cumsum(weights)
        return jnp.minimum((u * cumulative[-1] >= cumulative).sum(), states - 1)

    def earlier(later, now):
        state, u = now
        return draw(state * transition[:, later], u)

    last = draw(filtered.state[-1], uniforms[-1])
    return trace_back(earlier, last, (filtered.state[:-1], uniforms[:-1]), states, block)


def trace_back(
    earlier: Callable[[jax.Array, Any], jax.Array],
    last: jax.Array,
    inputs: Any,
    states: int,
    block: int,
) -> jax.Array:
    """The path [T] that ends in `last`, from z_t = earlier(z_t+1, inputs[t])."""

    def step(later, now):
        state = earlier(later, now)
        return state, state

    _, path = scan(step, last, inputs, block, jnp.arange(states), lambda a, b: b[a], reverse=True)
    return jnp.append(path, last)


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    inputs: Any,
    block: int,
    units: Any,
    compose: Callable[[Any, Any], Any],
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`lax.scan(step, start, inputs)`, or the same in parallel over blocks of so many steps.

    `units` are K carries, one row for each state that a block may begin in; run through a block
    they are its kernel. `compose(a, b)` takes rows `a` on through the kernel `b`.
    """
    steps = len(jax.tree.leaves(inputs)[0])
    if not block or not steps:
        return jax.lax.scan(precise(step), start, inputs, reverse=reverse)
    step, compose = precise(step), precise(compose)
    blocks = -(-steps // block)

    def cut(array):
        """[T, ...] -> [blocks, block, ...], filled up with zeros."""
        fill = [(0, blocks * block - steps)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, fill).reshape(blocks, block, *array.shape[1:])

    def guarded(carry, now):
        real, now = now
        new, out = step(carry, now)
        return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, carry), out

    def run(step):
        return lambda start, inputs: jax.lax.scan(step, start, inputs, reverse=reverse)

    inputs = jax.tree.map(cut, (jnp.ones(steps, bool), inputs))
    rows = jax.vmap(guarded, in_axes=(0, None))
    kernels, _ = jax.vmap(
        lambda inputs: run(lambda c, now: (rows(c, now)[0], None))(units, inputs)
    )(inputs)
    through = jax.lax.associative_scan(jax.vmap(compose), kernels, reverse=reverse)
    one_row = jax.tree.map(lambda leaf: leaf[None], start)
    ends = jax.vmap(lambda kernel: jax.tree.map(lambda leaf: leaf[0], compose(one_row, kernel)))(
        through
    )
    first, last = (-1, 0) if reverse else (0, -1)
    begins = jax.tree.map(
        lambda ends, start: jnp.roll(ends, -1 if reverse else 1, 0).at[first].set(start),
        ends,
        start,
    )
    _, out = jax.vmap(run(guarded))(begins, inputs)
    out = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:steps], out)
    return jax.tree.map(lambda leaf: leaf[last], ends), out


TINY = 1e-37  # above the least normal float32


def precise(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with matrix products in full float32, which a GPU may otherwise round to TF32."""

    def g(*arguments):
        with jax.default_matmul_precision("highest"):
            return f(*arguments)

    return g


def normalised(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights [..., K] as probabilities, and the logarithm of their sum, [...]. Where all are 0, so
    are the probabilities."""
    highest = finite(jax.lax.stop_gradient(log_weights.max(-1)))
    weights = jnp.exp(log_weights - highest[..., None])
    total = weights.sum(-1)
    return weights / jnp.maximum(total, TINY)[..., None], highest + log(total)


def finite(x: jax.Array) -> jax.Array:
    """x, with 0 in place of −∞: to be subtracted from it."""
    return jnp.where(jnp.isneginf(x), 0.0, x)


def log(p: jax.Array) -> jax.Array:
    """log p, −∞ at 0, where its gradient is 0 in place of NaN."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is (then a is, too)."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
