"""Learning rules and Markov chains that the Boltzmann machines share."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gen.ais import Annealing
from gen.core import Tree
from gen.distributions import logit

FLOOR = 2e-3
"""Smallest probability of either value of a unit in the base-rate model."""

OFFSET_RATE = 0.01
"""Weight of a batch in the running means of the units."""


def base_rate_biases(mean: jax.Array) -> jax.Array:
    """Return the biases at which independent binary units have a given mean: its log-odds.

    Without weights, a machine with these biases is the base-rate model of Salakhutdinov & Murray
    2008, https://doi.org/10.1145/1390156.1390266. The mean is first moved to at least FLOOR from 0
    and 1.
    """
    return logit(jnp.clip(mean, FLOOR, 1 - FLOOR))


def running_mean(old: Tree, new: Tree) -> Tree:
    """Return the exponential running mean after one more batch, whose mean is `new`."""
    return jax.tree.map(lambda o, n: (1 - OFFSET_RATE) * o + OFFSET_RATE * n, old, new)


def centred_gradient(
    weights: Sequence[jax.Array],
    biases: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    up: float = 1.0,
    down: float = 1.0,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Return the centred gradient of a machine of layers x_0 … x_L.

    Montavon & Müller 2012, https://doi.org/10.1007/978-3-642-35289-8_33; Melchior, Fischer &
    Wiskott 2016, https://jmlr.org/papers/v17/14-237.html, eq. 24–26. From the gradient ∂W_l, ∂b_l
    in the parameters of the energy −Σ_l b_l·x_l − Σ_l x_lᵀ W_l x_{l+1} it follows as

        1.  ∂W_l ← ∂W_l − ∂b_l μ_{l+1}ᵀ − μ_l ∂b_{l+1}ᵀ,
        2.  ∂b_l ← ∂b_l − ∂W_l μ_{l+1} − ∂W_{l−1}ᵀ μ_{l−1}    with the ∂W of line 1.

    A step along it moves W and b as a plain gradient step would in the parameters W and b' of the
    same law with centred units, −Σ_l b'_l·(x_l − μ_l) − Σ_l (x_l − μ_l)ᵀ W_l (x_{l+1} − μ_{l+1}),
    where b_l = b'_l − W_l μ_{l+1} − W_{l−1}ᵀ μ_{l−1} and the offsets μ are held fixed.

    Args:
      weights: ∂W_l for l = 0 … L − 1, [D_l, D_{l+1}].
      biases: ∂b_l for l = 0 … L, [D_l].
      offsets: μ_l for l = 0 … L, [D_l], for example the means of the units over the data.
      up: factor applied to the inputs from below, W_{l−1}ᵀ μ_{l−1}, in the second line.
      down: factor applied to the inputs from above, W_l μ_{l+1}, in the second line.

    Returns:
      The centred ∂W_l and ∂b_l.
    """
    centred = [
        w - jnp.outer(below, offsets[i + 1]) - jnp.outer(offsets[i], above)
        for i, (w, below, above) in enumerate(zip(weights, biases, biases[1:], strict=False))
    ]
    shifted = list(biases)
    for i, w in enumerate(centred):
        shifted[i] = shifted[i] - down * (w @ offsets[i + 1])
        shifted[i + 1] = shifted[i + 1] - up * (offsets[i] @ w)
    return tuple(centred), tuple(shifted)


def temper(
    path: Annealing, betas: jax.Array, chains: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Take one sweep of parallel tempering.

    Swendsen & Wang 1986, https://doi.org/10.1103/PhysRevLett.57.2607. Each chain takes a transition
    at its own inverse temperature. Then the neighbours (0, 1), (2, 3), … or, by a fair coin, the
    neighbours (1, 2), (3, 4), … propose to swap their states. Chains i, j with states x, y accept
    with probability min(1, p_i(y) p_j(x) / p_i(x) p_j(y)). The product of all p_β is invariant.

    Args:
      path: the densities p_β and their transitions.
      betas: R inverse temperatures, [R].
      chains: the states of C independent ladders of R chains, [R, C, ...].
      key: the source of every draw.

    Returns:
      The states after the sweep, and the share of the proposed swaps that were accepted.
    """
    move_key, coin_key, accept_key = jax.random.split(key, 3)
    count, ladders = chains.shape[:2]
    chains = jax.vmap(path.transition)(chains, betas, jax.random.split(move_key, count))
    # 1. The partner of each temperature; the ends may have none, and then keep their states.
    index = jnp.arange(count)
    first = jax.random.bernoulli(coin_key).astype(jnp.int32)
    partner = jnp.where((index - first) % 2 == 0, index + 1, index - 1)
    partner = jnp.where((partner < 0) | (partner >= count), index, partner)
    # 2. log p_i(y) − log p_i(x) for each chain; a pair's sum is the log of the acceptance ratio.
    log_density = jax.vmap(path.log_density)
    gain = log_density(chains[partner], betas) - log_density(chains, betas)
    # 3. Partners compare the ratio with the same uniform draw.
    u = jax.random.uniform(accept_key, (count, ladders))[jnp.minimum(index, partner)]
    accepted = (jnp.log(u) < gain + gain[partner]) & (partner != index)[:, None]
    share = accepted.sum() / jnp.maximum((partner != index).sum() * ladders, 1)
    wide = accepted.reshape(*accepted.shape, *(1,) * (chains.ndim - 2))
    return jnp.where(wide, chains[partner], chains), share


def autocorrelation(before: jax.Array, after: jax.Array) -> jax.Array:
    """Return the correlation between the chain states before and after, pooled over units.

    Σ_d cov_d / √(Σ_d var_d · Σ_d var'_d), with moments over the chains [C, D]. 1 means that nothing
    moved. Chains that are all alike give 0.
    """
    x, y = before - before.mean(0)[None], after - after.mean(0)[None]
    return (x * y).sum() / jnp.sqrt(jnp.maximum((x**2).sum() * (y**2).sum(), 1e-12))


def start_states(chains: Tree, key: jax.Array, n: int) -> Tree:
    """Return n of the persistent chains in a random order, each equally often up to one.

    Args:
      chains: C states, a tree of arrays [C, ...].
      key: the source of the order.
      n: the number of states to return.
    """
    count = len(jax.tree.leaves(chains)[0])
    rows = jnp.resize(jax.random.permutation(key, count), (n,))
    return jax.tree.map(lambda x: x[rows], chains)
