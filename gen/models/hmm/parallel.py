"""The algorithms of `inference` in parallel over blocks of steps, for one long sequence.

The sequence is cut into blocks. Three stages work on all blocks side by side:

1. The kernel of each block, with a row for each of the K states in which the block may be entered:
   the K rows run through the block together. O(T K³) in all.
2. An associative scan composes the kernels, and from it follows how each block is entered.
3. In each block the sequential algorithm runs from there.

This takes 2 `block` + O(log(T / block)) steps one after another, holds T / block kernels in memory,
and is meant for one long sequence on an accelerator. With blocks of one step it is the algorithm of
Särkkä & García-Fernández 2021, https://arxiv.org/abs/1905.13002; Hassan, Särkkä & García-Fernández
2021, https://arxiv.org/abs/2102.05743, give it for hidden Markov models. The results differ from
the sequential ones by rounding only, apart from the limit that `inference` states: a state may
count as impossible in one of the two and not in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gen.distributions import invert_cdf
from gen.models.hmm import inference
from gen.models.hmm.inference import TINY, Filtered, finite, log, matmul, ratio


class Weighted(NamedTuple):
    """Normalised rows over states, and the logarithms of their normalisers."""

    rows: jax.Array  # probabilities, or log-probabilities with the maximum 0, [R, K]
    log_weight: jax.Array  # [R]


@dataclass(frozen=True)
class Blocks:
    """The functions of `inference` that pass through a sequence, in parallel over its blocks."""

    block: int
    """number of steps in a block"""

    def filter(
        self, log_initial: jax.Array, log_transition: jax.Array, log_likelihood: jax.Array
    ) -> Filtered:
        """Run the forward pass (filtering).

        Args:
          log_initial: log p(z_1), [K].
          log_transition: log p(z_t | z_t−1), [K, K].
          log_likelihood: log p(x_t | z_t), [T, K].
        """
        transition = jnp.exp(log_transition)
        blocks = self._cut(log_likelihood)

        def step(kernel, log_likelihood):
            state, log_evidence = normalize(log(kernel.rows) + log_likelihood[None])
            return Weighted(matmul(state, transition), kernel.log_weight + log_evidence)

        def compose(first, second):
            state, log_weight = normalize(log(first.rows) + second.log_weight[None])
            return Weighted(matmul(state, second.rows), first.log_weight + log_weight)

        enter_in = Weighted(jnp.eye(len(log_initial)), jnp.zeros(len(log_initial)))
        first = Weighted(jnp.exp(log_initial)[None], jnp.zeros(1))
        entered = entries(step, compose, enter_in, first, blocks)
        filtered = jax.vmap(inference.filter, in_axes=(0, None, 0))(
            log(entered.rows[:, 0]), log_transition, blocks
        )
        return self._join(filtered, len(log_likelihood))

    def smooth(self, log_transition: jax.Array, filtered: Filtered) -> jax.Array:
        """Run the backward pass (smoothing): return p(z_t = k | x_1 … x_T), [T, K]."""
        transition = jnp.exp(log_transition)
        blocks = self._cut(filtered, reverse=True)

        def step(kernel, now):
            smoothed = now.state[None] * matmul(ratio(kernel, now.predicted[None]), transition.T)
            return smoothed / jnp.maximum(smoothed.sum(1, keepdims=True), TINY)

        enter_in, last = jnp.eye(len(transition)), filtered.predicted[-1:]
        entered = entries(step, matmul, enter_in, last, blocks, reverse=True)
        smoothed = jax.vmap(inference.smooth, in_axes=(None, 0, 0))(
            log_transition, blocks, entered[:, 0]
        )
        return self._join(smoothed, len(filtered.state), reverse=True)

    def viterbi(
        self,
        log_initial: jax.Array,
        log_transition: jax.Array,
        log_likelihood: jax.Array,
        length: jax.Array | int | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Run the Viterbi algorithm.

        Args:
          log_initial: log p(z_1), [K].
          log_transition: log p(z_t | z_t−1), [K, K].
          log_likelihood: log p(x_t | z_t), [T, K].
          length: the number of steps of a padded sequence; by default T.

        Returns:
          The most probable path, [T], and the logarithm of its probability with x, [].
        """
        steps, states = log_likelihood.shape
        within = jnp.arange(steps) < (steps if length is None else length)
        blocks = self._cut((log_likelihood[1:], within[1:]))

        def shifted(scores, log_weight):
            highest = finite(scores.max(1))
            return Weighted(scores - highest[:, None], log_weight + highest)

        def step(kernel, now):
            log_likelihood, within = now
            best = (kernel.rows[:, :, None] + log_transition[None]).max(1) + log_likelihood[None]
            return shifted(jnp.where(within, best, kernel.rows), kernel.log_weight)

        def compose(first, second):
            onwards = second.rows + second.log_weight[:, None]
            return shifted((first.rows[:, :, None] + onwards[None]).max(1), first.log_weight)

        enter_in = Weighted(jnp.log(jnp.eye(states)), jnp.zeros(states))
        first = Weighted((log_initial + log_likelihood[0])[None], jnp.zeros(1))
        entered = entries(step, compose, enter_in, first, blocks)
        score, came_from, highest = jax.vmap(inference.best_scores, in_axes=(0, None, 0, 0))(
            entered.rows[:, 0], log_transition, *blocks
        )
        path = self._trace_back(self._join(came_from, steps - 1), score[-1].argmax())
        return path, highest.sum() + score[-1].max()

    def posterior_sample(
        self, key: jax.Array, log_transition: jax.Array, filtered: Filtered
    ) -> jax.Array:
        """Draw a path z ~ p(z_1 … z_T | x), [T], by forward filtering and backward sampling.

        Args:
          key: the source of the draws.
          log_transition: log p(z_t | z_t−1), [K, K].
          filtered: the result of the forward pass.
        """
        transition = jnp.exp(log_transition)
        steps, states = filtered.state.shape
        uniform = jax.random.uniform(key, (steps,))

        def draw(now):  # z_t for each state z_t+1, [K]
            state, uniform = now
            return invert_cdf(state[None] * transition.T, jnp.broadcast_to(uniform, states))

        at_once = -(-steps // self.block)  # as many steps as there are blocks: T would be too many
        drawn = jax.lax.map(draw, (filtered.state, uniform), batch_size=at_once)
        return self._trace_back(drawn[:-1], invert_cdf(filtered.state[-1], uniform[-1]))

    def _trace_back(self, came_from: jax.Array, last: jax.Array) -> jax.Array:
        """Return the path [T] that ends in the state `last` and has z_t = came_from[t, z_t+1]."""
        blocks = self._cut(came_from, reverse=True)

        def compose(states, came_from):
            return came_from[states]

        enter_in = jnp.arange(came_from.shape[1])
        entered = entries(compose, compose, enter_in, last[None], blocks, reverse=True)
        path = jax.vmap(inference.trace_back)(blocks, entered[:, 0])[:, :-1]
        return jnp.append(self._join(path, len(came_from), reverse=True), last)

    def _cut(self, arrays: Any, reverse: bool = False) -> Any:
        """Cut arrays [T, ...] into blocks, [blocks, block, ...].

        Zeros fill up the block that is entered last, behind its steps, so they change no result.
        """

        def cut(array):
            blocks = max(1, -(-len(array) // self.block))
            missing = blocks * self.block - len(array)
            fill = [(missing, 0) if reverse else (0, missing)] + [(0, 0)] * (array.ndim - 1)
            return jnp.pad(array, fill).reshape(blocks, self.block, *array.shape[1:])

        return jax.tree.map(cut, arrays)

    def _join(self, blocks: Any, steps: int, reverse: bool = False) -> Any:
        """Undo `_cut`: return arrays [T, ...] from blocks."""

        def join(array):
            array = array.reshape(-1, *array.shape[2:])
            return array[len(array) - steps :] if reverse else array[:steps]

        return jax.tree.map(join, blocks)


def entries(
    step: Callable[[Any, Any], Any],
    compose: Callable[[Any, Any], Any],
    enter_in: Any,
    first: Any,
    blocks: Any,
    reverse: bool = False,
) -> Any:
    """Return the row with which each block is entered, [blocks, 1, ...].

    Args:
      step: takes rows [R, ...] and the inputs of one step to the rows after it.
      compose: takes rows [R, ...] on through a kernel [K, ...].
      enter_in: one row for each state in which a block may be entered, [K, ...].
      first: the row with which the first block is entered, [1, ...].
      blocks: the inputs, [blocks, block, ...].
      reverse: whether steps and blocks follow one another from the last to the first.
    """

    def kernel(inputs):
        rows, _ = jax.lax.scan(
            lambda rows, now: (step(rows, now), None), enter_in, inputs, reverse=reverse
        )
        return rows

    kernels = jax.lax.associative_scan(jax.vmap(compose), jax.vmap(kernel)(blocks), reverse=reverse)
    left = jax.vmap(compose, in_axes=(None, 0))(first, kernels)  # how each block is left

    def shift(first, left):
        return jnp.concatenate([left[1:], first[None]] if reverse else [first[None], left[:-1]])

    return jax.tree.map(shift, first, left)


def normalize(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return weights [R, K] as probabilities in each row, and the log of each row's sum, [R].

    Where all weights of a row are 0, its probabilities are 0, too.
    """
    highest = finite(jax.lax.stop_gradient(log_weights.max(1)))
    weights = jnp.exp(log_weights - highest[:, None])
    total = weights.sum(1)
    return weights / jnp.maximum(total, TINY)[:, None], highest + log(total)
