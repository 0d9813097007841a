"""Speed of restricted Boltzmann machines: an epoch beside scikit-learn's, and AIS."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from experiments.bench.timing import seconds_of
from gen.ais import ais
from gen.models.boltzmann import RBM
from gen.optimize import Optimizer
from gen.train import fit

HIDDEN, BATCH_SIZE, LEARNING_RATE = 256, 10, 0.1
"""scikit-learn's defaults. Its chains are persistent, one for each row of a batch, and make one
Gibbs sweep in a step."""


class Speed(NamedTuple):
    """Training speed, in rows of 784 binary variables per second, and the time of one AIS run."""

    rows: int  # in an epoch
    gen: float
    sklearn: float
    ais_seconds: float  # 1,000 chains, 10,000 temperatures, 784 × 500 units


def speed(rows: int = 10_000, variables: int = 784, temperatures: int = 200) -> Speed:
    """Train for an epoch of the same rows in both libraries, and run AIS, after compiling.

    Args:
      rows: the number of rows, of random bits.
      variables: the number of visible units.
      temperatures: the number of temperatures of AIS. Its time is proportional to this number, so
        the time of 10,000 temperatures follows.
    """
    x = (np.random.default_rng(0).random((rows, variables)) < 0.2).astype(np.float32)
    return Speed(
        rows, rows / _epoch(x), rows / _sklearn_epoch(x), _ais_seconds(variables, temperatures)
    )


def _epoch(x: np.ndarray) -> float:
    """Return the seconds of the second epoch."""
    steps = len(x) // BATCH_SIZE
    model = RBM(
        shape=x.shape[1:],
        hidden=HIDDEN,
        persistent_chains=BATCH_SIZE,
        optimizer=Optimizer("sgd", LEARNING_RATE),
        centred=False,
    )
    options: Any = {"batch_size": BATCH_SIZE, "report_every": steps, "steps_per_dispatch": steps}
    times = []
    for progress in fit(model, {"x": x}, steps=2 * steps, **options):
        if progress.metrics:  # the device has caught up
            times.append(time.perf_counter())
    return times[1] - times[0]


def _sklearn_epoch(x: np.ndarray) -> float:
    """Return the seconds of one epoch of scikit-learn."""
    from sklearn.neural_network import BernoulliRBM

    model = BernoulliRBM(
        HIDDEN, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, n_iter=1, random_state=0
    )
    began = time.perf_counter()
    model.fit(x)
    return time.perf_counter() - began


def _ais_seconds(
    variables: int, temperatures: int, hidden: int = 500, chains: int = 1_000
) -> float:
    """Return the seconds of forward AIS, scaled to 10,000 temperatures."""
    model = RBM(shape=(variables,), hidden=hidden)
    state = model.init(jax.random.key(0))

    @jax.jit
    def run(state, key):
        with jax.default_matmul_precision("highest"):  # as in evaluation
            return ais(model.annealing(state), temperatures, key, chains)

    seconds_of(run, state, jax.random.key(1))  # compiles
    return seconds_of(run, state, jax.random.key(2)) * 10_000 / temperatures


def table(speed: Speed) -> Table:
    """Return a table of the speeds."""
    out = Table("measured", "gen", "scikit-learn", "ratio", title="restricted Boltzmann machines")
    ratio = f"{speed.gen / speed.sklearn:.1f}×"
    out.add_row(
        "rows/s, 784 × 256, batches of 10", f"{speed.gen:.0f}", f"{speed.sklearn:.0f}", ratio
    )
    ais_time = f"{speed.ais_seconds:.0f} s"
    out.add_row("AIS, 1,000 chains × 10,000 temperatures, 784 × 500", ais_time, "–", "–")
    return out
