"""Speed of training beside PyTorch, in networks of the same layers, where PyTorch is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from experiments.bench.timing import interleaved, next_report, optional, seconds_of
from experiments.experiment import Experiment
from experiments.folder import cores
from gen import data

NAMES = (
    "vae_mnist",
    "gan_mnist",
    "gated_pixelcnn_binarized_mnist",
    "diffusion_mnist_small",
)
"""Experiments of which `torch_nets` has the same networks."""


MIN_STEPS = 20
"""Training steps in a turn, at least."""


class Speed(NamedTuple):
    """Training steps per second, medians over runs that take turns; None if not measured."""

    parameters: int
    batch_size: int
    gen: float | None = None
    torch: float | None = None  # eager, with the default Adam
    fused: float | None = None  # eager, with Adam(fused=True)
    ratio: float | None = None  # gen / torch, the median over the rounds
    fused_ratio: float | None = None
    lowest: float | None = None  # the lowest ratio gen / torch of a round
    highest: float | None = None
    steps: int = 0  # in a turn
    threads: int = 0  # of PyTorch and of XLA


def speed(
    name: str, experiment: Experiment, data_dir: Path | None, seconds: float, rounds: int = 5
) -> Speed:
    """Train an experiment here and in PyTorch, by turns, on as many threads.

    PyTorch draws rows from 10,000 images of float32 with replacement. `fit` takes rows of the
    whole set in a random order, and scales the stored integers within the step.

    Args:
      name: the name of the experiment, one of `NAMES`.
      experiment: the experiment.
      data_dir: the folder of prepared data sets, or None for the default.
      seconds: the time of all runs of PyTorch with the default Adam, where these make at least
        `MIN_STEPS` steps a turn; the others take as many steps.
      rounds: the number of turns of each.

    Raises:
      AssertionError: the networks have different numbers of parameters.
    """
    dataset = data.load(experiment.data, data_dir)
    experiment = experiment.on(dataset).for_run()
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(experiment.model.parameters(shapes)))
    peers = optional("experiments.bench.torch_nets")
    if peers is None or jax.default_backend() != "cpu":  # the peers run on the CPU
        return Speed(parameters, experiment.batch_size)
    threads = int(os.environ.get("NPROC") or cores())  # as XLA counts them
    peers.torch.set_num_threads(threads)
    images = np.asarray(dataset.train["x"][:10_000], np.float32)
    images = np.moveaxis(images / images.max(), 3, 1)
    eager, fused = (peers.PEERS[name](experiment.model, fused) for fused in (False, True))
    for peer in (eager, fused):
        assert peer.parameters == parameters, f"{name}: {peer.parameters}, not {parameters}"

    def peer_run(peer, steps):
        rng = np.random.default_rng(0)

        def run():
            for _ in range(steps):
                rows = rng.integers(len(images), size=experiment.batch_size)
                peer.step(peers.torch.from_numpy(images[rows]))

        return run

    for peer in (eager, fused):  # the first steps allocate memory
        peer_run(peer, 2)()
    seconds_per_step = seconds_of(peer_run(eager, 2)) / 2
    steps = max(MIN_STEPS, round(seconds / rounds / seconds_per_step))
    options = {"steps": 10**9, "seed": 0, "report_every": steps, "validate_every": 0}
    run = experiment.fit(dataset, **options)
    runs = {
        "gen": next_report(run),
        "torch": peer_run(eager, steps),
        "fused": peer_run(fused, steps),
    }
    runs["gen"]()  # compiles
    times = {name: np.array(values) for name, values in interleaved(runs, rounds).items()}
    rates = [float(steps / np.median(values)) for values in times.values()]
    by_round, fused_by_round = (times[name] / times["gen"] for name in ("torch", "fused"))
    return Speed(
        parameters,
        experiment.batch_size,
        *rates,
        ratio=float(np.median(by_round)),
        fused_ratio=float(np.median(fused_by_round)),
        lowest=float(by_round.min()),
        highest=float(by_round.max()),
        steps=steps,
        threads=threads,
    )


def table(speeds: Mapping[str, Speed]) -> Table:
    """Return a table of the speeds by the name of the experiment."""
    out = Table(title="training steps per second beside PyTorch, eager, on a CPU")
    columns = ("experiment", "parameters", "batch", "gen", "PyTorch", "ratio", "range")
    columns += ("fused Adam", "ratio")
    for column in columns:
        out.add_column(column, justify="left" if column == "experiment" else "right")
    for name, row in speeds.items():
        on_cpu = jax.default_backend() == "cpu"
        cells = ["–", "not installed" if on_cpu else "on a CPU only", *"–––––"]
        if row.ratio is not None:
            rates = [f"{rate:.3g}" for rate in (row.gen, row.torch, row.fused)]
            spread = f"{row.lowest:.2f} … {row.highest:.2f}"
            cells = [*rates[:2], f"{row.ratio:.2f}×", spread, rates[2], f"{row.fused_ratio:.2f}×"]
        out.add_row(name, f"{row.parameters:,}", str(row.batch_size), *cells)
    return out


def as_json(speeds: Mapping[str, Speed]) -> dict[str, Any]:
    """Return the speeds for a JSON file, by the name of the experiment."""
    return {
        name: {field: value and round(value, 3) for field, value in row._asdict().items()}
        for name, row in speeds.items()
    }
