"""Speed of restricted Boltzmann machines: of an epoch beside scikit-learn's, and of AIS."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.models.boltzmann import RBM
from gen.models.boltzmann.learning import forward_end, precisely
from gen.models.boltzmann.rbm import annealing
from gen.train import fit

SETTING = {"hidden": 256, "batch_size": 10, "learning_rate": 0.1}
"""scikit-learn's defaults: persistent chains, one sweep, as many chains as rows in a batch."""


class Speeds(NamedTuple):
    """Rows of 784 binary variables a second, and the seconds of one run of AIS."""

    rows: int  # in an epoch
    gen: float
    sklearn: float
    ais_seconds: float  # 1,000 chains, 10,000 temperatures, 784 × 500 units


def speeds(rows: int = 10_000, variables: int = 784, temperatures: int = 200) -> Speeds:
    """An epoch of each over the same rows, after compiling; AIS at so many temperatures, the time
    taken in proportion for 10,000, as every one costs the same."""
    x = (np.random.default_rng(0).random((rows, variables)) < 0.2).astype(np.float32)
    return Speeds(rows, rows / _epoch(x), rows / _sklearn_epoch(x), _ais(variables, temperatures))


def _epoch(x: np.ndarray) -> float:
    """Seconds of the second epoch."""
    batch, steps = SETTING["batch_size"], len(x) // SETTING["batch_size"]
    model = RBM(
        shape=x.shape[1:],
        hidden=SETTING["hidden"],
        chains=batch,
        learning_rate=SETTING["learning_rate"],
        centred=False,
    )
    options: Any = {"batch_size": batch, "report_every": steps, "steps_per_dispatch": steps}
    times = []
    for progress in fit(model, {"x": x}, steps=2 * steps, **options):
        if progress.metrics:  # the device has caught up
            times.append(time.perf_counter())
    return times[1] - times[0]


def _sklearn_epoch(x: np.ndarray) -> float:
    from sklearn.neural_network import BernoulliRBM

    model = BernoulliRBM(
        SETTING["hidden"],
        learning_rate=SETTING["learning_rate"],
        batch_size=SETTING["batch_size"],
        n_iter=1,
        random_state=0,
    )
    began = time.perf_counter()
    model.fit(x)
    return time.perf_counter() - began


def _ais(variables: int, temperatures: int, hidden: int = 500, chains: int = 1_000) -> float:
    params = RBM(shape=(variables,), hidden=hidden).init(jax.random.key(0)).params
    path = annealing, params, jnp.full(variables, 0.2)
    precisely(forward_end, *path, jax.random.key(1), temperatures, chains=chains)
    began = time.perf_counter()
    precisely(forward_end, *path, jax.random.key(2), temperatures, chains=chains)
    return (time.perf_counter() - began) * 10_000 / temperatures


def table(found: Speeds) -> Any:
    """The speeds for the terminal."""
    from rich.table import Table

    out = Table("what", "gen", "scikit-learn", "ratio", title="restricted Boltzmann machines")
    ratio = f"{found.gen / found.sklearn:.1f}×"
    out.add_row(
        "rows/s, 784 × 256, batches of 10", f"{found.gen:.0f}", f"{found.sklearn:.0f}", ratio
    )
    ais = f"{found.ais_seconds:.0f} s"
    out.add_row("AIS, 1,000 chains × 10,000 temperatures, 784 × 500", ais, "–", "–")
    return out
