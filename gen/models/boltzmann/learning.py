"""What the Boltzmann machines share: gradient steps, centring, tempered chains, estimates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gen import estimate
from gen.core import Tree
from gen.estimate import Annealing, Estimate, Kind, LogZ

EXACT = 25
"""Units of the smaller side up to which log Z is summed, not estimated."""


FLOOR = 2e-3
"""The least probability that a start from data gives either value of a unit."""

OFFSET_RATE = 0.01
"""Weight of a batch in the running means that the centred gradient takes off."""


def bernoulli(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Independent draws of 0 or 1 with P(1) = σ(logits), as floats."""
    u = jax.random.uniform(key, logits.shape)
    return (u < jax.nn.sigmoid(logits)).astype(logits.dtype)


def entropy(p: jax.Array) -> jax.Array:
    """−p log p − (1 − p) log(1 − p), elementwise, 0 at both ends."""
    return -jax.scipy.special.xlogy(p, p) - jax.scipy.special.xlog1py(1 - p, -p)


def log_odds(mean: jax.Array) -> jax.Array:
    """log p / (1 − p), with p kept at least FLOOR away from 0 and 1."""
    p = jnp.clip(mean, FLOOR, 1 - FLOOR)
    return jnp.log(p) - jnp.log1p(-p)


def running(old: Tree, new: Tree) -> Tree:
    """The running means, a batch's taken in."""
    return jax.tree.map(lambda o, n: (1 - OFFSET_RATE) * o + OFFSET_RATE * n, old, new)


def centre(
    weights: Sequence[jax.Array],
    biases: Sequence[jax.Array],
    offsets: Sequence[jax.Array],
    up: float = 1.0,
    down: float = 1.0,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The gradient of a layered machine, as centring changes it (Melchior, Fischer & Wiskott 2016,
    eq. 24–26; Montavon & Müller 2012).

    Given ∂/∂W_l, ∂/∂b_l of the energy −Σ_l b_l x_l − Σ_l x_l W_l x_{l+1}, it is what the gradient
    in the parameters of −Σ_l b'_l (x_l − μ_l) − Σ_l (x_l − μ_l) W_l (x_{l+1} − μ_{l+1}) does to
    W and b = b' − (W_l μ_{l+1} + W_{l−1}ᵀ μ_{l−1}), with the offsets μ_l kept:

        ∂W_l ← ∂W_l − ∂b_l μ_{l+1}ᵀ − μ_l ∂b_{l+1}ᵀ,
        ∂b_l ← ∂b_l − ∂W_l μ_{l+1} − ∂W_{l−1}ᵀ μ_{l−1}.

    Where layers count `up` times for those above them, or `down` times for those below, the shift
    of their biases has that factor.
    """
    centred = [
        w - jnp.outer(below, offsets[i + 1]) - jnp.outer(offsets[i], above)
        for i, (w, below, above) in enumerate(zip(weights, biases, biases[1:], strict=False))
    ]
    shifted = list(biases)
    for i, w in enumerate(centred):
        shifted[i] = shifted[i] - down * (w @ offsets[i + 1])
        shifted[i + 1] = shifted[i + 1] - up * (offsets[i] @ w)
    return centred, shifted


def temper(
    path: Annealing, temperatures: jax.Array, chains: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A sweep of parallel tempering (Swendsen & Wang 1986): each chain moves at its temperature,
    then neighbouring ones may swap. It leaves the product of all p_β invariant.

    The pairs (0, 1), (2, 3), … or, by a coin, (1, 2), (3, 4), … swap their states x, y with
    probability min(1, p_i(y) p_j(x) / p_i(x) p_j(y)).

    Args: the inverse temperatures [R]; chains [R, C, ...], C independent ladders. Returns the
    chains and the share of the proposed swaps that were made.
    """
    move_key, coin_key, accept_key = jax.random.split(key, 3)
    levels, ladders = chains.shape[:2]
    chains = jax.vmap(path.transition)(chains, temperatures, jax.random.split(move_key, levels))
    level = jnp.arange(levels)
    first = jax.random.bernoulli(coin_key).astype(jnp.int32)
    partner = jnp.where((level - first) % 2 == 0, level + 1, level - 1)
    partner = jnp.where((partner < 0) | (partner >= levels), level, partner)
    log_density = jax.vmap(path.log_density)
    gain = log_density(chains[partner], temperatures) - log_density(chains, temperatures)
    u = jax.random.uniform(accept_key, (levels, ladders))[jnp.minimum(level, partner)]
    swapped = (jnp.log(u) < gain + gain[partner]) & (partner != level)[:, None]
    made = swapped.sum() / jnp.maximum((partner != level).sum() * ladders, 1)
    wide = swapped.reshape(*swapped.shape, *(1,) * (chains.ndim - 2))
    return jnp.where(wide, chains[partner], chains), made


def autocorrelation(before: jax.Array, after: jax.Array) -> jax.Array:
    """Of chains [C, D] with themselves some sweeps later: Σ_d cov / √(Σ_d var · Σ_d var'), over the
    chains; 1 where nothing moved, 0 where all are alike."""
    x, y = before - before.mean(0)[None], after - after.mean(0)[None]
    return (x * y).sum() / jnp.sqrt(jnp.maximum((x**2).sum() * (y**2).sum(), 1e-12))


def likelihood(
    energies: np.ndarray,
    exact: float | None,
    bracket: LogZ,
    widest: float,
    kind: Literal["exact", "upper bound"] = "exact",
    **settings: Any,
) -> dict[str, Estimate]:
    """−log p of examples, `nll`, from log Z and their free energies [N] (or, by `kind`, bounds).

    Unless log Z is known exactly, `nll` takes the forward end of AIS, as published figures do, and
    `nll_reverse` the other: if the chains that the reverse end starts from have mixed, the truth is
    expected between them. Their standard errors have the examples' part and the normaliser's.
    `log_z_forward`, `log_z_reverse` are the ends, over chains; `log_z` is exact. `settings` are
    those of AIS. Warns if the ends lie more than `widest` nats apart, or crossed beyond 3 errors.
    """
    between = f"log Z lies between {bracket.forward:.2f} and {bracket.reverse:.2f}"
    if not bracket.width <= widest:
        more = "more temperatures would narrow it"
        warnings.warn(f"{between}, wider than {widest} nats: {more}", stacklevel=3)
    crossed = bracket.forward - bracket.reverse
    if crossed > 3 * math.hypot(bracket.forward_stderr, bracket.reverse_stderr):
        more = "the samples were not the machine's, more mixing would make them so"
        warnings.warn(f"{between}, with the reverse end below: {more}", stacklevel=3)

    def end(value, stderr, ess):
        return Estimate(value, stderr, "AIS", settings["chains"], {**settings, "ess": ess})

    ends = {"log_z_forward": end(*bracket[:3]), "log_z_reverse": end(*bracket[3:])}
    if exact is not None:
        log_z = Estimate(exact, 0.0, "exact", 1)
        return {"nll": estimate.mean(energies + exact, kind), "log_z": log_z, **ends}

    def at(log_z, **more):
        of_ais: Kind = "AIS" if kind == "exact" else "upper bound (AIS)"
        over = estimate.mean(energies + log_z.value, of_ais)
        both = math.hypot(over.stderr, log_z.stderr)
        return replace(over, stderr=both, settings={**settings, **more})

    forward, reverse = ends.values()
    return {"nll": at(forward, reverse=-crossed), "nll_reverse": at(reverse), **ends}


def precisely(f: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """f(arguments) in full float32, which a GPU may otherwise round to TF32."""
    with jax.default_matmul_precision("highest"):
        return jax.block_until_ready(f(*arguments, **options))


@partial(jax.jit, static_argnames=("annealing", "chains"))
def forward_end(
    annealing: Callable[..., Annealing],
    params: Any,
    mean: jax.Array,
    key: jax.Array,
    temperatures: int,
    chains: int,
) -> jax.Array:
    """`ais` along the path that `annealing` makes of the parameters and the mean of the data."""
    return estimate.ais(annealing(params, mean), temperatures, key, chains)


@partial(jax.jit, static_argnames="annealing")
def reverse_end(
    annealing: Callable[..., Annealing],
    params: Any,
    mean: jax.Array,
    key: jax.Array,
    temperatures: int,
    draws: Any,
) -> jax.Array:
    """`reverse_ais` from draws of the machine [C, ...] along the same path."""
    return estimate.reverse_ais(annealing(params, mean), temperatures, key, draws)


def bracket(
    machine: Any,
    annealing: Callable[..., Annealing],
    state: Any,
    mean: jax.Array,
    key: jax.Array,
    temperatures: int | None,
    chains: int | None,
) -> LogZ:
    """log Z by both ends, over so many temperatures and chains, or the machine's own: the reverse
    end from its `fantasies(state, key, chains)`, the forward one from the mean of the data."""
    draw_key, key = jax.random.split(key)
    forward_key, reverse_key = jax.random.split(key)
    temperatures, chains = temperatures or machine.temperatures, chains or machine.annealed
    draws = precisely(jax.jit(machine.fantasies, static_argnums=2), state, draw_key, chains)
    path = annealing, state.params, mean
    forward = precisely(forward_end, *path, forward_key, temperatures, chains=chains)
    reverse = precisely(reverse_end, *path, reverse_key, temperatures, draws)
    return estimate.log_z(forward, reverse)


def settings(machine: Any) -> dict[str, Any]:
    """Those of a machine's AIS; its reverse end has so many starts, after so much mixing."""
    return {
        "temperatures": machine.temperatures,
        "chains": machine.annealed,
        "starts": min(machine.chains, machine.annealed),
        "mixing": machine.mixing,
    }


def starts(chains: Tree, key: jax.Array, n: int) -> Tree:
    """n of the chains [C, ...], in a drawn order, each as often as any other up to one."""
    count = len(jax.tree.leaves(chains)[0])
    rows = jnp.resize(jax.random.permutation(key, count), (n,))
    return jax.tree.map(lambda x: x[rows], chains)
