"""Speed of restricted Boltzmann machines: epochs beside scikit-learn's, and AIS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from experiments.bench.timing import interleaved, next_report, seconds_of
from gen.ais import ais
from gen.models.boltzmann import RBM
from gen.optimize import Optimizer
from gen.train import fit


class Setting(NamedTuple):
    """A machine and its training, by persistent contrastive divergence with one Gibbs sweep."""

    hidden: int  # units
    batch_size: int  # scikit-learn has as many chains
    learning_rate: float


SETTINGS = (Setting(256, 10, 0.1), Setting(500, 100, 0.05))
"""scikit-learn's defaults, and a larger machine and batch."""


class Training(NamedTuple):
    """Training speed, in rows of binary variables per second: medians over epochs by turns."""

    machine: str  # numbers of visible and hidden units, and rows in a batch
    gen: float
    sklearn: float
    ratio: float  # gen / sklearn, the median over the turns


class Speed(NamedTuple):
    """The speed of training in each setting, and the time of one AIS run."""

    rows: int  # in an epoch
    training: list[Training]
    ais_seconds: float  # 1,000 chains, 10,000 temperatures, 784 × 500 units


def speed(
    rows: int = 10_000, variables: int = 784, temperatures: int = 200, rounds: int = 5
) -> Speed:
    """Train for epochs of the same rows in both libraries by turns, and run AIS, after compiling.

    Both compute in float32.

    Args:
      rows: the number of rows, of random bits.
      variables: the number of visible units.
      temperatures: the number of temperatures of AIS. Its time is proportional to this number, so
        the time of 10,000 temperatures follows.
      rounds: the number of epochs of each library.
    """
    x = (np.random.default_rng(0).random((rows, variables)) < 0.2).astype(np.float32)
    training = [_training(x, setting, rounds) for setting in SETTINGS]
    return Speed(rows, training, _ais_seconds(variables, temperatures))


def _training(x: np.ndarray, setting: Setting, rounds: int) -> Training:
    runs = {"gen": _epochs(x, setting), "sklearn": _sklearn_epochs(x, setting)}
    for run in runs.values():  # compiles, and fills scikit-learn's buffers
        run()
    times = {name: np.array(seconds) for name, seconds in interleaved(runs, rounds).items()}
    gen, sklearn = (float(len(x) / np.median(seconds)) for seconds in times.values())
    machine = f"{x.shape[1]} × {setting.hidden}, batches of {setting.batch_size}"
    return Training(machine, gen, sklearn, float(np.median(times["sklearn"] / times["gen"])))


def _epochs(x: np.ndarray, setting: Setting) -> Callable[[], None]:
    """Return a function that trains for the next epoch, until it is computed."""
    steps = len(x) // setting.batch_size
    model = RBM(
        shape=x.shape[1:],
        hidden=setting.hidden,
        persistent_chains=setting.batch_size,
        optimizer=Optimizer("sgd", setting.learning_rate),
        centred=False,
    )
    options: Any = {"report_every": steps, "steps_per_dispatch": steps}
    return next_report(fit(model, {"x": x}, steps=10**9, batch_size=setting.batch_size, **options))


def _sklearn_epochs(x: np.ndarray, setting: Setting) -> Callable[[], None]:
    """Return a function that trains scikit-learn's machine for an epoch.

    It calls the method that `BernoulliRBM.fit` calls for each batch, so that the checks of x and
    the first weights, which `fit` makes once, do not count.
    """
    from sklearn.neural_network import BernoulliRBM
    from sklearn.utils import check_random_state

    options: Any = {"learning_rate": setting.learning_rate, "batch_size": setting.batch_size}
    model: Any = BernoulliRBM(setting.hidden, n_iter=1, random_state=0, **options).fit(x)
    rng = check_random_state(0)

    def epoch():
        for start in range(0, len(x), setting.batch_size):
            model._fit(x[start : start + setting.batch_size], rng)

    return epoch


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
    for row in speed.training:
        cells = (f"{row.gen:.0f}", f"{row.sklearn:.0f}", f"{row.ratio:.2f}×")
        out.add_row(f"rows/s, {row.machine}", *cells)
    ais_time = f"{speed.ais_seconds:.0f} s"
    out.add_row("AIS, 1,000 chains × 10,000 temperatures, 784 × 500", ais_time, "–", "–")
    return out


def as_json(speed: Speed) -> dict[str, Any]:
    """Return the speeds for a JSON file."""
    return {**speed._asdict(), "training": [row._asdict() for row in speed.training]}
