"""Estimates and samples from a finished run."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import pictures
from experiments.run import Run, read_json, write_json
from gen import estimate, plots, train
from gen.core import UserError, capabilities
from gen.estimate import Estimate

RESULTS = Path(__file__).parent / "results"


def evaluate_run(run: Run, split: str) -> dict[str, Estimate]:
    """The model's estimates on a split, over the run's seeds; writes them to evaluation.json.

    Dynamic binarisation draws the split once, with a key of the seed.
    """
    experiment, model = run.experiment, run.experiment.model
    decode = experiment.decode(run.dataset)
    by_seed = []
    for index, seed in enumerate(experiment.all_seeds):
        decode_key, key = jax.random.split(train.streams(seed).evaluate)
        rows = jax.jit(decode)(dict(run.dataset.splits[split]), decode_key)
        by_seed.append(model.evaluate(experiment.of_seed(run.state, index), rows, key))
    estimates = {name: estimate.over_seeds([of[name] for of in by_seed]) for name in by_seed[0]}
    learned = jax.tree.leaves(model.parameters(experiment.of_seed(run.state, 0)))
    record = {
        "experiment": run.name,
        "data": run.dataset.name,
        "binarize": experiment.binarize,
        "split": split,
        "step": run.step,
        "estimates": {name: asdict(value) for name, value in estimates.items()},
        "seeds": list(experiment.all_seeds),
        "per_seed": [
            {
                "seed": seed,
                **{name: {"value": e.value, "stderr": e.stderr} for name, e in of.items()},
            }
            for seed, of in zip(experiment.all_seeds, by_seed, strict=True)
        ],
        "parameters": sum(math.prod(array.shape) for array in learned),
        "train_seconds": round(run.seconds, 1),
        "device": run.session.get("device"),
        "command": run.session.get("command"),
        "commit": run.session.get("commit"),
    }
    write_json(run.folder / "evaluation.json", record)
    return estimates


def publish(run: Run) -> Path:
    """Copies a finished run's estimates on the test split to experiments/results/NAME.json, and its
    final pictures to experiments/results/NAME/."""
    if run.step < run.experiment.steps:
        raise UserError(
            f"{run.folder} stands at step {run.step} of {run.experiment.steps}: finish it first"
        )
    record = read_json(run.folder / "evaluation.json")
    if record["split"] != "test":
        raise UserError(f"only the test split is published, not {record['split']}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{run.name}.json"
    write_json(path, record)
    pictured = RESULTS / run.name
    pictured.mkdir(exist_ok=True)
    for name in pictures.FINAL:
        if (run.folder / "samples" / name).exists():
            shutil.copyfile(run.folder / "samples" / name, pictured / name)
    return path


def sample_run(run: Run, n: int, seed: int) -> tuple[Path, Path]:
    """n samples of the first seed's model: a PNG grid and the floats [n, *shape] as .npy."""
    model = run.experiment.model
    if "sample" not in capabilities(model):
        raise UserError(
            f"{type(model).__name__} cannot sample: it has no sampler; "
            f"what it can do: {', '.join(capabilities(model))}"
        )
    if n < 1:
        raise UserError(f"{n} samples: take at least 1")
    train.check_seeds(seed)
    images = pictures.draw_samples(
        model, run.experiment.of_seed(run.state, 0), train.streams(seed).sample, n
    )
    stem = run.folder / "samples" / f"seed{seed}_n{n}"
    picture, array = stem.with_suffix(".png"), stem.with_suffix(".npy")
    pictures.save(plots.grid(images, math.ceil(math.sqrt(n))), picture)
    np.save(array, images)
    return picture, array


def summary(estimates: dict[str, Estimate]) -> Any:
    """A table of estimates for the terminal."""
    from rich.table import Table

    table = Table("estimate", "value ± standard error", "kind", "n", "settings")
    for name, value in estimates.items():
        number, _ = str(value).split(" (")
        settings = ", ".join(
            f"{key} {item:.2g}" if isinstance(item, float) else f"{key} {item}"
            for key, item in value.settings.items()
        )
        table.add_row(name, number, value.kind, str(value.n), settings)
    return table
