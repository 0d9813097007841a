"""Importance-weighted bounds on a log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class ImportanceBound(NamedTuple):
    """The importance-weighted bound of each example, with the effective sample size."""

    log_mean: jax.Array  # [B], log 1/k Σ w_i, whose expectation is at most log E w
    ess: jax.Array  # [B], effective sample size (Σ w_i)² / Σ w_i², in [1, k]


def importance_bound(
    log_weight: Callable[[jax.Array, int], jax.Array],
    key: jax.Array,
    samples: int,
    block: int = 50,
) -> ImportanceBound:
    """Return the importance-weighted lower bound on log E w.

    Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, eq. 8. The draws are made
    in blocks, so memory does not grow with their number, unless a gradient is taken. The draws
    depend on the block size.

    Args:
      log_weight: log_weight(key, n) draws n weights for each example: their logarithms, [n, B].
      key: the source of the draws.
      samples: the number k of draws.
      block: draws at a time.
    """
    block = min(block, samples)

    def add(carry, index):
        log_w = log_weight(jax.random.fold_in(key, index), block)  # [block, B]
        counts = index * block + jnp.arange(block) < samples
        log_w = jnp.where(counts[:, None], log_w, -jnp.inf)
        sums = jax.nn.logsumexp(log_w, axis=0), jax.nn.logsumexp(2 * log_w, axis=0)
        return jax.tree.map(jnp.logaddexp, carry, sums), None

    shape = jax.eval_shape(lambda: log_weight(key, block)).shape[1:]
    nothing = jnp.full(shape, -jnp.inf)
    blocks = -(-samples // block)
    if blocks == 1:  # without a loop a CPU uses all of its cores
        (log_sum, log_squares), _ = add((nothing, nothing), 0)
    else:
        (log_sum, log_squares), _ = jax.lax.scan(add, (nothing, nothing), jnp.arange(blocks))
    return ImportanceBound(log_sum - math.log(samples), jnp.exp(2 * log_sum - log_squares))
