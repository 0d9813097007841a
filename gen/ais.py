"""Normalisers: annealed importance sampling from both sides, and exact sums over binary states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Annealing(NamedTuple):
    """A path of unnormalised densities p*_β(x) from β = 0, whose normaliser is known, to β = 1.

    The states x are arrays [n, ...] of n chains, or a tree of them.
    """

    log_density: Callable[[Any, jax.Array], jax.Array]  # (x, β) ↦ log p*_β(x), [n]
    transition: Callable[[Any, jax.Array, jax.Array], Any]  # (x, β, key) ↦ x', reversible under p_β
    start: Callable[[jax.Array, int], Any]  # (key, n) ↦ n exact draws of p_0
    log_z: jax.Array  # log Σ_x p*_0(x)


def ais(path: Annealing, temperatures: int | jax.Array, key: jax.Array, chains: int) -> jax.Array:
    """Run annealed importance sampling and return log w, with E w = Z = Σ_x p*_1(x).

    Neal 2001, https://arxiv.org/abs/physics/9803008. Over T steps from β_0 = 0 to β_T = 1, evenly
    spaced, with x_0 ~ p_0,

        log w = log Z_0 + Σ_t log p*_{β_t}(x_{t−1}) − log p*_{β_{t−1}}(x_{t−1}),

    and x_t follows from x_{t−1} by the transition at β_t. log mean w is at most log Z on average.

    Args:
      path: the densities.
      temperatures: the number T of steps.
      key: the source of every draw.
      chains: the number of independent chains.

    Returns:
      [chains], nats.
    """
    start_key, key = jax.random.split(key)

    def step(t, carry):
        x, log_w = carry
        low, high = t / temperatures, (t + 1) / temperatures
        log_w += path.log_density(x, high) - path.log_density(x, low)
        return path.transition(x, high, jax.random.fold_in(key, t)), log_w

    begin = path.start(start_key, chains), jnp.full(chains, path.log_z)
    return jax.lax.fori_loop(0, temperatures, step, begin)[1]


def reverse_ais(
    path: Annealing, temperatures: int | jax.Array, key: jax.Array, x: Any
) -> jax.Array:
    """Run the chain of `ais` backwards from draws of p_1 and return log w, with E 1/w = 1/Z.

    Grosse, Ghahramani & Adams 2015, https://arxiv.org/abs/1511.02543. It starts at x_{T−1} = x.
    For t = T, …, 1 it adds the term of log w at x_{t−1}, then draws x_{t−2} by the transition at
    β_{t−1}. −log mean 1/w is at least log Z on average if x are exact draws; draws that miss a part
    of p_1 can take it below.

    Args:
      path: the densities.
      temperatures: the number T of steps.
      key: the source of every draw.
      x: n draws of p_1, a tree of [n, ...].

    Returns:
      [n], nats.
    """
    chains = len(jax.tree.leaves(x)[0])

    def step(i, carry):
        x, log_w = carry
        t = temperatures - 1 - i
        low, high = t / temperatures, (t + 1) / temperatures
        log_w += path.log_density(x, high) - path.log_density(x, low)
        return path.transition(x, low, jax.random.fold_in(key, t)), log_w

    return jax.lax.fori_loop(0, temperatures, step, (x, jnp.full(chains, path.log_z)))[1]


WARN_STDERR = 0.1
"""Standard error of an end of a bracket, in nats, above which few chains carry its weight."""


class LogZ(NamedTuple):
    """A log normaliser from both sides, each with its standard error and effective sample size."""

    forward: float  # log mean w: in expectation at most log Z
    forward_stderr: float
    forward_ess: float
    reverse: float  # −log mean 1/w: in expectation at least log Z
    reverse_stderr: float
    reverse_ess: float

    @property
    def width(self) -> float:
        """The distance between the two ends of the bracket, in nats."""
        return abs(self.reverse - self.forward)

    def doubts(self, warn_above: float) -> list[str]:
        """Return the reasons for which log Z may lie outside of the bracket.

        - `wide`: the ends are more than `warn_above` nats apart, or not finite.
        - `crossed`: the reverse end is below the forward end by more than 2 standard errors of
          their difference. Reverse chains whose starts miss a mode, or have it too rarely, give
          such an end.
        - `uncertain`: an end has a standard error above WARN_STDERR. The chains that carry the
          weight are then so few that the standard error itself is not reliable.

        No reason shows up if the chains of both directions miss the same mode.
        """
        error = math.hypot(self.forward_stderr, self.reverse_stderr)
        holds = {
            "wide": self.width <= warn_above,
            "crossed": not self.forward - self.reverse > 2 * error,
            "uncertain": not max(self.forward_stderr, self.reverse_stderr) > WARN_STDERR,
        }
        return [reason for reason, fine in holds.items() if not fine]


def log_z(forward: ArrayLike, reverse: ArrayLike) -> LogZ:
    """Return the bracket from the log weights of `ais` [C] and of `reverse_ais` [C'].

    By the delta method the standard error of log mean w is the standard error of mean w, divided by
    mean w: √(n / ESS − 1) / √(n − 1), with ESS = (Σ w)² / Σ w². It is too small where few chains
    carry the weight.
    """

    def log_mean(log_w):
        log_w = np.asarray(log_w, np.float64)
        n, largest = len(log_w), log_w.max()
        w = np.exp(log_w - largest)
        ess = w.sum() ** 2 / (w**2).sum()
        stderr = math.sqrt(max(n / ess - 1, 0) / (n - 1)) if n > 1 else math.nan
        return float(largest + np.log(w.mean())), stderr, float(ess)

    value, stderr, ess = log_mean(-np.asarray(reverse, np.float64))
    return LogZ(*log_mean(forward), -value, stderr, ess)


def log_sum_over_bits(
    log_f: Callable[[jax.Array], jax.Array], bits: int, block: int = 12
) -> jax.Array:
    """Return log Σ exp log_f(x) over all 2^bits states x in {0, 1}^bits, exactly.

    Args:
      log_f: maps states [n, bits] to [n].
      bits: the number of binary variables.
      block: log_f gets 2^block states at a time, so memory grows as 2^(bits − block) only.
    """
    low = min(block, bits)
    rows = jnp.arange(2**low, dtype=jnp.uint32)[:, None]

    def of_block(high):
        number = (high << low) + rows
        x = (number >> jnp.arange(bits, dtype=jnp.uint32)[None]) & 1
        return jax.nn.logsumexp(log_f(x.astype(jnp.float32)))

    return jax.nn.logsumexp(jax.lax.map(of_block, jnp.arange(2 ** (bits - low), dtype=jnp.uint32)))
