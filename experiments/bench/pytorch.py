"""Speed of training beside PyTorch, in networks of the same layers, where PyTorch is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from experiments.bench.timing import interleaved, optional
from experiments.experiment import Experiment
from gen import data, train

NAMES = (
    "vae_mnist",
    "gan_mnist",
    "gated_pixelcnn_binarized_mnist",
    "diffusion_mnist_small",
)
"""Experiments of which `torch_nets` has the same networks."""


class Speed(NamedTuple):
    """Training steps per second, medians over runs that take turns; None if not measured."""

    parameters: int
    gen: float | None
    torch: float | None  # eager, with the default Adam
    fused: float | None  # eager, with Adam(fused=True)
    ratio: float | None  # gen / torch, the median over the rounds
    fused_ratio: float | None


def speed(
    name: str, experiment: Experiment, data_dir: Path | None, seconds: float, rounds: int = 5
) -> Speed:
    """Train an experiment here and in PyTorch, by turns.

    Args:
      name: the name of the experiment, one of `NAMES`.
      experiment: the experiment.
      data_dir: the folder of prepared data sets, or None for the default.
      seconds: the time of all runs of PyTorch with the default Adam; the others take as many steps.
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
        return Speed(parameters, None, None, None, None, None)
    images = np.asarray(dataset.train["x"][:10_000], np.float32)
    images = np.moveaxis(images / images.max(), 3, 1)
    eager, fused = (peers.PEERS[name](fused) for fused in (False, True))
    for peer in (eager, fused):
        assert peer.parameters == parameters, f"{name}: {peer.parameters}, not {parameters}"

    def of_peer(peer, steps):
        rng = np.random.default_rng(0)

        def run():
            for _ in range(steps):
                rows = rng.integers(len(images), size=experiment.batch_size)
                peer.step(peers.torch.from_numpy(images[rows]))

        return run

    of_peer(eager, 2)()
    (first,) = interleaved({"torch": of_peer(eager, 2)}, 1)["torch"]
    steps = max(1, round(seconds / rounds / (first / 2)))
    runs = {
        "gen": of_gen(experiment, dataset, steps),
        "torch": of_peer(eager, steps),
        "fused": of_peer(fused, steps),
    }
    runs["gen"]()  # compiles
    of_peer(fused, 2)()
    times = {name: np.array(values) for name, values in interleaved(runs, rounds).items()}
    rates = {name: float(steps / np.median(values)) for name, values in times.items()}
    ratios = (float(np.median(times[name] / times["gen"])) for name in ("torch", "fused"))
    return Speed(parameters, rates["gen"], rates["torch"], rates["fused"], *ratios)


def of_gen(experiment: Experiment, dataset: data.Dataset, steps: int) -> Callable[[], None]:
    """Return a function that takes the next steps of `fit`, until they are computed.

    Args:
      experiment: the experiment.
      dataset: its data.
      steps: the number of steps of one call.
    """
    run = train.fit(
        experiment.model,
        dataset.train,
        steps=10**9,
        batch_size=experiment.batch_size,
        levels=experiment.levels(dataset),
        decode=experiment.decode(dataset),
        report_every=steps,
        steps_per_dispatch=experiment.steps_per_dispatch,
    )

    def advance():
        next(progress for progress in run if progress.metrics is not None)

    return advance


def table(speeds: Mapping[str, Speed]) -> Table:
    """Return a table of the speeds by the name of the experiment."""
    out = Table(title="training steps per second beside PyTorch, eager, on a CPU")
    columns = ("experiment", "parameters", "gen", "PyTorch", "ratio", "fused Adam", "ratio")
    for column in columns:
        out.add_column(column, justify="left" if column == "experiment" else "right")
    for name, row in speeds.items():
        cells = ["–", "not installed", "–", "not installed", "–"]
        if row.ratio is not None:
            rates = [f"{rate:.3g}" for rate in (row.gen, row.torch, row.fused)]
            cells = [*rates[:2], f"{row.ratio:.2f}×", rates[2], f"{row.fused_ratio:.2f}×"]
        out.add_row(name, f"{row.parameters:,}", *cells)
    return out


def as_json(speeds: Mapping[str, Speed]) -> dict[str, Any]:
    """Return the speeds for a JSON file, by the name of the experiment."""
    return {
        name: {field: value and round(value, 3) for field, value in row._asdict().items()}
        for name, row in speeds.items()
    }
