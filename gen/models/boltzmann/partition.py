"""The partition function Z of a Boltzmann machine, and the estimates of likelihood made from it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from gen import estimate
from gen.ais import LogZ, ais, log_z, reverse_ais
from gen.core import check_fields
from gen.estimate import Estimate, Kind

EXACT = 25
"""Number of binary units up to which log Z is summed over all of their states."""

WITH_AIS: dict[Kind, Kind] = {
    "exact": "AIS",
    "upper bound": "upper bound (AIS)",
    "no likelihood": "no likelihood",
}
"""The kind of an estimate once AIS has estimated its normaliser, by its kind for a known log Z."""


@dataclass(frozen=True)
class AIS:
    """Settings of annealed importance sampling, which brackets log Z from both sides.

    Forward chains anneal from the base-rate model to the machine (Salakhutdinov & Murray 2008,
    https://doi.org/10.1145/1390156.1390266), reverse chains from samples of the machine to the
    base-rate model (Grosse, Ghahramani & Adams 2015, https://arxiv.org/abs/1511.02543). The inverse
    temperatures are evenly spaced; Salakhutdinov & Murray put more of them near 1.
    """

    temperatures: int = 10_000
    """number of inverse temperatures"""
    chains: int = 500
    """number of chains in each direction"""
    warn_above: float = 1.0
    """width of the AIS bracket, in nats, above which a warning is given"""

    def __post_init__(self):
        check_fields(self, positive=("temperatures", "chains"), non_negative=("warn_above",))


@partial(jax.jit, static_argnames=("machine", "chains"))
def _log_weights(
    machine: Any, state: Any, key: jax.Array, temperatures: int, chains: int
) -> tuple[jax.Array, jax.Array]:
    """Return the log weights of forward and of reverse AIS, [chains] each."""
    draw_key, key = jax.random.split(key)
    forward_key, reverse_key = jax.random.split(key)
    path = machine.annealing(state)
    forward = ais(path, temperatures, forward_key, chains)
    samples = machine.fantasies(state, draw_key, chains, machine.burn_in)
    return forward, reverse_ais(path, temperatures, reverse_key, samples)


def ais_bracket(
    machine: Any,
    state: Any,
    key: jax.Array,
    temperatures: int | None = None,
    chains: int | None = None,
) -> LogZ:
    """Bracket log Z by forward and reverse AIS along `machine.annealing(state)`.

    Args:
      machine: an RBM, a DBM or a general Boltzmann machine.
      state: a state of it. Its persistent chains, after `burn_in` sweeps, start the reverse chains.
      key: the source of every draw.
      temperatures: the number of inverse temperatures; None takes `machine.ais.temperatures`.
      chains: the number of chains in each direction; None takes `machine.ais.chains`.
    """
    temperatures = temperatures or machine.ais.temperatures
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        return log_z(*_log_weights(machine, state, key, temperatures, chains or machine.ais.chains))


def nll_estimates(
    machine: Any,
    state: Any,
    energies: np.ndarray,
    key: jax.Array,
    kind: Kind = "exact",
    **settings: Any,
) -> dict[str, Estimate]:
    """Estimate −log p(v) = F(v) + log Z, and log Z, from the free energies of examples.

    Args:
      machine: the machine whose Z it is: an RBM, a DBM or a general Boltzmann machine.
      state: a state of it.
      energies: F(v) of each example or an upper bound on it, [N] nats.
      key: the source of the draws of AIS.
      kind: the kind of the mean of energies + log Z for a known log Z.
      **settings: more to store beside `nll`.

    Returns:
      `nll`, `log_z_forward`, `log_z_reverse`, and `log_z` or `nll_reverse`. If log Z can be summed,
      it is `log_z`, and `nll` takes it. Otherwise `nll` takes the forward end of AIS, as published
      results do, and `nll_reverse` the reverse end; if the reverse chains start at true samples,
      the truth is expected between them. Their standard errors combine the error over examples with
      the error of log Z. For each of the bracket's `LogZ.doubts` a warning is given, and the
      estimates made from it carry the setting `doubts`.
    """
    exact, ends = machine.log_partition(state), machine.bracket(state, key)
    doubts = ends.doubts(machine.ais.warn_above)
    advice = {
        "wide": f"wider than {machine.ais.warn_above} nats: more temperatures would narrow it",
        "crossed": "with the reverse end below: the chains have not reached the machine's law, a "
        "longer burn_in would help",
        "uncertain": f"with standard errors of {ends.forward_stderr:.2f} and "
        f"{ends.reverse_stderr:.2f} nats: few chains carry the weight, more temperatures would "
        "help",
    }
    between = f"log Z lies between {ends.forward:.2f} and {ends.reverse:.2f}"
    for doubt in doubts:
        warnings.warn(f"{between}, {advice[doubt]}", stacklevel=3)

    of_ais = {
        "temperatures": machine.ais.temperatures,
        "chains": machine.ais.chains,
        "starts": min(machine.persistent_chains, machine.ais.chains),
        "burn_in": machine.burn_in,
    }
    if doubts:
        of_ais["doubts"] = ", ".join(doubts)

    def end(value, stderr, ess):
        return Estimate(value, stderr, "AIS", machine.ais.chains, {**of_ais, "ess": ess})

    forward, reverse = end(*ends[:3]), end(*ends[3:])
    results = {"log_z_forward": forward, "log_z_reverse": reverse}
    if exact is not None:
        nll = estimate.mean(energies + exact, kind, **settings)
        return {"nll": nll, "log_z": Estimate(exact, 0.0, "exact", 1), **results}

    def nll_at(log_z):
        nll = estimate.mean(energies + log_z.value, WITH_AIS[kind], **of_ais, **settings)
        return replace(nll, stderr=math.hypot(nll.stderr, log_z.stderr))

    return {"nll": nll_at(forward), "nll_reverse": nll_at(reverse), **results}
